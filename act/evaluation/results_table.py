"""Figures of evaluations for a model card: a table with errors, and what its metadata lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from act.editing.card_results import Figure
from act.evaluation.comparison import ComparisonSummary
from act.evaluation.evaluate import Summary
from act.evaluation.harness import TaskSummary
from act.evaluation.significance import with_error

METRICS = {"exact": "exact match", "number": "right number", "choice": "right choice"}


def results_table(
    results: Sequence[Summary], comparisons: Sequence[ComparisonSummary], before: str = "target", *, own: str = ""
) -> str:
    """All models on all corpora, in Markdown, each figure with its standard error, chance beside every accuracy.

    The last column, if anything was compared, is how probable a difference as large as this one is by chance.

    Args:
        before: the model that others are compared with.
        own: the model whose card it is, which is marked.
    """
    tested = {(one["after"], one["corpus"]): one for one in comparisons if one["before"] == before}
    columns = ["corpus", "model", "right, %", "chance", "majority", "NLL per token"]
    columns += [f"p, to {before}"] if tested else []
    rows = [columns, ["---"] * len(columns)]
    for row in results:
        compared = tested.get((row["model"], row["corpus"]))
        p = None if compared is None else compared["nll_p"] if compared["match_p"] is None else compared["match_p"]
        cells = [
            row["corpus"],
            _marked(row["model"], own),
            _percent(row["match"], row["match_se"]),
            _percent(row["chance"]),
            _percent(row["majority"]),
            with_error(row["nll_per_token"], row["nll_per_token_se"], 3),
            "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
        ]
        rows.append(cells[: len(columns)])
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([*lines, "", "± standard error over records."])


def tasks_table(tasks: Sequence[TaskSummary], *, own: str = "") -> str:
    """Figures of tasks of lm-evaluation-harness, in Markdown, with their standard errors, chance beside accuracies.

    ``own`` is the model whose card it is, which is marked.
    """
    rows = [
        f"| {one['task']} | {_marked(one['model'], own)} | {one['metric']} | {with_error(one['value'], one['se'], 3)} "
        f"| {'' if one['chance'] is None else format(one['chance'], '.3f')} |"
        for one in tasks
    ]
    heads = ["| task | model | metric | value | chance |", "|---|---|---|---|---|"]
    return "\n".join([*heads, *rows, "", "± standard error over documents."])


def figures_of(row: Summary) -> Iterator[Figure]:
    """The figures of one model on one corpus, for the metadata of its card."""
    if row["match"] is not None:
        levels = {"by chance": row["chance"], "by the commonest answer": row["majority"]}
        beside = [f"{_percent(share)} % {of}" for of, share in levels.items() if share is not None]
        text = "; ".join([f"{_percent(row['match'], row['match_se'])} %", *beside])
        yield Figure(row["corpus"], METRICS[row["metric"]], row["match"], text)
    if row["nll_per_token"] is not None:
        text = with_error(row["nll_per_token"], row["nll_per_token_se"], 3)
        yield Figure(row["corpus"], "negative log-likelihood per token", row["nll_per_token"], text)


def _marked(model: str, own: str) -> str:
    return f"**{model}** (this model)" if model == own else model


def _percent(share: float | None, error: float | None = None) -> str:
    return "" if share is None else with_error(100 * share, None if error is None else 100 * error, 1)

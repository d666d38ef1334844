"""Figures of evaluations for a model card: a table with errors, and what its metadata lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from act.core.counted import counted
from act.editing.card_results import Figure
from act.editing.card_tables import FIRST, LEGEND, OWN, Table, cell
from act.editing.card_texts import Use
from act.evaluation.comparison import ComparisonSummary
from act.evaluation.evaluate import Summary
from act.evaluation.harness import TaskSummary
from act.evaluation.significance import with_error

METRICS = {"exact": "exact match", "number": "right number", "choice": "right choice", "nll": "NLL"}
"""What a metric is called where its figures stand, by the name by which it is asked for."""
LIKELIHOOD = "NLL per token"
NLL = "NLL: negative log-likelihood per token in nats, less is better"
SEEN: dict[Use, str] = {
    "ranked": "by which the channels were found",
    "chosen": "on which share and strength were chosen",
    "trained": "on which it was trained",
}
"""What is said of the rows of a text that was used to make the model."""
P = "p: the probability that chance alone makes such a difference to the model that the heading names"


def results_table(
    results: Sequence[Summary],
    comparisons: Sequence[ComparisonSummary],
    before: str = "target",
    *,
    own: str = "",
    limit: int | None = None,
    used: Mapping[str, Sequence[Use]] | None = None,
) -> str:
    """All models on all corpora, in Markdown, each figure with its standard error, chance beside every accuracy.

    The last column, if anything was compared, is how probable a difference as large as this one is by chance. A column
    in which no row has a figure is left out.

    Args:
        before: the model that others are compared with.
        own: the model whose card it is, which is marked.
        limit: how many records were evaluated, the first ones; None: all.
        used: the corpora that were used to make the model whose card it is, and how, which is said of its rows.
    """
    tested = {(one["after"], one["corpus"]): one for one in comparisons if one["before"] == before}
    probable = f"p against {cell(before)}"
    columns = (
        "corpus",
        "metric",
        "model",
        "records",
        "right, %",
        "chance, %",
        "majority, %",
        "NLL per token",
        probable,
    )
    rows = []
    for row in results:
        compared = tested.get((row["model"], row["corpus"]))
        p = None if compared is None else compared["nll_p"] if compared["match_p"] is None else compared["match_p"]
        look = FIRST if limit is not None and row["records"] == limit else ""
        metric = METRICS[row["metric"]]
        cells = (
            cell(row["corpus"]),
            metric,
            _marked(row["model"], own),
            f"{look}{row['records']:,}{_seen(row, own, used or {})}",
            _percent(row["match"], row["match_se"]),
            _percent(row["chance"]),
            _percent(row["majority"]),
            with_error(row["nll_per_token"], row["nll_per_token_se"], 3),
            "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
        )
        rows.append(dict(zip(columns, cells, strict=True)))
    return f"{Table(columns, tuple(rows))}\n\n{LEGEND}records. {NLL}{f'; {P}' if tested else ''}."


def tasks_table(tasks: Sequence[TaskSummary], *, own: str = "") -> str:
    """Figures of tasks of lm-evaluation-harness, in Markdown, with their standard errors, chance beside accuracies.

    ``own`` is the model whose card it is, which is marked.
    """
    columns = ("task", "model", "metric", "value", "chance", "documents")
    rows = []
    for one in tasks:
        value, chance = with_error(one["value"], one["se"], 3), one["chance"]
        said = "" if chance is None else f"{chance:.3f}"
        cells = (one["task"], _marked(one["model"], own), one["metric"], value, said, f"{one['documents'] or ''}")
        rows.append(dict(zip(columns, cells, strict=True)))
    return f"{Table(columns, tuple(rows))}\n\n{LEGEND}documents."


def figures_of(row: Summary, limit: int | None = None) -> Iterator[Figure]:
    """The figures of one model on one corpus, for the metadata of its card; ``limit`` as in :func:`results_table`."""
    look = [f"the first {counted(limit, 'record')}"] if limit is not None and row["records"] == limit else []
    if row["match"] is not None:
        levels = {"by chance": row["chance"], "by the commonest answer": row["majority"]}
        beside = [f"{_percent(share)} % {of}" for of, share in levels.items() if share is not None]
        text = "; ".join([f"{_percent(row['match'], row['match_se'])} %", *beside, *look])
        yield Figure(row["corpus"], METRICS[row["metric"]], row["match"], text)
    if row["nll_per_token"] is not None:
        text = "; ".join([with_error(row["nll_per_token"], row["nll_per_token_se"], 3), *look])
        yield Figure(row["corpus"], LIKELIHOOD, row["nll_per_token"], text)


def figure_of_task(one: TaskSummary) -> Iterator[Figure]:
    """The figure of one model in one task for the metadata of its card, by the harness's own names; none if unknown."""
    if one["value"] is not None:
        beside = [] if one["chance"] is None else [f"{one['chance']:.3f} by chance"]
        text = "; ".join([with_error(one["value"], one["se"], 3), *beside, "lm-evaluation-harness"])
        yield Figure(one["task"], one["metric"], one["value"], text)


def _seen(row: Summary, own: str, used: Mapping[str, Sequence[Use]]) -> str:
    uses = used.get(row["corpus"], ()) if row["model"] == own else ()
    return "".join(f", {SEEN[use]}" for use in uses)


def _marked(model: str, own: str) -> str:
    return f"**{cell(model)}** {OWN}" if model == own else cell(model)


def _percent(share: float | None, error: float | None = None) -> str:
    return "" if share is None else with_error(100 * share, None if error is None else 100 * error, 1)

"""Figures of evaluations for a model card: a table with errors, and what its metadata lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from act.editing.model_card import Figure
from act.evaluation.comparison import ComparisonSummary
from act.evaluation.evaluate import Summary
from act.evaluation.significance import with_error

METRICS = {"exact": "exact match", "number": "right number", "choice": "right choice"}


def results_table(results: Sequence[Summary], comparisons: Sequence[ComparisonSummary]) -> str:
    """All models on all corpora, in Markdown, each figure with its standard error, chance beside every accuracy.

    The last column is how probable a difference from the target as large as this one is by chance.
    """
    lines = [
        "| corpus | model | right, % | chance | majority | NLL per token | p, to target |",
        "|---|---|---|---|---|---|---|",
    ]
    tested = {(one["after"], one["corpus"]): one for one in comparisons if one["before"] == "target"}
    for row in results:
        compared = tested.get((row["model"], row["corpus"]))
        p = None if compared is None else compared["nll_p"] if compared["match_p"] is None else compared["match_p"]
        lines.append(
            f"| {row['corpus']} | {row['model']} | {_percent(row['match'], row['match_se'])} "
            f"| {_percent(row['chance'])} | {_percent(row['majority'])} "
            f"| {with_error(row['nll_per_token'], row['nll_per_token_se'], 3)} "
            f"| {'' if p is None else '<0.001' if p < 0.001 else f'{p:.3f}'} |"
        )
    return "\n".join([*lines, "", "± standard error over records."])


def figures_of(row: Summary) -> Iterator[Figure]:
    """The figures of one model on one corpus, for the metadata of its card."""
    if row["match"] is not None:
        text = _percent(row["match"], row["match_se"])
        yield Figure(row["corpus"], METRICS[row["metric"]], row["match"], text)
    if row["nll_per_token"] is not None:
        text = with_error(row["nll_per_token"], row["nll_per_token_se"], 3)
        yield Figure(row["corpus"], "negative log-likelihood per token", row["nll_per_token"], text)


def _percent(share: float | None, error: float | None = None) -> str:
    return "" if share is None else with_error(100 * share, None if error is None else 100 * error, 1)

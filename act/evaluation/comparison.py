"""Two models compared on the same records, with paired tests."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TypedDict

import torch

from act.core.errors import ActError, require_type
from act.evaluation.evaluate import Evaluation
from act.evaluation.significance import Difference, fewest_signs, finite, least_p, mcnemar, sign_flip, with_error


class ComparisonSummary(TypedDict):
    """Differences with their standard errors (``_se``) and p-values; None where nothing could be compared."""

    before: str
    after: str
    corpus: str
    nll_per_token_difference: float | None
    nll_per_token_difference_se: float | None
    nll_p: float | None
    match_difference: float | None
    match_difference_se: float | None
    match_p: float | None
    gained: int
    lost: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """``after`` minus ``before`` on the same records.

    Attributes:
        before, after, corpus: names of the models and of the corpus.
        nll: difference in nats per answer token; None if the models' tokenizers cut the answers differently.
        match: difference of the shares of right answers; None if the metric judges no answers.
        gained, lost: records that only ``after``, or only ``before``, answers right.

    >>> before, after = (act.evaluate(target, corpus, "nll", name=name) for name in ("before", "after"))
    >>> act.compare(before, after)
    <Comparison of after with before on records: NLL +0.000 ± 0.000 per token (p = 1)>
    """

    before: str
    after: str
    corpus: str
    nll: Difference | None
    match: Difference | None
    gained: int = 0
    lost: int = 0

    def summary(self) -> ComparisonSummary:
        """The figures as plain data.

        >>> same = act.evaluate(target, corpus, "nll", name="target")
        >>> act.compare(same, same).summary()["nll_per_token_difference"]
        0.0
        """
        nll, match = self.nll, self.match
        return {
            "before": self.before,
            "after": self.after,
            "corpus": self.corpus,
            "nll_per_token_difference": finite(nll.difference if nll else None),
            "nll_per_token_difference_se": finite(nll.standard_error if nll else None),
            "nll_p": finite(nll.p if nll else None),
            "match_difference": match.difference if match else None,
            "match_difference_se": finite(match.standard_error if match else None),
            "match_p": match.p if match else None,
            "gained": self.gained,
            "lost": self.lost,
        }

    def __repr__(self) -> str:
        return f"<Comparison of {self.after} with {self.before} on {self.corpus}: {', '.join(self._figures())}>"

    def _repr_html_(self) -> str:
        after, before, corpus = map(html.escape, (self.after, self.before, self.corpus))
        figures = "".join(f"<li>{figure}</li>" for figure in self._figures())
        return f"<b>{after}</b> against <b>{before}</b> on {corpus}<ul>{figures}</ul>"

    def _figures(self) -> list[str]:
        found = []
        if self.match:
            share = with_error(100 * self.match.difference, 100 * self.match.standard_error, 1, "+")
            records = f"+{self.gained} -{self.lost} records, p = {self.match.p:.2g}"
            found.append(f"right answers {share} points ({records})")
        if self.nll:
            difference = with_error(self.nll.difference, self.nll.standard_error, 3, "+")
            found.append(f"NLL {difference} per token (p = {self.nll.p:.2g})")
        return found or ["nothing to compare: the answers are cut to other tokens"]


def too_few(change: Comparison, records: int, level: float) -> str | None:
    """Why no p below a level can come of a comparison, whatever its models do: a clause; None if one can, or did.

    Args:
        change: the comparison.
        records: how many records were compared.
        level: the p that it takes.

    >>> from act.evaluation.comparison import too_few
    >>> same = act.evaluate(target, corpus, "nll")
    >>> change = act.compare(same, same)
    >>> too_few(change, 4, 0.05)
    'too few records to tell: with 4, p cannot fall below 0.125; at least 6 are needed'
    >>> too_few(change, 6, 0.05) is None
    True
    """
    test = change.match or change.nll
    if test is None or not test.p >= level:  # NaN is neither
        return None
    differing, needed = change.gained + change.lost, fewest_signs(level)
    if records < needed:
        found, signs, more = "too few records to tell", records, ""
    elif change.match and 0 < differing < needed:
        found, signs, more = "too few answers won or lost to tell", differing, ", so give more records"
    else:
        return None
    return f"{found}: with {signs}, p cannot fall below {least_p(signs):.3g}; at least {needed} are needed{more}"


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Compare two models, ``before`` and ``after``, on the same records.

    Right answers are compared by McNemar's exact test, likelihoods by a sign-flip permutation test.

    Raises:
        ActError: the evaluations are of different corpora or metrics.

    >>> change = act.compare(act.evaluate(target, corpus, "nll"), act.evaluate(donor, corpus, "nll"))
    >>> change.match is None and 0 < change.nll.p <= 1
    True
    """
    for side, given in (("before", before), ("after", after)):
        require_type(side, given, Evaluation, "an act.Evaluation, as act.evaluate returns")
    if (before.corpus_fingerprint, len(before.nll)) != (after.corpus_fingerprint, len(after.nll)):
        raise ActError(f"cannot compare figures of {before.corpus} with those of {after.corpus}: give the same records")
    if before.metric != after.metric:
        raise ActError(f"cannot compare {before.metric} with {after.metric}; evaluate both with one metric")
    nll = match = None
    gained = lost = 0
    if torch.equal(before.tokens, after.tokens):
        nll = sign_flip((after.nll - before.nll) / before.tokens.double().mean())
    if before.right is not None and after.right is not None:
        match = mcnemar(before.right, after.right)
        gained, lost = int((after.right & ~before.right).sum()), int((before.right & ~after.right).sum())
    return Comparison(before.model, after.model, before.corpus, nll, match, gained, lost)

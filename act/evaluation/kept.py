"""What "kept" means: the share that a changed model has left of what the target has, wherever one is told.

Of right answers, it is a share of the target's. Of a likelihood, it is a share of what the target gained over the
donor, where the donor is known and clearly worse, by :data:`CLEAR` standard errors over records; else nobody knows what
the target could lose, and it is the probability of a token against the target's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from act.core.errors import ActError
from act.evaluation.evaluate import Evaluation
from act.evaluation.significance import ratio_and_error, with_error

KEPT = 0.95
"""The share of what is to be kept below which a change is called costly."""
CLEAR = 2
"""Standard errors by which a figure is clearly another."""
OF_ANSWERS = "of the target's right answers"
OF_GAIN = "of the target's gain over {}"
OF_LACK = "of what the target lacks beside the donor"
OF_TOKEN = "of the likelihood of a token, since no donor is known to be clearly worse"


@dataclass(frozen=True)
class Share:
    """A share with its standard error, which is NaN for a single record."""

    value: float
    error: float

    def __str__(self) -> str:
        return with_error(self.value, self.error, 2)

    def told(self, least: float) -> str:
        """As a text, with more digits where two would look like ``least`` and it is less.

        >>> from act.evaluation.kept import Share
        >>> Share(0.9462, 0.0041).told(0.95), Share(0.9511, 0.0041).told(0.95), Share(0.9462, 0.0041).told(0.9)
        ('0.946 ± 0.004', '0.95 ± 0.00', '0.95 ± 0.00')
        """
        digits = 2
        while digits < 9 and self.value < least <= round(self.value, digits):
            digits += 1
        return with_error(self.value, self.error, digits)

    def percent(self, beside: float) -> str:
        """In per cent, with the digits that the share ``beside`` has, or as many more as tell the two apart.

        >>> from act.evaluation.kept import Share
        >>> Share(0.9978, 0.0004).percent(0.999), Share(0.9986, 0.0004).percent(0.999), Share(0.8, 0.01).percent(0.95)
        ('99.8 ± 0.0 %', '99.86 ± 0.04 %', '80 ± 1 %')
        """
        digits = len(f"{100 * beside:.10g}".partition(".")[2])
        while digits < 9 and f"{100 * self.value:.{digits}f}" == f"{100 * beside:.{digits}f}":
            digits += 1
        return f"{with_error(100 * self.value, 100 * self.error, digits)} %"


@dataclass(frozen=True)
class Keeping:
    """The scale on which a figure of what is to be kept becomes a share; in a figure, more is better.

    Attributes:
        target: the figure of which all is kept.
        nothing: the figure of which nothing is kept: no right answer, or the donor's log-likelihood; None if no donor
            is known to be clearly worse.
        what: of what it is a share, as a phrase.

    >>> from act.evaluation.kept import Keeping
    >>> round(Keeping(-2.774, -5.780).share(-2.852), 3), round(Keeping(-2.774, None).share(-2.852), 3)
    (0.974, 0.925)
    """

    target: float
    nothing: float | None
    what: str = ""

    @classmethod
    def of(cls, target: Evaluation, donor: Evaluation) -> Keeping:
        """The scale of a text by what target and donor give on the same records."""
        if target.right is not None:
            return cls(target.right.double().mean().item(), 0.0, OF_ANSWERS)
        mine, theirs = (-ratio_and_error(one.nll, one.tokens)[0] for one in (target, donor))
        gained, error = ratio_and_error(donor.nll - target.nll, target.tokens)
        if gained > CLEAR * error:
            return cls(mine, theirs, OF_GAIN.format("the donor"))
        return cls(mine, None, OF_TOKEN)

    @classmethod
    def of_figure(cls, target: float, *, is_share: bool) -> Keeping:
        """The scale of a figure of which only the target's is known."""
        return cls(target, 0.0) if is_share else cls(target, None, OF_TOKEN)

    def share(self, figure: float) -> float:
        """The share that is left; all of it where the target has nothing."""
        if self.nothing is None:
            return math.exp(figure - self.target)
        return (figure - self.nothing) / (self.target - self.nothing) if self.target != self.nothing else 1.0


def kept_of(target: Evaluation, donor: Evaluation, result: Evaluation) -> Share:
    """The share of what the target has that is left, with its error over records.

    Raises:
        ActError: the target gets nothing right.
    """
    if target.right is not None and result.right is not None:
        if not target.right.any():
            raise ActError(
                f"the target gets nothing of {target.corpus} right, so there is nothing to keep; use metric nll"
            )
        return Share(*ratio_and_error(result.right.double(), target.right.double()))
    if Keeping.of(target, donor).nothing is not None:
        return Share(*ratio_and_error(donor.nll - result.nll, donor.nll - target.nll))
    change, error = ratio_and_error(target.nll - result.nll, target.tokens)
    return Share(math.exp(change), math.exp(change) * error)

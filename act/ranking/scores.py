"""Scores: one number per channel, higher where an ability is more at home; float64 ``[N]``, NaN for none.

Each is a record in :data:`SCORES`, which the ranking, the command line and recipes all use. In formulas ``d`` is the
donor, ``t`` the target; means and variances are over the counted tokens of all samples together. The module loads
without PyTorch, since the command line lists the scores in its help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from act.core.errors import ActError, option, require_choice

if TYPE_CHECKING:
    import torch
    from torch import nn

    from act.profiles.statistics import Statistics
    from act.ranking.activations import Ability, Activations

ScoreName = Literal[
    "paired",
    "mean-abs",
    "mean-shift",
    "welch-t",
    "cohen-d",
    "match",
    "match-contrast",
    "lape",
    "attribution",
    "weight-diff",
    "random",
]


@dataclass(frozen=True)
class Evidence:
    """What a score may look at.

    Attributes:
        ability: the profiles of the ability.
        others: those of other abilities, for a score that compares them.
        donor, target: the models, for a score that needs them.
        seed: for a score that draws numbers.
    """

    ability: Ability
    others: Sequence[Ability] = ()
    donor: nn.Module | None = None
    target: nn.Module | None = None
    seed: int = 0

    @cached_property
    def activations(self) -> Activations:
        """The statistics of donor and target; raises ActError as :meth:`Activations.of`."""
        return _activations(self.ability)


Formula = Callable[[Evidence], "torch.Tensor"]
"""Gives each channel a value, float64 ``[N]`` in newly allocated memory, NaN for none."""


@dataclass(frozen=True)
class Score:
    """What there is to know about one score.

    Attributes:
        name: what it is called in Python, on the command line and in files.
        summary: what it measures, in a few words.
        function: the scores of all channels.
        keep: what the profiles of abilities to retain do: their scores are subtracted (``contrast``), the score is
            divided by its ``cost`` to them, or it is itself a comparison of abilities (``compare``); None for a score
            that looks at no activation.
        needs_keep: whether it is nothing without such abilities.
        cost: what each channel costs an ability to retain, at least 0; of several abilities, the largest counts.
        needs_swap: whether it needs pair profiles with swapped outputs.
        needs_models: whether it needs donor and target themselves.
        takes_seed: whether it depends on a seed.
        takes_cost: whether it can be divided by another cost, too (:data:`act.ranking.attributed.Cost`).
        reads: the statistics that it is computed from, whose numbers of tokens say how sure it is; None if it looks at
            no activation.
        no_score: why a measured channel may have none.
    """

    name: ScoreName | Literal["custom"]
    summary: str
    function: Formula
    keep: Literal["contrast", "cost", "compare"] | None = None
    needs_keep: bool = False
    cost: Formula | None = None
    needs_swap: bool = False
    needs_models: bool = False
    takes_seed: bool = False
    takes_cost: bool = False
    reads: Callable[[Ability], Sequence[Statistics]] | None = None
    no_score: str = "never counted"

    @property
    def looks_at_activations(self) -> bool:
        """Whether it is computed from measurements, so that a channel that was never counted has no score."""
        return self.keep is not None

    def wrong_keep(self, given: bool) -> str | None:
        """Why abilities to retain cannot be given, or left out, with this score; None if they can."""
        if given and self.keep is None:
            return f"score {self.name} does not look at activations, so keep has no effect; leave it out"
        if not given and self.needs_keep:
            keep = option("--keep-profile", "keep")
            return f"score {self.name} compares abilities; give at least one other ability ({keep})"
        return None


def score_named(name: str) -> Score:
    """The record of a score; raises ActError, with the known names, for any other."""
    require_choice("score", name, SCORES)
    return SCORES[name]


def score_names(where: Callable[[Score], bool] = lambda score: True) -> str:
    """The names of the scores for which ``where`` is true, as a phrase: ``paired, mean-abs or mean-shift``."""
    *most, last = (name for name, score in SCORES.items() if where(score))
    return f"{', '.join(most)} or {last}" if most else last


def paired(activations: Activations) -> torch.Tensor:
    """``mean |a_d - a_t|``: eq. 2 of arXiv 2601.09398; raises ActError without a pair profile."""
    if activations.difference is None:
        raise ActError(
            "score 'paired' needs a pair profile (act-profile pair): it cannot be rebuilt from two single ones; "
            "use mean-abs or mean-shift with them"
        )
    return activations.difference.mean_abs


def mean_abs(activations: Activations) -> torch.Tensor:
    """``| mean |a_d| - mean |a_t| |``: the other reading of the score of arXiv 2601.09398."""
    return (activations.donor.mean_abs - activations.target.mean_abs).abs_()


def mean_shift(activations: Activations) -> torch.Tensor:
    """``| mean a_d - mean a_t |``."""
    return (activations.donor.mean - activations.target.mean).abs_()


def welch_t(activations: Activations) -> torch.Tensor:
    """``| mean a_d - mean a_t | / sqrt(s_d^2 / n_d + s_t^2 / n_t)``, ``s^2 = M2 / (n - 1)``: Welch, Biometrika 1947.

    A ranking, not a test: tokens of one text are not independent. No score for a channel counted once; infinite where
    neither model varies but they differ.
    """
    donor, target = activations.donor, activations.target
    noise = donor.var / (donor.count - 1)  # var / (n - 1) = s^2 / n
    noise += target.var / (target.count - 1)
    return _in_units_of(mean_shift(activations), noise.sqrt_())


def cohen_d(activations: Activations) -> torch.Tensor:
    """``| mean a_d - mean a_t | / sqrt((var_d + var_t) / 2)``: Cohen, Statistical Power Analysis, 1988.

    Infinite where neither model varies but they differ.
    """
    return _in_units_of(mean_shift(activations), spread(activations))


def spread(activations: Activations) -> torch.Tensor:
    """``sqrt((var_d + var_t) / 2)``: a channel's own scale."""
    return (activations.donor.var + activations.target.var).div_(2).sqrt_()


def _in_units_of(score: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``score / scale``, 0 where both are 0."""
    nothing = (score == 0) & (scale == 0)
    return score.div_(scale).masked_fill_(nothing, 0.0)


def _of_activations(formula: Callable[[Activations], torch.Tensor]) -> Formula:
    return lambda evidence: formula(evidence.activations)


def _lape(evidence: Evidence) -> torch.Tensor:
    from act.ranking.activations import positive_rate
    from act.ranking.lape import lape

    return lape([positive_rate(ability) for ability in (evidence.ability, *evidence.others)])


def _fall(evidence: Evidence) -> torch.Tensor:
    from act.ranking.attributed import fall

    return fall(evidence.ability)


def _disturbance(evidence: Evidence) -> torch.Tensor:
    from act.ranking.attributed import disturbance

    return disturbance(evidence.ability)


def _weight_diff(evidence: Evidence) -> torch.Tensor:
    from act.ranking.activations import require_models, space_of
    from act.ranking.weights import weight_diff

    if evidence.donor is None or evidence.target is None:
        raise ActError("score 'weight-diff' needs the models themselves; give donor and target")
    require_models(evidence.ability, evidence.donor, evidence.target)
    return weight_diff(evidence.donor, evidence.target, space_of(evidence.ability))


def _random(evidence: Evidence) -> torch.Tensor:
    from act.ranking.activations import space_of
    from act.ranking.weights import random_scores

    return random_scores(space_of(evidence.ability), evidence.seed)


def _difference(ability: Ability) -> Sequence[Statistics]:
    found = _activations(ability).difference
    return () if found is None else (found,)


def _both_sides(ability: Ability) -> Sequence[Statistics]:
    found = _activations(ability)
    return found.donor, found.target


def _first_side(ability: Ability) -> Sequence[Statistics]:
    from act.ranking.activations import first_side

    return (first_side(ability),)


def _activations(ability: Ability) -> Activations:
    from act.ranking.activations import Activations

    return Activations.of(ability)


def _benefit(evidence: Evidence) -> torch.Tensor:
    from act.ranking.match import benefit

    return benefit(evidence.activations)


def _swapped_change(evidence: Evidence) -> torch.Tensor:
    from act.ranking.match import disturbance

    return disturbance(evidence.activations)


def _contrast(
    name: ScoreName,
    summary: str,
    formula: Callable[[Activations], torch.Tensor],
    reads: Callable[[Ability], Sequence[Statistics]] = _both_sides,
) -> Score:
    return Score(name, summary, _of_activations(formula), "contrast", reads=reads)


def _records() -> Iterator[Score]:
    yield _contrast("paired", "mean |donor - target|, of a pair profile", paired, _difference)
    yield _contrast("mean-abs", "difference of mean absolute activations", mean_abs)
    yield _contrast("mean-shift", "difference of means", mean_shift)
    yield _contrast("welch-t", "difference of means in standard errors", welch_t)
    yield _contrast("cohen-d", "difference of means in standard deviations", cohen_d)
    unswapped = "never counted, or without a swapped output"
    match = "how far the row alone brings the target to the donor (pair --swap; over what it disturbs of what to keep)"
    yield Score(
        "match", match, _benefit, "cost", cost=_swapped_change, needs_swap=True, reads=_difference, no_score=unswapped
    )
    spared = "the same, minus that on what to keep"
    yield Score(
        "match-contrast",
        spared,
        _benefit,
        "contrast",
        needs_keep=True,
        needs_swap=True,
        reads=_difference,
        no_score=unswapped,
    )
    lape = "how much one ability alone activates a channel"
    yield Score("lape", lape, _lape, "compare", needs_keep=True, reads=_first_side, no_score="never above 0")
    attribution = "fall of the loss to first order, over a cost (--cost)"
    yield Score("attribution", attribution, _fall, "cost", cost=_disturbance, takes_cost=True)
    yield Score("weight-diff", "norm of the difference of the parameter rows", _weight_diff, needs_models=True)
    yield Score("random", "a control", _random, takes_seed=True)


SCORES: dict[str, Score] = {score.name: score for score in _records()}

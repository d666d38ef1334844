"""Scores: a number for every channel, higher where an ability is more at home; float64 ``[N]``, NaN for none.

``d`` is the donor, ``t`` the target; means and variances are over the counted tokens of all samples together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from act.core.errors import ActError
from act.models.channels import ChannelSpace, common_space
from act.models.placement import require_in_memory
from act.profiles.profile import PairProfile, Profile, Statistics

Ability = Profile | tuple[Profile, Profile]
"""What was measured on one ability: a pair profile, or (donor, target) profiles over the same text."""

ACTIVE_SHARE = 0.95  # of all activation probabilities lie below LAPE's threshold, as in its paper
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Activations:
    """What the activation scores need: both sides' statistics, the difference's where the run was paired."""

    space: ChannelSpace
    donor: Statistics
    target: Statistics
    difference: Statistics | None

    @classmethod
    def of(cls, ability: Ability) -> Activations:
        """The statistics of both sides.

        Raises:
            ActError: a single profile; profiles of different architectures, texts or counted positions; LM-head
                channels that are other tokens in one than in the other, as far as their tokenizers tell.
        """
        if isinstance(ability, PairProfile):
            return cls(ability.space, ability.donor, ability.target, ability.difference)
        if not isinstance(ability, tuple) or any(isinstance(side, PairProfile) for side in ability):
            raise ActError("a single profile cannot be ranked; give a pair profile, or the donor's and the target's")
        donor, target = ability
        statistics = _on_space_of(donor, target)
        if corpora_of(donor) != corpora_of(target):
            raise ActError("the profiles of donor and target are of different corpora; profile both on the same text")
        if _vocabularies_of(donor) != _vocabularies_of(target) and any(map(_head_counted, (donor, target))):
            raise ActError(
                "the profiles of donor and target have different vocabularies, so an LM-head channel may be one "
                "token in one and another in the other; profile both without it (act-profile run --exclude head), or "
                "use act-profile pair, which compares their tokens one by one"
            )
        return cls(donor.space, donor, statistics, None)


def corpora_of(profile: Profile) -> list[tuple[str | None, str | None, int]]:
    """What tells the texts of a profile from others: fingerprint, positions that count, and how many did."""
    return [(corpus.fingerprint, corpus.count, corpus.counted) for corpus in profile.provenance.corpora]


def _on_space_of(donor: Profile, target: Profile) -> Statistics:
    """The target's statistics over the donor's channel space: LM heads that neither counted may differ in width."""
    difference = donor.space.first_difference(target.space)
    if difference is None:
        return target
    narrowed = [
        [replace(site, offset=0, width=0 if site.kind == "head" else site.width) for site in profile.space]
        for profile in (donor, target)
    ]
    if narrowed[0] != narrowed[1]:
        raise ActError(f"the profiles of donor and target are of different architectures: {difference}")
    if any(map(_head_counted, (donor, target))):
        raise ActError(
            f"the profiles of donor and target are of different vocabularies: {difference}; "
            "profile both without it (act-profile run --exclude head)"
        )
    block = torch.zeros(len(target.moments.arena), len(donor.space), dtype=torch.float64)
    for mine, theirs in zip(donor.space, target.space, strict=True):
        if mine.width == theirs.width:
            block[:, mine.channels] = target.moments.arena[:, theirs.channels].cpu()
    return Statistics(block)


def _vocabularies_of(profile: Profile) -> list[str | None]:
    return [corpus.vocabulary for corpus in profile.provenance.corpora]


def _head_counted(profile: Profile) -> bool:
    return any(bool((profile.count[site.channels] > 0).any()) for site in profile.space if site.kind == "head")


def paired(activations: Activations) -> torch.Tensor:
    """``mean |a_d - a_t|``: eq. 2 of arXiv 2601.09398. Needs a pair profile."""
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
    noise = torch.zeros(())
    for side in (activations.donor, activations.target):
        noise = noise + side.var / (side.count - 1)  # var / (n - 1) = s^2 / n
    return _in_units_of(mean_shift(activations), noise.sqrt_())


def cohen_d(activations: Activations) -> torch.Tensor:
    """``| mean a_d - mean a_t | / sqrt((var_d + var_t) / 2)``: Cohen, Statistical Power Analysis, 1988.

    Infinite where neither model varies but they differ.
    """
    return _in_units_of(mean_shift(activations), spread(activations))


def spread(activations: Activations) -> torch.Tensor:
    """``sqrt((var_d + var_t) / 2)``: a channel's own scale."""
    return (activations.donor.var + activations.target.var).div_(2).sqrt_()


ACTIVATION_SCORES: dict[str, Callable[[Activations], torch.Tensor]] = {
    "paired": paired,
    "mean-abs": mean_abs,
    "mean-shift": mean_shift,
    "welch-t": welch_t,
    "cohen-d": cohen_d,
}


def lape(rates: Sequence[torch.Tensor]) -> torch.Tensor:
    """Language activation probability entropy of ``rates[0]`` against the others: Tang et al., arXiv 2402.16438.

    ``p_j`` is the share of tokens of ability j at which the channel is above zero; ``H = -sum q_j log q_j`` with
    ``q_j = p_j / sum p``. The paper takes the lowest entropies among channels that some ability activates often, and
    gives each to the abilities that do. As one number for ability 0 of L: ``log L - H`` (from 0, used alike by all, to
    ``log L``, by one alone) where ``p_0`` reaches the 95th percentile of all probabilities; ``-H`` elsewhere, which is
    below every one of those. No score where it is never above zero.

    Args:
        rates: positive rates ``[N]`` of one model on L >= 2 abilities, the wanted one first.
    """
    if len(rates) < 2:
        raise ActError("score 'lape' compares abilities; give the profiles of at least one other ability as keep")
    total = torch.stack(list(rates)).sum(0)
    entropy = torch.zeros_like(total)
    for rate in rates:
        entropy -= torch.special.xlogy(rate / total, rate / total)
    known = torch.cat([rate[rate.isfinite()] for rate in rates]).numpy()
    place = math.ceil(ACTIVE_SHARE * len(known)) - 1
    threshold = np.partition(known, place)[place] if len(known) else math.nan
    return torch.where(rates[0] >= threshold, math.log(len(rates)) - entropy, -entropy)


def weight_diff(donor: nn.Module, target: nn.Module, space: ChannelSpace | None = None) -> torch.Tensor:
    """``|| theta_d - theta_t ||_2`` over each channel's parameter rows; 0 where the tensor belongs to a tied site."""
    space = space or common_space(donor, target)
    for side, model in (("donor", donor), ("target", target)):
        require_in_memory(model, side)
    donor_parameters, target_parameters = (dict(model.named_parameters()) for model in (donor, target))
    score = torch.zeros(len(space), dtype=torch.float64)
    for site in space:
        squares = score[site.channels]
        for part in site.parameters:
            old, new = target_parameters[part.name].detach(), donor_parameters[part.name].detach()
            for start in range(0, len(old), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                step = (new[rows].to(old.device).double() - old[rows].double()).square_()
                if part.dim == 0:
                    squares[rows] += step.flatten(1).sum(1).cpu() if step.dim() > 1 else step.cpu()
                else:
                    squares += step.sum(0).cpu()
    return score.sqrt_()


def random_scores(space: ChannelSpace, seed: int) -> torch.Tensor:
    """Uniform in [0, 1): the control of equal size."""
    return torch.rand(len(space), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _in_units_of(score: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``score / scale``, 0 where both are 0."""
    return torch.where((score == 0) & (scale == 0), 0.0, score / scale)

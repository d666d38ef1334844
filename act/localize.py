"""Localisation: a score for every channel, and the channels with the highest scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from act.channel_set import ChannelSet
from act.channels import ChannelSpace
from act.errors import ActError
from act.pair import common_space
from act.placement import require_in_memory
from act.profile import PairProfile, Profile, Statistics, require_same_models

Score = Literal["paired", "mean-abs", "mean-shift", "weight-diff", "random"]
Normalize = Literal["none", "mean", "std"]


@dataclass(frozen=True)
class Activations:
    """What the activation scores need: both sides' statistics, the difference's where the run was paired."""

    space: ChannelSpace
    donor: Statistics
    target: Statistics
    difference: Statistics | None

    @classmethod
    def of(cls, profile: Profile | tuple[Profile, Profile]) -> Activations:
        """From a pair profile, or from a (donor, target) tuple of single profiles over the same text."""
        if isinstance(profile, PairProfile):
            return cls(profile.space, profile.donor, profile.target, profile.difference)
        if not isinstance(profile, tuple) or any(isinstance(side, PairProfile) for side in profile):
            raise ActError("a single profile cannot be ranked; give a pair profile, or the donor's and the target's")
        donor, target = profile
        difference = donor.space.first_difference(target.space)
        if difference:
            raise ActError(f"the profiles of donor and target are of different architectures: {difference}")
        corpora = [[corpus["fingerprint"] for corpus in side.source["corpora"]] for side in profile]
        if corpora[0] != corpora[1]:
            raise ActError("the profiles of donor and target are of different corpora; profile both on the same text")
        return cls(donor.space, donor, target, None)


def paired(activations: Activations) -> torch.Tensor:
    """``mean |a_donor - a_target|`` over the counted tokens: eq. 2 of arXiv 2601.09398."""
    if activations.difference is None:
        raise ActError(
            "score 'paired' needs a pair profile (act-profile pair): it cannot be rebuilt from two single ones; "
            "use mean-abs or mean-shift with them"
        )
    return activations.difference.mean_abs


def mean_abs(activations: Activations) -> torch.Tensor:
    """``| mean |a_donor| - mean |a_target| |``: the other reading of the paper's score."""
    return (activations.donor.mean_abs - activations.target.mean_abs).abs()


def mean_shift(activations: Activations) -> torch.Tensor:
    """``| mean a_donor - mean a_target |``."""
    return (activations.donor.mean - activations.target.mean).abs()


ACTIVATION_SCORES = {"paired": paired, "mean-abs": mean_abs, "mean-shift": mean_shift}


def weight_diff(donor: nn.Module, target: nn.Module, space: ChannelSpace | None = None) -> torch.Tensor:
    """Euclidean norm of ``theta_donor - theta_target`` over the parameter rows of each channel, float64 ``[N]``.

    Channels whose tensor belongs to a tied site score 0.
    """
    space = space or common_space(donor, target)
    for side, model in (("donor", donor), ("target", target)):
        require_in_memory(model, side)
    donor_parameters, target_parameters = (dict(model.named_parameters()) for model in (donor, target))
    score = torch.zeros(len(space), dtype=torch.float64)
    for site in space:
        for part in site.parameters:
            old = target_parameters[part.name].detach()
            step = donor_parameters[part.name].detach().to(old.device).double() - old.double()
            others = [dim for dim in range(step.dim()) if dim != part.dim]
            score[site.channels] += (step.square().sum(others) if others else step.square()).cpu()
    return score.sqrt()


def random_scores(space: ChannelSpace, seed: int) -> torch.Tensor:
    """Uniform scores: the control of equal size."""
    return torch.rand(len(space), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normalized(score: torch.Tensor, space: ChannelSpace, how: Normalize) -> torch.Tensor:
    """The score divided by its mean or standard deviation over each site, so that wide-scale modules do not win."""
    if how not in get_args(Normalize):
        raise ActError(f"normalize is {how!r}; expected one of {', '.join(get_args(Normalize))}")
    if how == "none":
        return score
    result = score.clone()
    for site in space:
        part = result[site.channels]
        scale = part.nanmean() if how == "mean" else part[part.isfinite()].std(correction=0)
        if scale > 0:
            part /= scale
    return result


def parse_top(top: str | float) -> float:
    """A share of the channels, from ``"5%"`` or ``0.05``; raises ActError unless it lies in (0, 1]."""
    try:
        share = float(top[:-1]) / 100 if isinstance(top, str) and top.endswith("%") else float(top)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ActError(f"top is {top}; expected a share of the channels above 0 and up to 100%, such as 5% or 0.05")
    return share


def rank(
    profile: Profile | tuple[Profile, Profile],
    score: Score = "paired",
    top: str | float = 0.05,
    *,
    keep: Profile | tuple[Profile, Profile] | None = None,
    normalize: Normalize = "none",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    seed: int = 0,
    donor: nn.Module | None = None,
    target: nn.Module | None = None,
) -> ChannelSet:
    """Score every channel, rank all channels of all modules together, and take the top share.

    Args:
        profile: a pair profile of the ability, or (donor, target) profiles of it.
        score: ``paired`` (the paper's), ``mean-abs``, ``mean-shift``, ``weight-diff`` (needs ``donor`` and ``target``)
            or ``random`` (needs ``seed``).
        top: share of the rankable channels: ``0.05`` or ``"5%"``.
        keep: a profile of the ability to retain, of the same models. The score becomes the contrast: score on the
            ability minus score on what to keep.
        normalize: divide each module's scores by their ``mean`` or ``std`` before ranking (and before the contrast).
        include, exclude: module kinds to rank only, or not to rank (``q k v o gate up down norm embed head`` …).

    Returns:
        The channels, at least one. Channels that share a tensor owned by another site are not ranked.

    Raises:
        ActError: an unknown score, kind or normalisation; a top outside (0, 1]; profiles of different models.
    """
    share = parse_top(top)
    activations = Activations.of(profile)
    space = activations.space
    values = _values(activations, score, normalize, seed, donor, target)
    if keep is not None:
        if score not in ACTIVATION_SCORES:
            raise ActError(
                f"score {score!r} does not look at activations, so a keep profile has no effect; leave it out"
            )
        sides, keep_sides = _as_tuple(profile), _as_tuple(keep)
        if len(sides) != len(keep_sides):
            raise ActError("the profile and the keep profile must both be pair profiles, or both donor's and target's")
        for one, other in zip(sides, keep_sides, strict=True):
            require_same_models(one, other)
        values = values - _values(Activations.of(keep), score, normalize, seed, donor, target)
    ranked = _rankable(space, include, exclude)
    count = max(1, round(share * len(ranked)))
    # Channels never counted have no score; a stable sort makes ties the same everywhere.
    candidates = values[ranked].nan_to_num(nan=-math.inf)
    order = candidates.argsort(descending=True, stable=True)[:count]
    index = ranked[order]
    rule = {
        "score": score,
        "top": share,
        "normalize": normalize,
        "contrast": keep is not None,
        "include": sorted(include),
        "exclude": sorted(exclude),
        "seed": seed if score == "random" else None,
        "ranked": len(ranked),
        "models": _models(profile),
        "tied": {site.name: site.tied_to for site in space if site.tied_to},
    }
    return ChannelSet(space, index, values[index], rule)


def _values(
    activations: Activations,
    score: str,
    normalize: Normalize,
    seed: int,
    donor: nn.Module | None,
    target: nn.Module | None,
) -> torch.Tensor:
    if score in ACTIVATION_SCORES:
        values = ACTIVATION_SCORES[score](activations).cpu()
    elif score == "weight-diff":
        if donor is None or target is None:
            raise ActError("score 'weight-diff' needs the models themselves; give donor and target")
        difference = common_space(donor, target).first_difference(activations.space)
        if difference:
            raise ActError(f"the models are not those of the profile: {difference}")
        values = weight_diff(donor, target, activations.space)
    elif score == "random":
        values = random_scores(activations.space, seed)
    else:
        raise ActError(f"score is {score!r}; expected one of {', '.join(get_args(Score))}")
    return normalized(values, activations.space, normalize)


def _as_tuple(profile: Profile | tuple[Profile, Profile]) -> tuple[Profile, ...]:
    return profile if isinstance(profile, tuple) else (profile,)


def _models(profile: Profile | tuple[Profile, Profile]) -> dict[str, Any]:
    if isinstance(profile, tuple):
        return {side: one.source["models"]["model"] for side, one in zip(("donor", "target"), profile, strict=True)}
    return profile.source["models"]


def _rankable(space: ChannelSpace, include: Iterable[str], exclude: Iterable[str]) -> torch.Tensor:
    include, exclude = set(include), set(exclude)
    kinds = {site.kind for site in space}
    unknown = (include | exclude) - kinds
    if unknown:
        raise ActError(f"no module kind {', '.join(sorted(unknown))}; this model has {', '.join(sorted(kinds))}")
    chosen = [
        torch.arange(site.offset, site.offset + site.width)
        for site in space
        if site.parameters and (not include or site.kind in include) and site.kind not in exclude
    ]
    if not chosen:
        raise ActError("include and exclude leave no module to rank")
    return torch.cat(chosen)

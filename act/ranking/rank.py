"""Localisation: score every channel, normalise, contrast with what is to be kept, and take the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from act.core.errors import ActError, require_choice
from act.models.channels import ChannelSpace, Site, common_space
from act.models.fingerprint import fingerprint
from act.profiles.profile import PairProfile, Profile, require_same_models
from act.profiles.provenance import ModelRead
from act.ranking.channel_set import ChannelSet
from act.ranking.granularity import Granularity, Segment, segments
from act.ranking.normalize import Normalize, normalized
from act.ranking.scores import ACTIVATION_SCORES, Ability, Activations, corpora_of, lape, random_scores, weight_diff
from act.ranking.selection import Amount, Scope, parse_amount, parse_top, pools

__all__ = ["Score", "normalized", "parse_top", "random_scores", "rank", "weight_diff"]

Score = Literal["paired", "mean-abs", "mean-shift", "welch-t", "cohen-d", "lape", "weight-diff", "random"]


def rank(
    profile: Ability,
    score: Score | torch.Tensor = "paired",
    top: str | float | None = None,
    *,
    count: int | None = None,
    mass: str | float | None = None,
    keep: Ability | list[Ability] | None = None,
    normalize: Normalize = "none",
    scope: Scope = "global",
    granularity: Granularity | Sequence[Granularity] = "channel",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    seed: int = 0,
    donor: nn.Module | None = None,
    target: nn.Module | None = None,
) -> ChannelSet:
    """Score every channel, rank all channels of all modules together, and take the best.

    Args:
        profile: a pair profile of the ability, or (donor, target) profiles of it; for ``lape`` a single profile too.
        score: one of :data:`Score`, each explained in :mod:`act.ranking.scores`, or one of your own, ``[N]``, NaN for
            none.
            ``weight-diff`` needs ``donor`` and ``target``, ``random`` a ``seed``, ``lape`` other abilities as ``keep``
            (of a pair profile it reads the donor's rates: the donor is who has the ability).
        top, count, mass: how much to take, one of them (:class:`act.ranking.selection.Amount`); default ``top=0.05``.
        keep: one profile, or a list of them, of abilities to retain, of the same models. The score becomes the
            contrast: score on the ability, minus the largest of the scores on what to keep, so that a channel which any
            of them needs is spared.
        normalize: what scores are divided by, before the contrast: :func:`act.ranking.normalize.normalized`.
        scope: rank everything together (``global``), or take the same share, count or mass of every module ``kind``,
            ``layer`` or ``site``.
        granularity: what is ranked as one: :func:`act.ranking.granularity.segments`. A unit's score is the mean of its
            channels'; a unit with a channel that is not ranked is not ranked.
        include, exclude: module kinds (``q k v o gate up down norm embed head`` …) or patterns of site names
            (``*.layers.1?.mlp.*``) to rank only, or not to rank.

    Returns:
        The channels, with the input columns that belong to whole neurons and heads. Never chosen: channels that were
        not counted in either model (``rule["unmeasured"]`` tells how many of which kind), and those that share a
        tensor owned by another site. ``rule["not_positive"]`` tells how many of the chosen have a score of 0 or below,
        for which nothing speaks but that more were asked for; ``mass=1`` takes none of these.

    Raises:
        ActError: an unknown score, kind or other name; an amount out of range, or more than there is; profiles of
            different models, texts or counted positions; a keep profile that is the ability's; models that are not the
            profile's; scores that are all 0; an excluded module whose columns belong to the units.
    """
    amount = parse_amount(0.05 if top is None and count is None and mass is None else top, count, mass)
    name = "custom" if isinstance(score, torch.Tensor) else score
    require_choice("score", name, (*get_args(Score), "custom"))
    kept: list[Ability] = keep if isinstance(keep, list) else [] if keep is None else [keep]
    _require_contrast(profile, kept, name)
    space, include, exclude = _sides(profile)[0].space, list(include), list(exclude)
    units = segments(space, granularity)
    included, excluded = _covered(include, space), _covered(exclude, space)
    allowed = _allowed(space, included, excluded)

    if isinstance(score, torch.Tensor):
        values = _own_score(score, space)
    elif score == "lape":
        values = normalized(lape([_rates(ability) for ability in [profile, *kept]]), space, normalize, in_place=True)
    elif score in ACTIVATION_SCORES:
        values = _activation_score(score, profile, normalize)
        values = _contrast(values, (_activation_score(score, ability, normalize) for ability in kept))
    elif score == "weight-diff":
        values = normalized(_weight_diff(profile, donor, target), space, normalize, in_place=True)
    else:
        values = normalized(random_scores(space, seed), space, normalize, in_place=True)

    if name in ("custom", "weight-diff", "random"):
        values.masked_fill_(~_counted(profile), torch.nan)  # the others have no score where nothing was counted
    unmeasured = _leave_out(values, space, allowed)
    if excluded:
        _require_columns(units, space, allowed, excluded)
    if name != "custom" and not values.isnan().all() and not values.nan_to_num().any():
        raise ActError(
            f"every channel has the {name} score 0, so nothing can be ranked: what is compared does not differ; "
            "give two models that differ, or a text on which they do"
        )
    chosen = _choose(values, units, amount, scope)
    rule = {
        "score": name,
        "top": amount.top,
        "count": amount.count,
        "mass": amount.mass,
        "normalize": normalize,
        "scope": scope,
        "granularity": [granularity] if isinstance(granularity, str) else list(granularity),
        "contrast": bool(kept) and score != "lape",
        "keep": [_corpora_names(ability) for ability in kept],
        "corpora": _corpora_names(profile),
        "include": sorted(include),
        "exclude": sorted(exclude),
        "seed": seed if score == "random" else None,
        "ranked": chosen.ranked,
        "not_positive": chosen.not_positive,
        "unmeasured": unmeasured,
        "models": {side: model.to_json() for side, model in _models(profile).items()},
        "tied": {site.name: site.tied_to for site in space if site.tied_to},
    }
    return ChannelSet(space, chosen.channels, values[chosen.channels], rule, chosen.inputs)


def _sides(ability: Ability) -> tuple[Profile, ...]:
    return ability if isinstance(ability, tuple) else (ability,)


def _activation_score(score: str, ability: Ability, normalize: Normalize) -> torch.Tensor:
    activations = Activations.of(ability)
    values = ACTIVATION_SCORES[score](activations).cpu()
    return normalized(values, activations.space, normalize, activations, in_place=True)


def _contrast(values: torch.Tensor, kept: Iterable[torch.Tensor]) -> torch.Tensor:
    most = None
    for other in kept:
        if torch.equal(values.view(torch.int64), other.view(torch.int64)):  # bits: NaN equals NaN
            raise ActError("a keep profile gives every channel the score of the ability; give profiles of another text")
        most = other if most is None else torch.maximum(most, other, out=most)
    return values if most is None else values.sub_(most)


def _rates(ability: Ability) -> torch.Tensor:
    """Positive rates of the model that has the ability."""
    first = _sides(ability)[0]
    return (first.donor if isinstance(first, PairProfile) else first).positive_rate.cpu()


def _own_score(score: torch.Tensor, space: ChannelSpace) -> torch.Tensor:
    if score.shape != (len(space),):
        raise ActError(f"the score has shape {list(score.shape)}; expected [{len(space)}], one value a channel")
    return score.detach().to("cpu", torch.float64, copy=True)


def _weight_diff(ability: Ability, donor: nn.Module | None, target: nn.Module | None) -> torch.Tensor:
    if donor is None or target is None:
        raise ActError("score 'weight-diff' needs the models themselves; give donor and target")
    space = _sides(ability)[0].space
    difference = common_space(donor, target).first_difference(space)
    if difference:
        raise ActError(f"the models are not those of the profile: {difference}")
    expected = _models(ability)
    for side, model in (("donor", donor), ("target", target)):
        if side in expected and (found := fingerprint(model)) != expected[side].fingerprint:
            raise ActError(
                f"the {side} given has other weights ({found}) than the profile's, "
                f"{expected[side]}; give the models that were "
                "profiled, in the dtype they had then"
            )
    return weight_diff(donor, target, space)


def _require_contrast(ability: Ability, kept: list[Ability], score: str) -> None:
    if kept and score not in ACTIVATION_SCORES and score != "lape":
        raise ActError(f"score {score!r} does not look at activations, so a keep profile has no effect; leave it out")
    sides = _sides(ability)
    positions = {corpus.count for corpus in sides[0].provenance.corpora}
    for other in map(_sides, kept):
        if len(sides) != len(other) or isinstance(sides[0], PairProfile) != isinstance(other[0], PairProfile):
            raise ActError("the profile and the keep profiles must all be pair profiles, or all donor's and target's")
        for one, two in zip(sides, other, strict=True):
            require_same_models(one, two)
        texts = corpora_of(sides[0])
        if texts == corpora_of(other[0]) and all(text[0] is not None for text in texts):
            raise ActError(
                f"a keep profile is of the ability's own text ({_corpora_names(ability)[0]}), so nothing is left to "
                "rank; profile the ability to retain on another one"
            )
        if {corpus.count for corpus in other[0].provenance.corpora} != positions:
            raise ActError(
                "a keep profile counts other positions than the ability's (--count); their scores cannot be compared, "
                "profile both alike"
            )


def _covered(words: Iterable[str], space: ChannelSpace) -> set[str]:
    """The names of the sites whose kind is one of the words, or, where no kind is called so, that match it."""
    kinds, found = {site.kind for site in space}, set()
    for word in words:
        sites = {site.name for site in space if (site.kind == word if word in kinds else fnmatchcase(site.name, word))}
        if not sites:
            raise ActError(
                f"no module kind {word}; this model has {', '.join(sorted(kinds))}, and no site matches it as a pattern"
            )
        found |= sites
    return found


def _allowed(space: ChannelSpace, included: set[str], excluded: set[str]) -> list[Site]:
    sites = [site for site in space if site.parameters and site.name not in excluded]
    allowed = [site for site in sites if not included or site.name in included]
    if not allowed:
        raise ActError("include and exclude leave no module to rank")
    return allowed


def _require_columns(units: list[Segment], space: ChannelSpace, allowed: list[Site], excluded: set[str]) -> None:
    """Raise :class:`ActError` where units that are ranked would move columns of an excluded module."""
    ranked = torch.zeros(len(space), dtype=torch.bool)
    for site in allowed:
        ranked[site.channels] = True
    for segment in units:
        for name in segment.inputs:
            assert segment.channels is not None
            if name in excluded and ranked[segment.channels].all(1).any():
                raise ActError(
                    f"{name} is excluded, but its columns move with each {segment.kind} that it reads; exclude the "
                    "modules before it too, or rank by channel"
                )


def _counted(ability: Ability) -> torch.Tensor:
    """Which channels both models were counted in, bool ``[N]``."""
    both = ability if isinstance(ability, Profile) and not isinstance(ability, PairProfile) else Activations.of(ability)
    statistics = (both,) if isinstance(both, Profile) else (both.donor, both.target)
    return torch.stack([(one.count > 0).cpu() for one in statistics]).all(0)


def _leave_out(values: torch.Tensor, space: ChannelSpace, allowed: list[Site]) -> dict[str, int]:
    """Take the score of channels that must not be chosen; how many of the allowed have none, by kind."""
    unmeasured: dict[str, int] = {}
    missing = values.isnan()
    if missing.any():
        for site in allowed:
            if count := int(missing[site.channels].count_nonzero()):
                unmeasured[site.kind] = unmeasured.get(site.kind, 0) + count
    names = {site.name for site in allowed}
    for site in space:
        if site.name not in names:
            values[site.channels] = torch.nan
    return unmeasured


class _Chosen(NamedTuple):
    """The chosen channels, the columns that go with them; of how many channels, and how many of them score <= 0."""

    channels: torch.Tensor
    inputs: dict[str, torch.Tensor]
    ranked: int
    not_positive: int


def _choose(values: torch.Tensor, units: list[Segment], amount: Amount, scope: Scope) -> _Chosen:
    index, inputs, ranked, not_positive = [], {}, 0, 0
    for pool in pools(units, scope):
        members = [units[number] for number in pool]
        whole = len(members) == len(units) and all(segment.channels is None for segment in members)
        scores = values if whole else torch.cat([segment.scores(values) for segment in members])
        ends = torch.tensor([len(segment) for segment in members]).cumsum(0)
        sizes = None
        if any(segment.size > 1 for segment in members):
            sizes = torch.cat([torch.full((len(segment),), segment.size) for segment in members])
        chosen = amount.of(scores, sizes, "units" if sizes is not None else "channels")
        ranked += (
            len(scores) - int(scores.isnan().count_nonzero()) if sizes is None else int(sizes[~scores.isnan()].sum())
        )
        idle = chosen[scores[chosen] <= 0]
        not_positive += len(idle) if sizes is None else int(sizes[idle].sum())
        if whole:
            index.append(chosen)
            break
        stops = torch.searchsorted(chosen, ends).tolist()
        start = 0
        for segment, stop, end in zip(members, stops, ends.tolist(), strict=True):
            if stop > start:
                taken = chosen[start:stop] - (end - len(segment))
                index.append(segment.channels_of(taken))
                inputs.update({site: columns[taken].flatten() for site, columns in segment.inputs.items()})
            start = stop
    if not sum(map(len, index)):
        raise ActError(_nothing(values, units, ranked))
    return _Chosen(torch.cat(index), inputs, ranked, not_positive)


def _nothing(values: torch.Tensor, units: list[Segment], ranked: int) -> str:
    """Why nothing was chosen."""
    if values.isnan().all():
        return "no channel has a score to rank by; measure the modules that are to be ranked"
    if ranked:
        return "no score is above 0, so there is no mass to take a share of; give top or count instead"
    names = " or ".join(sorted({segment.kind for segment in units if segment.size > 1}))
    return (
        f"no whole {names} can be ranked: some of the modules that make it are not included, excluded or not measured; "
        "include all of them, such as gate and up for neurons, or rank by channel"
    )


def _models(ability: Ability) -> Mapping[str, ModelRead]:
    if isinstance(ability, tuple):
        return {side: one.provenance.models["model"] for side, one in zip(("donor", "target"), ability, strict=True)}
    return ability.provenance.models


def _corpora_names(ability: Ability) -> list[str]:
    return [corpus.name for corpus in _sides(ability)[0].provenance.corpora]

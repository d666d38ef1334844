"""The profiles that a ranking is made from, and whether they may be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from act.core.errors import ActError, option, require_type
from act.models.channels import ChannelSpace
from act.models.common import common_space
from act.models.fingerprint import fingerprint
from act.profiles.attribution import AttributionProfile
from act.profiles.profile import PairProfile, Profile, require_same_models
from act.profiles.provenance import ModelRead
from act.profiles.statistics import Statistics

Ability = Profile | tuple[Profile, Profile]
"""What was measured on one ability: a pair profile, or (donor, target) profiles over the same text."""


@dataclass(frozen=True)
class Activations:
    """What the activation scores need: the statistics of both sides and, if the run was paired, of their difference.

    With swapped outputs, ``swap`` and ``product`` are those of :class:`act.profiles.statistics.PairStatistics`.
    """

    space: ChannelSpace
    donor: Statistics
    target: Statistics
    difference: Statistics | None
    swap: Statistics | None = None
    product: Statistics | None = None

    @classmethod
    def of(cls, ability: Ability) -> Activations:
        """The statistics of both sides.

        Raises:
            ActError: a single profile; profiles of different architectures, texts or counted positions; LM-head
                channels that stand for different tokens in the two, as far as their tokenizers tell.
        """
        if isinstance(ability, AttributionProfile):
            raise ActError(
                "what act-profile attribute measures holds no activations, so it can be ranked by attribution only; "
                "choose that score, or profile the pair (act-profile pair) for another"
            )
        if isinstance(ability, PairProfile):
            swapped = (ability.swap, ability.product) if ability.swapped else ()
            return cls(ability.space, ability.donor, ability.target, ability.difference, *swapped)
        if isinstance(ability, tuple) and any(isinstance(side, PairProfile) for side in ability):
            keep = option("with --keep-profile", "as keep")
            raise ActError(f"two sides were given, and one is a pair profile, which has both; give what to keep {keep}")
        if not isinstance(ability, tuple):
            model = ability.provenance.models.get("model")
            raise ActError(
                f"a single profile cannot be ranked, and this one is of {model.name if model else 'one model'} alone; "
                "give a pair profile (act-profile pair, act.profile_pair), or the donor's and the target's"
            )
        donor, target = ability
        _require_two_models(donor, target)
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


def require_ability(what: str, given: object) -> None:
    """Raise :class:`ActError` unless ``given`` is an :data:`Ability`; ``what`` names it in the message."""
    for profile in given if isinstance(given, tuple) and len(given) == 2 else [given]:
        require_type(what, profile, Profile, "a profile, as act.profile_pair or act.load returns, or two in a tuple")


def sides(ability: Ability) -> tuple[Profile, ...]:
    """The profiles of an ability: the donor's and the target's, or one."""
    return ability if isinstance(ability, tuple) else (ability,)


def space_of(ability: Ability) -> ChannelSpace:
    """The channel space that an ability is ranked in."""
    return sides(ability)[0].space


def corpora_of(profile: Profile) -> list[tuple[str | None, str | None, int]]:
    """What distinguishes the texts of a profile: fingerprint, positions that count, and how many were counted."""
    return [(corpus.fingerprint, corpus.count, corpus.counted) for corpus in profile.provenance.corpora]


def corpus_names(ability: Ability) -> list[str]:
    """The names of an ability's texts."""
    return [corpus.name for corpus in sides(ability)[0].provenance.corpora]


def corpus_places(abilities: Iterable[Ability]) -> dict[str, tuple[str, ...]]:
    """Where texts were read from that are not called by their places, by their names."""
    found: dict[str, dict[str, None]] = {}
    for one in (one for ability in abilities for one in sides(ability)[0].provenance.corpora):
        found.setdefault(one.name, {}).update(dict.fromkeys(each.place or each.name for each in one.read or (one,)))
    return {name: tuple(places) for name, places in found.items() if [*places] != [name]}


def corpus_fingerprints(abilities: Iterable[Ability]) -> dict[str, tuple[str, ...]]:
    """The fingerprints of the content of texts, by their names; of batches that a caller made, nothing is known."""
    found: dict[str, dict[str, None]] = {}
    for one in (one for ability in abilities for one in sides(ability)[0].provenance.corpora):
        for each in one.read or (one,):
            if each.fingerprint:
                found.setdefault(one.name, {})[each.fingerprint] = None
    return {name: tuple(each) for name, each in found.items()}


def corpus_parts(abilities: Iterable[Ability]) -> dict[str, str]:
    """Which part was read of texts that were not read whole, by their names."""
    each = (one for ability in abilities for side in sides(ability) for one in side.provenance.corpora)
    return {one.name: one.part for one in each if one.part}


def models_of(ability: Ability) -> Mapping[str, ModelRead]:
    """The models that were measured: ``donor`` and ``target``, or ``model``."""
    if isinstance(ability, tuple):
        found = zip(("donor", "target"), (one.provenance.models.get("model") for one in ability), strict=True)
        return {side: model for side, model in found if model is not None}
    return ability.provenance.models


def types_apart(abilities: Sequence[Ability]) -> str:
    """A sentence if one of the models was loaded in different types for these; empty if in one, or if none is known."""
    for side in ("donor", "target", "model"):
        loaded = (models_of(ability).get(side) for ability in abilities)
        types = list(dict.fromkeys(model.dtype for model in loaded if model and model.dtype))
        if len(types) > 1:
            return (
                f"the {side} was measured in different types, {' and '.join(types)}, so scores differ by rounding, "
                f"too; measure all profiles in one ({option('--dtype', 'the dtype it is loaded in')})"
            )
    return ""


def first_side(ability: Ability) -> Statistics:
    """The statistics of the model that has the ability: the donor, or the only one."""
    first = sides(ability)[0]
    if isinstance(first, AttributionProfile):
        return Activations.of(first).donor  # which raises
    return first.donor if isinstance(first, PairProfile) else first


def positive_rate(ability: Ability) -> torch.Tensor:
    """Positive rates ``[N]`` of the model that has the ability."""
    return first_side(ability).positive_rate.cpu()


def counted(ability: Ability) -> torch.Tensor:
    """Which channels were counted in every model, bool ``[N]``."""
    both = ability if isinstance(ability, Profile) and not isinstance(ability, PairProfile) else Activations.of(ability)
    statistics = (both,) if isinstance(both, Profile) else (both.donor, both.target)
    return torch.stack([(one.count > 0).cpu() for one in statistics]).all(0)


def require_models(ability: Ability, donor: nn.Module, target: nn.Module) -> None:
    """Raise :class:`ActError` unless these are the models that were measured."""
    difference = common_space(donor, target).first_difference(space_of(ability))
    if difference:
        raise ActError(f"the models are not those of the profile: {difference}")
    expected = models_of(ability)
    for side, model in (("donor", donor), ("target", target)):
        if side in expected and (found := fingerprint(model)) != expected[side].fingerprint:
            other = "donor" if side == "target" else "target"
            if other in expected and expected[other].fingerprint == found:
                raise ActError(
                    f"donor and target look swapped: the {side} given is the {other} of the profile; give "
                    f"{expected['donor']} as the donor and {expected['target']} as the target"
                )
            dtype = expected[side].dtype
            loaded = f" ({option(f'--dtype {dtype}', f'dtype=torch.{dtype}')})" if dtype else ""
            raise ActError(
                f"the {side} given has other weights ({found}) than the profile's, "
                f"{expected[side]}; give the models that were profiled, in the dtype they had then{loaded}"
            )


def require_comparable(ability: Ability, kept: Sequence[Ability]) -> None:
    """Raise :class:`ActError` unless all are of the same models and positions, on other texts than the first."""
    first = sides(ability)
    shown = {one.provenance.settings.moe_all_experts for each in (ability, *kept) for one in sides(each)}
    if len(shown) > 1:
        raise ActError(
            "some profiles measured every expert on every token (--moe-all-experts) and others those that were routed "
            "to it, which cannot be compared; profile all alike"
        )
    positions = {corpus.count for corpus in first[0].provenance.corpora}
    texts = corpora_of(first[0])
    for each, other in zip(kept, map(sides, kept), strict=True):
        if len(first) != len(other) or type(first[0]) is not type(other[0]):
            ranked, left = (f"({', '.join(corpus_names(one))})" for one in (ability, each))
            raise ActError(
                f"what is ranked {ranked} is {_made_as(ability)}, and what is to be kept {left} is {_made_as(each)}, "
                "which cannot be compared; measure both by the same command (act-profile pair, or attribute)"
            )
        for one, two in zip(first, other, strict=True):
            require_same_models(one, two)
        if texts == corpora_of(other[0]) and all(text[0] is not None for text in texts):
            raise ActError(
                f"a keep profile is of the ability's own text ({corpus_names(ability)[0]}), so nothing is left to "
                "rank; profile the ability to retain on another one"
            )
        if {corpus.count for corpus in other[0].provenance.corpora} != positions:
            raise ActError(
                f"a keep profile counts other positions than the ability's ({option('--count', 'count')}); their "
                "scores cannot be compared, "
                "profile both alike"
            )


def _require_two_models(donor: Profile, target: Profile) -> None:
    """Raise :class:`ActError` if both sides were measured of the same weights, which differ by rounding at the most."""
    one, two = (side.provenance.models.get("model") for side in (donor, target))
    if one and two and one.fingerprint == two.fingerprint:
        raise ActError(
            f"the profiles given as donor's and target's are of the same model, {two}, so nothing can move; give that "
            "of the model that has the ability first, then the target's"
        )


def _made_as(ability: Ability) -> str:
    """Of which kind an ability's profiles are, in words."""
    if isinstance(ability, tuple):
        return "two profiles, of donor and target"
    return _MADE_AS.get(type(ability), "a profile of one model")


_MADE_AS: dict[type[Profile], str] = {PairProfile: "a pair profile", AttributionProfile: "an attribution"}


def _on_space_of(donor: Profile, target: Profile) -> Statistics:
    """The target's statistics in the donor's channel space; LM heads that neither counted may differ in width.

    Sites that only the target has are left out if they were not read.
    """
    difference = donor.space.first_difference(target.space)
    if difference is None:
        return target
    if _has_more_unread(donor, target):
        arena = target.moments.arena
        return Statistics(torch.cat([arena[:, target.space.site(mine.name).channels] for mine in donor.space], dim=1))
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


def _has_more_unread(donor: Profile, target: Profile) -> bool:
    """Whether the target has the donor's sites, and others that were not read, such as those of a vision tower."""
    mine = {site.name: replace(site, offset=0) for site in donor.space}
    theirs = {site.name: replace(site, offset=0) for site in target.space}
    more = [target.count[target.space.site(name).channels] for name in theirs.keys() - mine.keys()]
    return mine.items() <= theirs.items() and not any(bool(count.any()) for count in more)


def _vocabularies_of(profile: Profile) -> list[str | None]:
    return [corpus.vocabulary for corpus in profile.provenance.corpora]


def _head_counted(profile: Profile) -> bool:
    return any(bool((profile.count[site.channels] > 0).any()) for site in profile.space if site.kind == "head")

"""From profiles of several abilities to one report: where abilities live, in numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from act.core.errors import ActError
from act.editing.transfer import transfer
from act.models.sites import Site
from act.profiles.attribution import AttributionProfile
from act.profiles.coverage import Measured as MeasuredShare
from act.profiles.defaults import MIN_EXPERT_TOKENS
from act.profiles.experts import FewTokens
from act.profiles.profile import PairProfile, require_same_models
from act.ranking.activations import corpora_of
from act.ranking.analysis import (
    Concentration,
    concentration,
    jaccard_matrix,
    necessity,
    overlap,
    overlaps,
    score_held,
    shares_by,
    top_channels,
)
from act.ranking.attributed import usual_score
from act.ranking.channel_set import ChannelSet
from act.ranking.normalize import Normalize
from act.ranking.rank import rank
from act.ranking.scores import ScoreName
from act.report.data import (
    ConcentrationRow,
    GroupShares,
    NecessityRow,
    OverlapRow,
    RecoveredRow,
    Relation,
    ReportData,
    overlap_row,
)

HELD_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
OVERLAP_SHARES = (0.01, 0.05, 0.1)
OUTSIDE = "outside"


@dataclass(frozen=True)
class Measured:
    """One profile with its scores and its top channels.

    Attributes:
        name: what the report calls the profile; differs between profiles of one ability.
        ability: the ability that was measured.
        score: the score of every channel, float64 ``[N]``, NaN where a channel has none.
        top: the channels with the highest scores.
    """

    name: str
    ability: str
    profile: PairProfile | AttributionProfile
    score: torch.Tensor
    top: ChannelSet


@dataclass(frozen=True)
class Report:
    """The figures of a report, and what its pictures are drawn from.

    Attributes:
        data: the figures as plain data.
        measured: the profiles that were compared.
        curves: the concentration of each profile, by name.
        matrix: names of profiles and sets, and the Jaccard overlap of every two of them.
    """

    data: ReportData
    measured: list[Measured]
    curves: dict[str, Concentration]
    matrix: tuple[list[str], list[list[float]]]


def measure(
    profiles: Sequence[PairProfile | AttributionProfile],
    abilities: Sequence[str] = (),
    *,
    score: ScoreName | None = None,
    normalize: Normalize = "none",
    top: float = 0.05,
    keep: Sequence[PairProfile | AttributionProfile] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
) -> list[Measured]:
    """Score every profile and take its top channels.

    Args:
        profiles: pair profiles of one architecture; or attribution profiles, of whose score what is above 0 counts; or
            both.
        abilities: the ability of each profile; two profiles of one ability show its stability. By default, the name of
            each profile's first corpus.
        score, normalize, keep, include, exclude, min_expert_tokens: as in :func:`act.rank`. Of a contrast with what is
            to be kept, what is above 0 counts. By default, each profile has its usual score; beside profiles of both
            kinds, what is kept is spared in those of its own kind.
        top: share of the channels that makes an ability's set.

    Raises:
        ActError: as :func:`act.rank`; more or fewer abilities than profiles; profiles of different architectures, or
            two of the same kind, models and text.
    """
    if abilities and len(abilities) != len(profiles):
        raise ActError(f"{len(abilities)} abilities were named for {len(profiles)} profiles; name one for each")
    several = len({isinstance(profile, AttributionProfile) for profile in profiles}) > 1
    texts: list[object] = []
    result: list[Measured] = []
    for number, profile in enumerate(profiles):
        if not isinstance(profile, (PairProfile, AttributionProfile)):
            raise ActError("a report compares donor and target; give pair profiles (act-profile pair)")
        if difference := profiles[0].space.first_difference(profile.space):
            raise ActError(f"the profiles are of different architectures: {difference}; give those of one architecture")
        corpora = corpora_of(profile)
        attributed = isinstance(profile, AttributionProfile)
        text = attributed, profile.provenance.models, corpora
        if text in texts and corpora and corpora[0][0] is not None:
            raise ActError(
                f"profiles {texts.index(text) + 1} and {number + 1} are of the same models and text, so comparing them "
                "says nothing; give each once"
            )
        texts.append(text)
        ability = (
            abilities[number] if abilities else next((one.name for one in profile.provenance.corpora), "unknown text")
        )
        by = score or usual_score(profile)
        kept = [one for one in keep if not several or isinstance(one, AttributionProfile) == attributed]
        ranked = rank(
            profile,
            by,
            1.0,
            keep=kept or None,
            normalize=normalize,
            include=include,
            exclude=exclude,
            min_expert_tokens=min_expert_tokens,
        )
        values = torch.full((len(profile.space),), torch.nan, dtype=torch.float64)
        by_sign = attributed or kept  # below 0, moving the channel would do harm
        values[ranked.index] = ranked.scores.clamp_min(0) if by_sign else ranked.scores
        best = top_channels(values, top)
        rule = replace(ranked.rule, top=top, not_positive=int((values[best] <= 0).sum()))  # of those alone
        chosen = ChannelSet(profile.space, best, values[best], rule)
        same = [one.top.rule.score for one in result if one.ability == ability]
        name = ability if not same or by == same[0] else f"{ability} ({by})"
        again = same.count(by)
        result.append(Measured(f"{name} {again + 1}" if again else name, ability, profile, values, chosen))
    return result


def build(
    measured: Sequence[Measured],
    *,
    top: float = 0.05,
    sets: Mapping[str, ChannelSet] | None = None,
    model: nn.Module | None = None,
    target: nn.Module | None = None,
    losses: Mapping[str, Callable[[nn.Module], float]] | None = None,
    seed: int = 0,
) -> Report:
    """Compute all figures of a report.

    Args:
        measured: from :func:`measure`.
        top: the share that :func:`measure` was given.
        sets: other channel sets by name, such as those with the largest weight difference, to compare with each
            ability's.
        model: for necessity: a model of the profiles, such as the donor, which has the abilities.
        losses: for necessity: what to measure ``model`` by, by name. The set of every profile is ablated, and a random
            set of the same size.
        target: for sufficiency as ability: what each set is moved to from ``model``, one by one, and a random set. It
            gets its own bytes back.
        seed: of the random set.

    Raises:
        ActError: sets of another architecture; two abilities that were never measured on the same models.
    """
    shares = sorted({*OVERLAP_SHARES, top})
    curves = {one.name: concentration(one.score) for one in measured}
    sets = dict(sets or {})
    names = [one.name for one in measured] + list(sets)
    index = [one.top.index for one in measured]
    for name, channels in sets.items():
        if difference := measured[0].top.space.first_difference(channels.space):
            raise ActError(f"the channel set {name} is of another architecture than the profiles: {difference}")
        index.append(channels.index)
    empty = next((name for name, one in zip(names, index, strict=True) if not len(one)), None)
    if empty is not None:
        raise ActError(f"the channel set {empty} is empty")
    matrix = jaccard_matrix(index)
    data: ReportData = {
        "score": ", ".join(dict.fromkeys(one.top.rule.score for one in measured)),
        "normalize": measured[0].top.rule.normalize,
        "top": top,
        "concentration": [_concentration(one, curves[one.name]) for one in measured],
        "overlaps": _overlaps(measured, shares) + _with_sets(measured, sets),
        "score_held": [
            {"profile": one.name, "share": share, "held": held}
            for one in measured
            for share, held in zip(HELD_SHARES, score_held(one.score, HELD_SHARES), strict=True)
        ],
        "necessity": _necessity(measured, model, losses or {}, seed) if model is not None else [],
        "recovered": _recovered(measured, model, target, losses or {}, seed) if model and target else [],
    }
    return Report(data, list(measured), curves, (names, matrix))


def place_of(site: Site) -> str:
    """The decoder layer of a site, as a phrase; ``outside`` for a site outside the stack."""
    return OUTSIDE if site.layer is None else f"layer {site.layer}"


def _concentration(one: Measured, curve: Concentration) -> ConcentrationRow:
    few = FewTokens.of(one.profile, one.top.rule.min_expert_tokens or 0)
    measured = MeasuredShare.of(one.profile)
    return {
        "profile": one.name,
        "ability": one.ability,
        "score": one.top.rule.score,
        "channels": int((~one.score.isnan()).sum()),
        "unmeasured": one.top.rule.unmeasured,
        "coverage": None if measured is None else measured.share,
        "coverage_by_kind": {} if measured is None else measured.kinds,
        "uncovered_values": {} if measured is None else measured.uncovered,
        "uncovered_reasons": {} if measured is None else measured.reasons,
        "unreached_values": {} if measured is None else measured.unreached,
        "experts": None if few is None else {**few.to_json(), "sentence": str(few)},
        "gini": curve.gini,
        "above_tenth": curve.above_tenth,
        "kinds": _shares(one, lambda site: site.kind),
        "layers": _shares(one, place_of),
    }


def _shares(one: Measured, group_of: Callable[[Site], str]) -> dict[str, GroupShares]:
    """What each group of sites holds."""
    chosen: Counter[str] = Counter()
    for site, rows in one.top.space.split(one.top.index):
        chosen[group_of(site)] += len(rows)
    return {
        group: {"channels": held["channels"], "score": held["score"], "chosen": chosen[group] / len(one.top)}
        for group, held in shares_by(one.score, one.top.space, group_of).items()
    }


def _overlaps(measured: Sequence[Measured], shares: Sequence[float]) -> list[OverlapRow]:
    """Stability between profiles of one ability, whichever their models (such as other seeds), and disentanglement
    between abilities, measured on the same models only. By two scores, only what is of one ability is compared."""
    pairs: dict[tuple[str, str], Relation] = {}
    apart: dict[frozenset[str], tuple[Measured, Measured]] = {}
    for one, other in itertools.combinations(measured, 2):
        if one.top.rule.score != other.top.rule.score:
            require_same_models(one.profile, other.profile)
            if one.ability == other.ability or _texts(one) == _texts(other):
                pairs[one.name, other.name] = "scores"
        elif one.ability == other.ability:
            pairs[one.name, other.name] = "stability"
        elif _models(one) == _models(other):
            pairs[one.name, other.name] = "disentanglement"
        else:
            apart[frozenset((one.ability, other.ability))] = one, other
    abilities = {one.name: one.ability for one in measured}
    for names in pairs:
        apart.pop(frozenset(abilities[name] for name in names), None)
    for first, second in apart.values():
        require_same_models(first.profile, second.profile)  # raises: says which models differ
    found = {pair: list[OverlapRow]() for pair in pairs}
    for share, a, b, each in overlaps({one.name: one.score for one in measured}, shares, pairs):
        found[a, b].append(overlap_row(pairs[a, b], share, a, b, each))
    return [row for rows in found.values() for row in rows]


def _texts(one: Measured) -> list[str | None]:
    """The fingerprints of the texts of a profile."""
    return [corpus.fingerprint for corpus in one.profile.provenance.corpora]


def _models(one: Measured) -> dict[str, str]:
    """The fingerprints of the models of a profile."""
    return {side: model.fingerprint for side, model in one.profile.provenance.models.items()}


def _with_sets(measured: Sequence[Measured], sets: Mapping[str, ChannelSet]) -> list[OverlapRow]:
    """Each other set against as many top channels of each profile."""
    rows: list[OverlapRow] = []
    for one in measured:
        for name, channels in sets.items():
            population = int((~one.score.isnan()).sum())
            top = top_channels(one.score, len(channels) / population) if len(channels) < population else one.top.index
            found = overlap(top, channels.index, max(population, len(channels)))
            rows.append(overlap_row("set", found.one / population, one.name, name, found))
    return rows


def _necessity(
    measured: Sequence[Measured], model: nn.Module, losses: Mapping[str, Callable[[nn.Module], float]], seed: int
) -> list[NecessityRow]:
    """The losses with each set ablated; the last row of each loss is a random set, the control."""
    first = next((one for one in measured if isinstance(one.profile, PairProfile)), None)
    if not losses:
        return []
    if first is None:
        raise ActError(
            "what is ablated gets its mean activation, which attribution profiles do not hold; leave out --corpus, or "
            "give pair profiles"
        )
    random = _random(first, seed)
    rows: list[NecessityRow] = []
    for name, loss in losses.items():
        means = [one.profile if isinstance(one.profile, PairProfile) else first.profile for one in measured]
        by_profile = [
            necessity(model, {one.name: one.top}, of, loss) for one, of in zip(measured, means, strict=True)
        ] + [necessity(model, {"random": random}, first.profile, loss)]
        for found in by_profile:
            whole = found.pop("whole")
            ((ablated, value),) = found.items()
            channels = len(random) if ablated == "random" else len(first.top)
            rows.append({"ablated": ablated, "channels": channels, "text": name, "whole": whole, "loss": value})
    return rows


def _recovered(
    measured: Sequence[Measured],
    donor: nn.Module,
    target: nn.Module,
    losses: Mapping[str, Callable[[nn.Module], float]],
    seed: int,
) -> list[RecoveredRow]:
    """The losses with each set moved; the last row of each loss is a random set, the control."""
    sets = [*((one.name, one.top) for one in measured), ("random", _random(measured[0], seed))]
    without = {name: (loss(target), loss(donor)) for name, loss in losses.items()}
    rows: list[RecoveredRow] = []
    for moved, channels in sets:
        patch = transfer(donor, target, channels, 1.0)
        try:
            after = {name: loss(target) for name, loss in losses.items()}
        finally:
            patch.revert(target)
        for name, (before, theirs) in without.items():
            lacked = before - theirs
            share = (before - after[name]) / lacked if lacked > 0 else None
            rows.append(
                {"moved": moved, "channels": len(channels), "text": name, "target": before, "donor": theirs,
                 "loss": after[name], "share": share}
            )  # fmt: skip
    return rows


def _random(one: Measured, seed: int) -> ChannelSet:
    """As many channels at random as a set has."""
    rule = one.top.rule
    return rank(one.profile, "random", count=len(one.top), seed=seed, include=rule.include, exclude=rule.exclude)

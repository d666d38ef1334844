"""From profiles of several abilities to one report: what the questions about where they live come to in numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from act.core.errors import ActError
from act.models.channels import Site
from act.profiles.profile import PairProfile, require_same_models
from act.ranking.activations import corpora_of
from act.ranking.analysis import (
    Concentration,
    concentration,
    necessity,
    overlap,
    overlaps,
    shares_by,
    sufficiency,
    top_channels,
)
from act.ranking.channel_set import ChannelSet
from act.ranking.normalize import Normalize
from act.ranking.rank import rank
from act.ranking.scores import ScoreName

SUFFICIENCY_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
OVERLAP_SHARES = (0.01, 0.05, 0.1)


@dataclass(frozen=True)
class Measured:
    """One profile with the score that the report is about, and its top channels."""

    name: str
    ability: str
    profile: PairProfile
    score: torch.Tensor
    top: ChannelSet


@dataclass(frozen=True)
class Report:
    """Plain data (``data``), and what pictures are drawn from."""

    data: dict[str, Any]
    measured: list[Measured]
    curves: dict[str, Concentration]
    matrix: tuple[list[str], list[list[float]]]
    """Names, and the Jaccard overlap of the top sets of each two."""


def measure(
    profiles: Sequence[PairProfile],
    abilities: Sequence[str] = (),
    *,
    score: ScoreName = "paired",
    normalize: Normalize = "none",
    top: float = 0.05,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> list[Measured]:
    """Score every profile; ``abilities`` names what each is of (two of one name: its stability), else its text does.

    Raises:
        ActError: as :func:`act.rank`; more or fewer abilities than profiles; profiles of different architectures, or
            two of the same models and text.
    """
    if abilities and len(abilities) != len(profiles):
        raise ActError(f"{len(abilities)} abilities were named for {len(profiles)} profiles; name one for each")
    texts: list[tuple[Any, Any]] = []
    result: list[Measured] = []
    for number, profile in enumerate(profiles):
        if not isinstance(profile, PairProfile):
            raise ActError("a report compares donor and target; give pair profiles (act-profile pair)")
        if difference := profiles[0].space.first_difference(profile.space):
            raise ActError(f"the profiles are of different architectures: {difference}")
        corpora = corpora_of(profile)
        text = profile.provenance.models, corpora
        if text in texts and corpora[0][0] is not None:
            raise ActError(
                f"profiles {texts.index(text) + 1} and {number + 1} are of the same models and text, so comparing them "
                "says nothing; give each once"
            )
        texts.append(text)
        ability = abilities[number] if abilities else profile.provenance.corpora[0].name
        ranked = rank(profile, score, 1.0, normalize=normalize, include=include, exclude=exclude)
        values = torch.full((len(profile.space),), torch.nan, dtype=torch.float64)
        values[ranked.index] = ranked.scores
        best = top_channels(values, top)
        chosen = ChannelSet(profile.space, best, values[best], replace(ranked.rule, top=top))
        same = sum(one.ability == ability for one in result)
        result.append(Measured(f"{ability} {same + 1}" if same else ability, ability, profile, values, chosen))
    return result


def build(
    measured: Sequence[Measured],
    *,
    top: float = 0.05,
    sets: Mapping[str, ChannelSet] | None = None,
    model: nn.Module | None = None,
    losses: Mapping[str, Callable[[nn.Module], float]] | None = None,
    seed: int = 0,
) -> Report:
    """The report.

    Args:
        measured: from :func:`measure`.
        top: share of the channels that counts as an ability's set, where one is needed.
        sets: other channel sets by name, such as those of a weight difference, to compare with each ability's.
        model, losses: for necessity: a model of the profiles (the donor has the abilities) and losses by name; each
            set is ablated, and a random one of its size.

    Raises:
        ActError: sets of another architecture; profiles of different abilities of which no two are of the same models.
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
    population = int((~measured[0].score.isnan()).sum())
    matrix = [[overlap(one, other, max(population, len(one), len(other))).jaccard for other in index] for one in index]
    data = {
        "score": measured[0].top.rule.score,
        "normalize": measured[0].top.rule.normalize,
        "top": top,
        "concentration": [_concentration(one, curves[one.name]) for one in measured],
        "overlaps": _overlaps(measured, shares) + _with_sets(measured, sets),
        "sufficiency": [
            {"profile": one.name, "share": share, "held": held}
            for one in measured
            for share, held in zip(SUFFICIENCY_SHARES, sufficiency(one.score, SUFFICIENCY_SHARES), strict=True)
        ],
        "necessity": _necessity(measured, model, losses or {}, seed) if model is not None else [],
    }
    return Report(data, list(measured), curves, (names, matrix))


def place_of(site: Site) -> str:
    """The layer of a site, or that it lies outside the stack."""
    return "outside" if site.layer is None else f"layer {site.layer}"


def _concentration(one: Measured, curve: Concentration) -> dict[str, Any]:
    space = one.top.space
    groups = {"kinds": lambda site: site.kind, "layers": place_of}
    shares = {name: shares_by(one.score, space, key) for name, key in groups.items()}
    for name, key in groups.items():
        for site, rows in space.split(one.top.index):
            cell = shares[name][key(site)]
            cell["chosen"] = cell.get("chosen", 0) + len(rows) / len(one.top)
        for cell in shares[name].values():
            cell.setdefault("chosen", 0.0)
    return {
        "profile": one.name,
        "ability": one.ability,
        "channels": int((~one.score.isnan()).sum()),
        "unmeasured": one.top.rule.unmeasured,
        "gini": curve.gini,
        "above_tenth": curve.above_tenth,
        **shares,
    }


def _overlaps(measured: Sequence[Measured], shares: Sequence[float]) -> list[dict[str, Any]]:
    """Stability within abilities (whatever their models: other seeds), disentanglement between them (same models)."""
    rows, compared = [], set()
    for one, other in itertools.combinations(measured, 2):
        if one.ability != other.ability:
            try:
                require_same_models(one.profile, other.profile)
            except ActError:
                continue
            compared.add(frozenset((one.ability, other.ability)))
        relation = "stability" if one.ability == other.ability else "disentanglement"
        pair = {one.name: one.score, other.name: other.score}
        rows += [
            {"relation": relation, "share": share, "first": a, "second": b, **_renamed(found)}
            for share, a, b, found in overlaps(pair, shares)
        ]
    for one, other in itertools.combinations(measured, 2):
        if one.ability != other.ability and frozenset((one.ability, other.ability)) not in compared:
            require_same_models(one.profile, other.profile)  # says which models were mixed
    return rows


def _with_sets(measured: Sequence[Measured], sets: Mapping[str, ChannelSet]) -> list[dict[str, Any]]:
    rows = []
    for one in measured:
        for name, channels in sets.items():
            if not len(channels):
                raise ActError(f"the channel set {name} is empty")
            population = int((~one.score.isnan()).sum())
            top = top_channels(one.score, len(channels) / population) if len(channels) < population else one.top.index
            found = overlap(top, channels.index, max(population, len(channels)))
            rows.append(
                {"relation": "set", "share": found.one / population, "first": one.name, "second": name}
                | _renamed(found)
            )
    return rows


def _necessity(
    measured: Sequence[Measured], model: nn.Module, losses: Mapping[str, Callable[[nn.Module], float]], seed: int
) -> list[dict[str, Any]]:
    first = measured[0]
    random = rank(first.profile, "random", count=len(first.top), seed=seed, include=first.top.rule.include,
                  exclude=first.top.rule.exclude)  # fmt: skip
    rows = []
    for name, loss in losses.items():
        by_profile = [necessity(model, {one.name: one.top}, one.profile, loss) for one in measured] + [
            necessity(model, {"random": random}, first.profile, loss)
        ]
        for found in by_profile:
            whole = found.pop("whole")
            ((ablated, value),) = found.items()
            channels = len(random) if ablated == "random" else len(first.top)
            rows.append({"ablated": ablated, "channels": channels, "text": name, "whole": whole, "loss": value})
    return rows


def _renamed(found: Any) -> dict[str, Any]:
    fields = asdict(found)
    return {"first_size": fields.pop("one"), "second_size": fields.pop("other"), **fields}

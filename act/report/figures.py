"""The pictures of channels: where they lie, how much they hold, what they share; and what each says in words."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from act.editing.patch import Patch
from act.models.kinds import kind_of_parameter
from act.profiles.experts import ExpertTokens
from act.profiles.statistics import PairStatistics
from act.ranking.analysis import curve, jaccard_matrix, overlap
from act.ranking.channel_set import ChannelSet
from act.report import charts
from act.report.build import Measured, Report
from act.report.charts import Chart, Column, amount, names, rounded, slug, tips
from act.report.data import NecessityRow, OverlapRow, RecoveredRow, Relation, overlap_row
from act.report.grid import AFTER, BEFORE, Grid

EXPERT_CELLS = 60_000
"""The most cells of experts that a page holds, over all abilities."""
PAIRS = 24
"""The most overlaps that are shown one by one."""
MATRIX = 20
"""Sets of which a matrix shows every name."""
KINDS = ("embed", "position", "q", "k", "v", "qkv", "o", "router", "gate", "up", "gate_up", "down", "norm", "head")
"""The order of module kinds where no model shows it."""
RELATIONS: Mapping[Relation, str] = {
    "stability": "two profiles of one ability",
    "scores": "one ability by two scores",
    "disentanglement": "two abilities",
    "set": "with another channel set",
}


def of_places(grid: Grid, name: str, channels: ChannelSet, score: Any = None) -> Iterator[Chart]:
    """Where a set of channels lies: layer by module kind, and by kind alone."""
    chosen, widths = grid.chosen(channels.index), grid.widths
    counts, totals = grid.cells(chosen), grid.cells(widths)
    held = None if score is None else grid.by_site(score)
    mass = None if held is None else grid.cells(held) / max(float(held.sum()), 1e-300)
    cells = [(row, column) for row, column in itertools.product(range(len(grid.kinds)), range(len(grid.places)))
             if totals[row, column]]  # fmt: skip
    columns: dict[str, list[Any]] = {
        "kind": [grid.kinds[row] for row, _ in cells],
        "place": [grid.places[column] for _, column in cells],
        "share": [rounded(100 * counts[cell] / totals[cell]) for cell in cells],
        "chosen": [int(counts[cell]) for cell in cells],
        "channels": [int(totals[cell]) for cell in cells],
    }
    heads = {"kind": "module kind", "place": "layer", "share": "chosen, %", "chosen": "chosen", "channels": "channels"}
    if mass is not None:
        columns["held"] = [rounded(100 * mass[cell]) for cell in cells]
        heads["held"] = "share of the score, %"
    best = max(range(len(cells)), key=lambda n: columns["share"][n])
    yield Chart(
        f"map-{slug(name)}",
        f"Where the channels of {name} lie",
        f"Share of the channels chosen for {name}, by layer and module kind. Highest: {columns['share'][best]:.3g} % "
        f"of {columns['kind'][best]} in {place_name(columns['place'][best])}.",
        columns,
        charts.heat_map(
            names("place", grid.places, "layer", axis={"labelAngle": 0}), names("kind", grid.kinds),
            amount("share", "chosen, %"), tips(**heads), len(cells),
        ),
        heads,
        "Click a cell for its channels, or choose its Kind and Layer above their table. in: embeddings; out: final "
        "norm and LM head.",
        name,
    )  # fmt: skip
    by_kind, all_kinds = counts.sum(1), totals.sum(1)
    columns = {
        "kind": grid.kinds,
        "share": [rounded(100 * one / max(1, len(channels))) for one in by_kind],
        "all": [rounded(100 * one / totals.sum()) for one in all_kinds],
        "chosen": [int(one) for one in by_kind],
        "channels": [int(one) for one in all_kinds],
    }
    heads = {"kind": "module kind", "share": "of the chosen, %", "all": "of all channels, %", "chosen": "chosen",
             "channels": "channels"}  # fmt: skip
    most = int(np.argmax(by_kind))
    yield Chart(
        f"kinds-{slug(name)}",
        f"Which module kinds give the channels of {name}",
        f"Share of each module kind among the channels chosen for {name}; most, {columns['share'][most]:.3g} %, are "
        f"{grid.kinds[most]}, which has {columns['all'][most]:.3g} % of all channels.",
        columns,
        {"width": "container", "height": {"step": 22}, "encoding": {"y": names("kind", grid.kinds)}, "layer": [
            {"mark": "bar", "encoding": {"x": amount("share", "of the chosen channels, %"), "tooltip": tips(**heads)}},
            {"mark": {"type": "tick", "thickness": 3},
             "encoding": {"x": amount("all", None), "tooltip": tips(**heads)}},
        ]},
        heads,
        "The mark on each bar is the kind's share of all channels: what a random choice would give.",
        name,
    )  # fmt: skip


def of_patch(name: str, patch: Patch) -> Iterator[Chart]:
    """Where a patch changes values: layer by module kind, by the names of the parameters."""
    values: dict[tuple[str, str], int] = {}
    for change in patch.changes:
        cell = _cell_of(change.parameter.key)
        values[cell] = values.get(cell, 0) + change.before.numel()
    if not values:
        return
    rank = {kind: number for number, kind in enumerate(KINDS)}
    kinds = sorted({kind for kind, _ in values}, key=lambda kind: (rank.get(kind, len(rank)), kind))
    order = {BEFORE: -1, AFTER: math.inf}
    places = sorted({place for _, place in values}, key=lambda place: order.get(place) or int(place))
    columns: dict[str, list[Any]] = {
        "kind": [kind for kind, _ in values],
        "place": [place for _, place in values],
        "values": list(values.values()),
        "share": [rounded(100 * count / len(patch)) for count in values.values()],
    }
    (kind, place), most = max(values.items(), key=lambda one: one[1])
    heads = {"kind": "module kind", "place": "layer", "values": "values changed", "share": "of the patch, %"}
    yield Chart(
        f"patch-{slug(name)}",
        f"Where {name} changes values",
        f"Values changed by {name}, by layer and module kind. Most, {most:,}, are of {kind} in "
        f"{place_name(place)}.",
        columns,
        charts.heat_map(
            names("place", places, "layer", axis={"labelAngle": 0}), names("kind", kinds),
            amount("values", "values changed", legend={"gradientLength": 180, "format": "~s"}), tips(**heads),
            len(values), digits=".2~s",
        ),
        heads,
        "in: embeddings; out: final norm and LM head.",
    )  # fmt: skip


def _cell_of(parameter: str) -> tuple[str, str]:
    """Module kind and layer of a parameter, by its name alone."""
    kind, layer = kind_of_parameter(parameter), re.search(r"\.(\d+)\.", parameter)
    return kind, layer[1] if layer else BEFORE if kind in ("embed", "position") else AFTER


def of_experts(grid: Grid, measured: Sequence[Measured]) -> Iterator[Chart]:
    """How many channels of each expert were chosen, and how many tokens it saw."""
    experts = grid.experts()
    if not experts:
        return
    for one in measured[: max(1, EXPERT_CELLS // len(experts))]:
        chosen, widths = grid.chosen(one.top.index), grid.widths
        seen = _tokens(one)
        columns: dict[str, list[Any]] = {
            key: [] for key in ("place", "expert", "share", "chosen", "channels", "tokens")
        }
        for name, sites in experts.items():
            place, _, expert = name.partition(" · ")
            count, width = int(chosen[sites].sum()), int(widths[sites].sum())
            row = (place, expert, rounded(100 * count / width), count, width, seen.get(grid.space.sites[sites[0]].name))
            for key, value in zip(columns, row, strict=True):
                columns[key].append(value)
        heads = {"place": "layer", "expert": "expert", "share": "chosen, %", "chosen": "chosen", "channels": "channels",
                 "tokens": "tokens seen"}  # fmt: skip
        best = max(range(len(experts)), key=lambda n: columns["share"][n])
        order = sorted(dict.fromkeys(columns["expert"]), key=int)
        places = [place for place in grid.places if place in set(columns["place"])]
        yield Chart(
            f"experts-{slug(one.name)}",
            f"Which experts the channels of {one.name} belong to",
            f"Share of the channels of each expert chosen for {one.name}; highest {columns['share'][best]:.3g} % of "
            f"expert {columns['expert'][best]} in {place_name(columns['place'][best])}.",
            columns,
            charts.heat_map(
                names("place", places, "layer", axis={"labelAngle": 0}), names("expert", order, "expert"),
                amount("share", "chosen, %"), tips(**heads), len(experts), max(4, min(22, 640 // len(order))),
            ),
            heads,
            "Click a cell for its channels, or choose its Layer above their table and search for experts[number].",
            one.name,
        )  # fmt: skip


def _tokens(one: Measured) -> dict[str, int]:
    """The counted tokens that the sites of experts saw, in both models of a pair."""
    profile = one.profile
    if not profile.of_tokens or not isinstance(profile, PairStatistics):
        return {}
    found = ExpertTokens.of(profile.space, [profile.difference], [profile.donor, profile.target], profile.left_out)
    return {site.name: tokens for site, tokens in zip(found.sites, found.tokens.tolist(), strict=True)}


def of_concentration(report: Report) -> Iterator[Chart]:
    """How few channels hold the score, and how it falls off."""
    columns: dict[str, list[Any]] = {key: [] for key in ("profile", "share", "held", "score")}
    for one in report.measured:
        found = curve(one.score)
        columns["profile"] += [one.name] * len(found.shares)
        columns["share"] += [rounded(100 * share) for share in found.shares]
        columns["held"] += [rounded(100 * held) for held in found.held]
        columns["score"] += [rounded(score) for score in found.scores]
    order = [one.name for one in report.measured]
    first = report.data["concentration"][:12]
    gini = ", ".join(f"{row['profile']} {row['gini']:.2f}" for row in first)
    tenth = ", ".join(f"{row['profile']} {row['above_tenth']:.1%}" for row in first)
    seen = tips(profile="ability", share="channels, %", held="of the score, %", score="lowest score among them")
    heads = {"profile": "ability", "share": "channels, %", "held": "of the score, %", "score": "lowest score"}
    yield Chart(
        "concentration",
        "How much of the score the top channels hold",
        f"Share of the score against the share of the channels, best first. Gini coefficients: {gini}.",
        columns,
        charts.curves(
            charts.logarithmic("channels, best first, %", "share"),
            amount("held", "of the score, %", scale={"domain": [0, 100]}), order, seen,
        ),
        heads,
        "This is a share of the score, not of the ability: what moving or removing channels does is measured by "
        f"evaluation. Gini coefficient (0: all channels score alike; 1: one has it all): {gini}.",
    )  # fmt: skip
    positive = {key: [value for value, score in zip(column, columns["score"], strict=True) if score > 0]
                for key, column in columns.items()}  # fmt: skip
    yield Chart(
        "scores",
        "How the score falls off",
        f"The score of the channels, best first ({report.data['score']}), both axes in logarithms.",
        positive,
        charts.curves(
            charts.logarithmic("channels, best first, %", "share"),
            amount("score", "score", scale={"type": "log"}, axis={"format": "~g", "tickCount": 6}),
            order, seen,
        ),
        heads,
        f"Channels whose score is above a tenth of the largest: {tenth}.",
    )  # fmt: skip


def of_overlaps(rows: Sequence[OverlapRow], matrix: tuple[Sequence[str], Sequence[Sequence[float]]]) -> Iterator[Chart]:
    """Every two sets: how much they share, and how much of that is chance."""
    called, values = matrix
    if len(called) > 1:
        pairs = [*itertools.product(range(len(called)), repeat=2)]
        columns: dict[str, list[Any]] = {
            "first": [called[row] for row, _ in pairs],
            "second": [called[column] for _, column in pairs],
            "jaccard": [rounded(100 * values[row][column]) for row, column in pairs],
        }
        apart = [(values[row][column], called[row], called[column]) for row, column in pairs if row < column]
        most = max(apart)
        heads = {"first": "set", "second": "other", "jaccard": "overlap, %"}
        yield Chart(
            "overlap",
            "How much the sets share",
            f"Jaccard overlap of every two of {len(called)} sets; the largest is {100 * most[0]:.3g} %, of {most[1]} "
            f"and {most[2]}.",
            columns,
            charts.heat_map(
                names("second", called, axis={
                    "labelAngle": -35, "labelLimit": 120, "labelOverlap": "greedy" if len(called) > MATRIX else False,
                }), names("first", called),
                amount("jaccard", "overlap, %", scale={"domain": [0, 100]}), tips(**heads), len(pairs), 24,
            ),
            heads,
            "Jaccard overlap: channels in both sets, over channels in either.",
        )  # fmt: skip
    shown = rows if len(rows) <= PAIRS else sorted(rows, key=lambda one: -one["jaccard"])[:PAIRS]
    if shown:
        pair = [f"{one['first']} · {one['second']} ({100 * one['share']:.3g} %)" for one in shown]
        columns = {
            "pair": pair,
            "value": [rounded(100 * one["jaccard"]) for one in shown],
            "low": [rounded(100 * one["jaccard_low"]) for one in shown],
            "high": [rounded(100 * one["jaccard_high"]) for one in shown],
            "chance": [rounded(100 * one["chance"]) for one in shown],
            "relation": [one["relation"] for one in shown],
            "p": [rounded(one["p_value"]) for one in shown],
        }
        heads = {"pair": "sets", "relation": "relation", "value": "overlap, %", "low": "from", "high": "to",
                 "chance": "by chance", "p": "p"}  # fmt: skip
        kinds = list(dict.fromkeys(columns["relation"]))
        spec = charts.intervals(
            "value",
            "overlap, %",
            pair,
            tips(**heads),
            y="pair",
            kind="relation",
            kinds=kinds,
        )
        spec["layer"].append(
            {
                "mark": {"type": "tick", "thickness": 2, "size": 16},
                "encoding": {
                    "x": amount("chance", None),
                    "y": names("pair", pair),
                    "tooltip": tips(pair="sets", chance="by chance, %"),
                },
            }
        )
        yield Chart(
            "overlap-chance",
            "Overlap against chance" + (f", the {PAIRS} largest" if len(rows) > PAIRS else ""),
            "Overlap of two sets, with its 95 % interval, against that of random sets: "
            + "; ".join(f"{name} {value:.3g} % (chance {chance:.3g} %)" for name, value, chance in
                        zip(pair[:6], columns["value"], columns["chance"], strict=False)) + ".",
            columns, spec, heads,
            "The upright mark is what random sets of the same size share"
            + "".join(f"; {one}: {RELATIONS[one]}" for one in kinds if kinds != ["set"]) + ".",
        )  # fmt: skip


def of_sets(moved: Mapping[str, ChannelSet]) -> tuple[list[OverlapRow], tuple[list[str], list[list[float]]]]:
    """The overlaps of sets that were moved, as rows and as a matrix."""
    called = [name for name, one in moved.items() if len(one)]
    index = [moved[name].index for name in called]
    population = max((len(one.space) for one in moved.values()), default=0)
    matrix = jaccard_matrix(index)
    rows = [
        overlap_row("set", len(moved[one]) / population, one, other,
                    overlap(moved[one].index, moved[other].index, population))
        for one, other in itertools.combinations(called, 2)
    ]  # fmt: skip
    return rows, (called, matrix)


def of_necessity(rows: Sequence[NecessityRow]) -> Iterator[Chart]:
    """What is left of the donor's ability without each set."""
    if not rows:
        return
    columns: dict[str, Column] = {
        "ablated": [one["ablated"] for one in rows],
        "text": [one["text"] for one in rows],
        "left": [rounded(float(100 * np.exp(np.minimum(0.0, one["whole"] - one["loss"])))) for one in rows],
        "channels": [one["channels"] for one in rows],
    }
    heads = {"ablated": "without the channels of", "text": "text", "left": "ability left, %", "channels": "channels"}
    yield Chart(
        "necessity",
        "What is left of the donor's ability without each set",
        "Likelihood of a right token in the donor with the channels of a set held at their mean, as a share of the "
        "whole donor's: " + "; ".join(f"{one} on {text} {left:.3g} %" for one, text, left in
                                zip(columns["ablated"][:8], columns["text"], columns["left"], strict=False)) + ".",
        columns,
        _bars("ablated", "of the likelihood of a right token left, %", "left", columns, heads),
        heads,
        "Necessity as ability: the less is left, the more the ability needs these channels; random is the control.",
    )  # fmt: skip


def of_recovered(rows: Sequence[RecoveredRow]) -> Iterator[Chart]:
    """What moving each set alone brings back."""
    some = [one for one in rows if one["share"] is not None]
    if not some:
        return
    columns: dict[str, Column] = {
        "moved": [one["moved"] for one in some],
        "text": [one["text"] for one in some],
        "share": [rounded(100 * (one["share"] or 0.0)) for one in some],
        "channels": [one["channels"] for one in some],
    }
    heads = {"moved": "channels of", "text": "text", "share": "ability recovered, %", "channels": "channels"}
    yield Chart(
        "recovered",
        "What moving each set alone brings back",
        "Share of what the target lacked of the donor's likelihood that comes back once the channels of a set are the "
        "donor's: " + "; ".join(f"{one} on {text} {share:.3g} %" for one, text, share in
                                zip(columns["moved"][:8], columns["text"], columns["share"], strict=False)) + ".",
        columns,
        _bars("moved", "of what the target lacked, %", "share", columns, heads),
        heads,
        "Sufficiency as ability: these channels alone are moved, at strength 1; random is the control.",
    )  # fmt: skip


def _bars(y: str, title: str, x: str, columns: Mapping[str, Sequence[Any]], heads: Mapping[str, str]) -> dict[str, Any]:
    """Bars by name and text."""
    texts = list(dict.fromkeys(columns["text"]))
    told = names("text", texts, **({"legend": None} if len(texts) < 2 else {}))
    return {"width": "container", "height": {"step": 22}, "mark": "bar", "encoding": {
        "y": names(y, list(dict.fromkeys(columns[y]))), "yOffset": names("text"), "x": amount(x, title), "color": told,
        "tooltip": tips(**heads),
    }}  # fmt: skip


def place_name(place: str) -> str:
    """A column of the map as a phrase."""
    return {"in": "the input", "out": "the output"}.get(place, f"layer {place}")

"""The channels that a report names one by one: the best of each ability, and of each cell of the map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from act.ranking.channel_set import ChannelSet
from act.report.build import Measured
from act.report.grid import Grid, best_of_each, distinct

ROWS = 24_000
"""How many channels a report names, whatever the model's size."""
PER_ABILITY, PER_CELL = 2_000, 10
"""The most that it names of one ability, and of one cell of its map."""


def channel_rows(grid: Grid, measured: Sequence[Measured], moved: Mapping[str, ChannelSet]) -> dict[str, Any]:
    """The rows of the table of channels as plain columns.

    Returns:
        ``abilities`` (names), ``sites`` (``[name, kind, place]`` of those that occur), ``total`` (channels that have a
        score, by ability), and the columns ``ability``, ``site``, ``row``, ``score``, ``top`` and ``moved`` (0 or 1).
    """
    everything = distinct(one.index for one in moved.values()) if moved else torch.empty(0, dtype=torch.int64)
    lists = [(one.name, one.score, one.top.index) for one in measured]
    lists = lists or [(name, _spread(one, grid), one.index) for name, one in moved.items()]
    cells = max(1, len(grid.kinds) * len(grid.places))
    each = ROWS // max(1, len(lists))
    columns: dict[str, list[Any]] = {name: [] for name in ("ability", "site", "row", "score", "top", "moved")}
    total = []
    for number, (_, score, top) in enumerate(lists):
        scored = (~score.isnan()).nonzero().flatten()
        total.append(len(scored))
        order = scored[score[scored].argsort(descending=True)]
        sites = grid.site_of(order)
        cell = grid.kind[sites] * len(grid.places) + grid.place[sites]
        per_cell = min(PER_CELL, each // 2 // cells)
        chosen = distinct([order[: min(PER_ABILITY, each // 2)], best_of_each(order, cell, per_cell)])
        chosen = chosen[score[chosen].argsort(descending=True)]
        where = grid.site_of(chosen)
        columns["ability"] += [number] * len(chosen)
        columns["site"] += where.tolist()
        columns["row"] += (chosen.numpy() - grid.offsets[where]).tolist()
        columns["score"] += [float(f"{value:.4g}") for value in score[chosen].tolist()]
        columns["top"] += torch.isin(chosen, top).int().tolist()
        columns["moved"] += torch.isin(chosen, everything).int().tolist()
    used = {site: number for number, site in enumerate(dict.fromkeys(columns["site"]))}
    columns["site"] = [used[site] for site in columns["site"]]
    known = [grid.space.sites[site] for site in used]
    described = [[one.name, one.kind, grid.places[grid.place[site]]] for site, one in zip(used, known, strict=True)]
    return {
        "abilities": [name for name, *_ in lists],
        "sites": described,
        "kinds": grid.kinds,
        "places": grid.places,
        "total": total,
        **columns,
    }


def _spread(channels: ChannelSet, grid: Grid) -> torch.Tensor:
    """The scores of a set as those of all channels; NaN where it has none."""
    values = torch.full((len(grid.space),), torch.nan, dtype=torch.float64)
    values[channels.index] = channels.scores.double().nan_to_num(0.0)
    return values

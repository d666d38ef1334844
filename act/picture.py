"""Pictures of where an ability lives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from act.channel_set import ChannelSet
from act.files import written_whole


def share_by_layer(channels: ChannelSet) -> tuple[list[str], list[str], np.ndarray]:
    """Row names (layers), column names (module kinds), and the chosen share of each ``[rows, columns]``.

    Sites outside the decoder stack come first (embeddings) or last (final norm, LM head). NaN marks a pair
    that does not exist; a module kind that a layer has several times, such as its norms, is one cell.
    """
    chosen = {site.name: len(rows) for site, rows in channels.space.split(channels.index)}
    first_layer = min((site.offset for site in channels.space if site.layer is not None), default=0)
    place = {
        site.name: f"layer {site.layer}"
        if site.layer is not None
        else "input"
        if site.offset < first_layer
        else "output"
        for site in channels.space
    }
    rows = sorted(dict.fromkeys(place.values()), key=lambda name: (name == "output", name != "input", _number(name)))
    columns = list(dict.fromkeys(site.kind for site in channels.space))
    counts, widths = np.zeros((2, len(rows), len(columns)))
    for site in channels.space:
        cell = rows.index(place[site.name]), columns.index(site.kind)
        counts[cell] += chosen.get(site.name, 0)
        widths[cell] += site.width
    return rows, columns, np.divide(counts, widths, out=np.full(counts.shape, np.nan), where=widths > 0)


def draw_channel_map(channels: ChannelSet, path: Path, title: str, *, force: bool = False) -> None:
    """Save a layer x module map of the chosen share as PNG; raises ActError if ``path`` exists and force is False."""
    from matplotlib.figure import Figure

    rows, columns, share = share_by_layer(channels)
    figure = Figure(figsize=(1.6 + 0.75 * len(columns), 1.5 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(100 * share, cmap="magma_r", vmin=0, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    middle = 50 * np.nanmax(share)
    if len(rows) * len(columns) <= 400:
        for (row, column), value in np.ndenumerate(100 * share):
            if not np.isnan(value):
                color = "white" if value > middle else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="channels chosen, %")
    axes.set_title(title, loc="left", fontsize=10)
    with written_whole(path, force=force) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _number(name: str) -> int:
    last = name.rpartition(" ")[2]
    return int(last) if last.isdigit() else -1

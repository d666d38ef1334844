"""Pictures of where an ability lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from act.core.files import written_whole
from act.ranking.analysis import Concentration
from act.ranking.channel_set import ChannelSet
from act.report.data import SufficiencyRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def share_by_layer(channels: ChannelSet) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Row names (layers), column names (module kinds), and the chosen share of the channels ``[rows, columns]``.

    Sites outside the decoder stack are the first row (embeddings) or the last (final norm, LM head). NaN marks a pair
    that does not exist. A module kind that a layer has several times, such as its norms, is one cell.
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
    """Save :func:`share_by_layer` as a PNG map; raises ActError if ``path`` exists and ``force`` is False."""
    with written_whole(path, force=force) as temporary:
        draw_map(*share_by_layer(channels), temporary, title)


def draw_map(rows: list[str], columns: list[str], share: NDArray[np.float64], path: Path, title: str) -> None:
    """Save a heat map of shares as PNG, with a number in every cell; NaN cells stay empty."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 0.75 * len(columns), 1.5 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, aspect="auto")
    _label_cells(axes, 100 * share)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(image, ax=axes, label="channels chosen, %")
    axes.set_title(title, loc="left", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def draw_overlaps(names: list[str], matrix: Sequence[Sequence[float]], path: Path, title: str) -> None:
    """Save the Jaccard overlap of every two sets, in per cent, as PNG."""
    from matplotlib.figure import Figure

    values = 100 * np.array(matrix)
    short = [_short(name) for name in names]
    size = 2.2 + 0.75 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=100)
    _label_cells(axes, values)
    axes.set_xticks(range(len(names)), short, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), short)
    figure.colorbar(image, ax=axes, label="Jaccard overlap, %", shrink=0.8)
    axes.set_title(title, loc="left", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def draw_curves(
    curves: Mapping[str, Concentration], sufficiency: Sequence[SufficiencyRow], path: Path, score: str
) -> None:
    """Save two panels as PNG: the share of the channels above each score, and the share of the total score that the top
    channels hold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    above, held = figure.subplots(1, 2)
    for number, (name, curve) in enumerate(curves.items()):
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.8,
            "label": _short(name),
        }
        shown = [(x, y) for x, y in zip(curve.thresholds, curve.above, strict=True) if y > 0]
        above.plot(*zip(*shown, strict=True), **{**style, "markevery": (7 * number % 25, 25)})
        rows = [row for row in sufficiency if row["profile"] == name]
        held.plot([row["share"] for row in rows], [row["held"] for row in rows], **style)
    above.set(xscale="log", yscale="log", xlabel=f"score ({score})", ylabel="channels above it")
    above.set_title("Concentration: how many channels differ by more", loc="left", fontsize=10)
    held.set(xscale="log", ylim=(0, 1.02), xlabel="top channels taken", ylabel="share of all score held")
    held.set_title("Sufficiency: how much the top channels hold", loc="left", fontsize=10)
    shares = sorted({row["share"] for row in sufficiency})
    held.plot(shares, shares, color="0.6", linewidth=1, linestyle=":", label="all channels alike")
    for axis in (above.yaxis, held.xaxis, held.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    for axes in (above, held):
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    held.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, format="png", dpi=150)


def _label_cells(axes: Axes, values: NDArray[np.float64]) -> None:
    """Write the number into every cell that has one, readable on its colour, unless there are too many cells."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if values.size > 400:
        return
    middle = 0.5 * np.nanmax(values)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value > middle else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)


def _short(name: str) -> str:
    """The last part of a path, or the end of a long name."""
    name = name.rpartition("/")[2]
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _number(name: str) -> int:
    last = name.rpartition(" ")[2]
    return int(last) if last.isdigit() else -1

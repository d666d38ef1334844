"""The forms of pictures, as Vega-Lite specifications: the same for the page and for files."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Column = Sequence[Any]
"""Names, numbers, and None for what is unknown."""

WIDE = 720
"""Pixels that a picture has as a file; on the page it takes the room there is."""
NUMBERED = 200
"""Most cells of a map that have their number written in."""
FACETS = 7
"""Curves that one panel tells apart; of more, each has a panel of its own."""


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        name: what it shows, as the name of a file.
        title: a heading, without a full stop.
        alt: what a reader who does not see it should know.
        columns: the figures, column by column, all of one length.
        spec: the Vega-Lite specification, without data.
        headings: the columns that the table beside it shows, by heading.
        note: how to read it.
        of: the ability it is of, where each has its own.
    """

    name: str
    title: str
    alt: str
    columns: Mapping[str, Column]
    spec: Mapping[str, Any]
    headings: Mapping[str, str]
    note: str = ""
    of: str = ""

    @property
    def group(self) -> str:
        """What the pictures of all abilities have in common, of which the page shows one at a time."""
        return self.name.partition("-")[0] if self.of else ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The figures, row by row."""
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


def heat_map(x: dict[str, Any], y: dict[str, Any], value: dict[str, Any], tips: list[dict[str, Any]],
             cells: int, step: int = 22, digits: str = ".0f") -> dict[str, Any]:  # fmt: skip
    """A map of cells, with a number in each if there are few."""
    bare = {"ticks": False, "domain": False, "labelOverlap": "greedy"}
    x, y = ({**axis, "axis": {**bare, **axis.get("axis", {})}} for axis in (x, y))
    colour = {"scale": {"domainMin": 0}, "legend": {"gradientLength": 180}, **value}
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "rect", "cursor": "pointer"}, "encoding": {"color": colour, "tooltip": tips}}
    ]
    if cells <= NUMBERED:
        bright = f"luminance(scale('color', datum['{value['field']}'])) > 0.3"
        colours = {"condition": {"test": bright, "value": "#111820"}, "value": "#ffffff"}
        text = {"field": value["field"], "type": "quantitative", "format": digits}
        layers.append({"mark": {"type": "text", "tooltip": None}, "encoding": {"text": text, "color": colours}})
    return {"width": "container", "height": {"step": step}, "encoding": {"x": x, "y": y}, "layer": layers}


def amount(field: str, title: str | None, **more: Any) -> dict[str, Any]:
    """An encoding of numbers."""
    return {"field": field, "type": "quantitative", "title": title, **more}


def names(field: str, order: Sequence[str] | None = None, title: str | None = None, **more: Any) -> dict[str, Any]:
    """An encoding of names, in an order."""
    return {"field": field, "type": "nominal", "title": title, "sort": None if order is None else list(order), **more}


def tips(**titles: str) -> list[dict[str, Any]]:
    """What hovering shows: columns by title."""
    return [{"field": field, "title": title} for field, title in titles.items()]


def logarithmic(title: str, field: str) -> dict[str, Any]:
    """An encoding of shares in per cent, from one channel to all, evenly in the logarithm."""
    return amount(
        field,
        title,
        scale={"type": "log"},
        axis={"format": "~g", "grid": False, "tickCount": 6, "labelOverlap": "greedy", "labelSeparation": 6},
    )


def curves(x: dict[str, Any], y: dict[str, Any], order: Sequence[str], tips: list[dict[str, Any]],
           field: str = "profile", points: bool = False) -> dict[str, Any]:  # fmt: skip
    """Lines told apart by colour and dash; more than :data:`FACETS` have a panel each."""
    mark: dict[str, Any] = {"type": "line", "interpolate": "monotone", "point": points and {"size": 60}}
    if len(order) > FACETS:
        panel = {
            "mark": {**mark, "tooltip": None},
            "width": 150,
            "height": 90,
            "encoding": {"x": x, "y": y, "tooltip": tips},
        }
        return {"facet": names(field, order), "columns": 4, "spec": panel}
    told = names(field, order)
    encoding: dict[str, Any] = {"x": x, "y": y, "tooltip": tips, "color": {**told, "scale": {"domain": list(order)}}}
    if len(order) > 1:
        encoding["strokeDash"] = told
        encoding["color"]["legend"] = {"columns": 2}
    else:
        encoding["color"]["legend"] = None
    return {"width": "container", "height": 280, "mark": mark, "encoding": encoding}


def intervals(x: str, title: str, order: Sequence[str], tips: list[dict[str, Any]], *, y: str, kind: str,
              kinds: Sequence[str], guide: str | None = None, zero: bool = True,
              apart: bool = False) -> dict[str, Any]:  # fmt: skip
    """A point with its interval (columns ``low`` and ``high``) for each name, and a dashed line at a ``guide``.

    Args:
        apart: each name has a row for every kind, and a guide of its own.
    """
    scale = {"zero": zero}
    across = amount("low", title, scale=scale, axis={"grid": True})
    down = names(y, order, axis={"ticks": False, "domain": False, "offset": 8})  # beside points at the least value
    told = names(kind, kinds, scale={"domain": list(kinds)})
    legend = {"legend": None} if len(kinds) < 2 else {}
    rows: dict[str, Any] = {"yOffset": names(kind, kinds)} if apart else {}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": across, "x2": {"field": "high"}, "y": down, **rows},
        },
        {
            "mark": {"type": "point", "opacity": 1},
            "encoding": {
                "x": amount(x, title, scale=scale), "y": down, **rows, "tooltip": tips,
                "color": {**told, **legend}, "shape": {**told, **legend},
            },
        },
    ]  # fmt: skip
    if guide:
        across_all = {"type": "rule", "strokeDash": [4, 4], "strokeWidth": 1.5}
        line, own = ({"type": "tick", "tooltip": None}, {"y": down}) if apart else (across_all, {})
        layers.insert(0, {"mark": line, "encoding": {"x": {"field": guide, "type": "quantitative"}, **own}})
    # Vega-Lite would give a step to each kind of a name, and none to the guide, which has no kind
    height = max(26, 14 * len(kinds) + 12) * len(order) if apart else {"step": 26}
    return {"width": "container", "height": height, "layer": layers}


def rounded(value: float) -> float | None:
    """Four digits, which no picture shows more of; None for what is not a number."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def slug(name: str) -> str:
    """A name as a part of a file's name: letters, digits and hyphens, at most 40."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:40] or "unnamed"

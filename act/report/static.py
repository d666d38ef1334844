"""The pictures of a page as files, SVG and PDF, named by what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from act.report.charts import WIDE, Chart
from act.report.theme import config


def draw(charts: Sequence[Chart], folder: Path) -> None:
    """Write each picture into a folder, as SVG and as PDF."""
    import vl_convert

    for chart in charts:
        spec = _as_file(chart)
        (folder / f"{chart.name}.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        (folder / f"{chart.name}.pdf").write_bytes(vl_convert.vegalite_to_pdf(spec))


def _as_file(chart: Chart) -> dict[str, Any]:
    """The specification with its figures, title and size."""
    size = {"width": WIDE} if chart.spec.get("width") == "container" else {}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": chart.title,
        "description": chart.alt,
        **chart.spec,
        **size,
        "data": {"values": chart.rows},
        "config": config("light"),
    }

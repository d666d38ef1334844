"""A report as a folder: its page, one JSON file, its tables as CSV and, if they are wanted, its pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from act.core.files import written_whole
from act.report.build import Report
from act.report.page import PAGE, Page, put_page
from act.report.static import draw


def write(
    report: Report | None, folder: Path, *, page: Page | None = None, static: bool = False, force: bool = False
) -> list[str]:
    """Write a report as a new folder, whole or not at all, and return the names of its files.

    Args:
        report: the figures of profiles; without any, ``page`` shows the rest.
        folder: where to.
        page: what else the page shows; by default the figures alone.
        static: also write the pictures of the page as SVG and PDF.
        force: replace the folder, if it is a report's.

    Raises:
        ActError: ``folder`` exists and ``force`` is False.
    """
    page = page or Page("Where abilities live", report=report)
    with written_whole(folder, force=force, directory=True) as temporary:
        put_page(page, temporary / PAGE)
        if static:
            draw(page.charts, temporary)
        if report:
            _write_figures(report, temporary)
        return sorted(path.name for path in temporary.iterdir())


def _write_figures(report: Report, folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(report.data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, rows in _tables(report).items():
        if rows:
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)


def _tables(report: Report) -> dict[str, Sequence[Mapping[str, object]]]:
    """The rows of each CSV file, by name."""
    data = report.data
    shares = [
        {"profile": one["profile"], "by": by, "group": group, **cell}
        for one in data["concentration"]
        for by, groups in (("kinds", one["kinds"]), ("layers", one["layers"]))
        for group, cell in groups.items()
    ]
    curves = [
        {"profile": name, "threshold": threshold, "share_above": above}
        for name, curve in report.curves.items()
        for threshold, above in zip(curve.thresholds, curve.above, strict=True)
    ]
    summary = [
        {key: value for key, value in one.items() if key in ("profile", "ability", "channels", "gini", "above_tenth")}
        for one in data["concentration"]
    ]
    return {
        "concentration": summary,
        "shares": shares,
        "ccdf": curves,
        "overlaps": data["overlaps"],
        "score_held": data["score_held"],
        "necessity": data["necessity"],
        "recovered": data["recovered"],
    }

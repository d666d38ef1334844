"""A report as a folder: its page, one JSON file, its tables as CSV and, if they are wanted, its pictures; or a page."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from act.core.errors import ActError
from act.core.files import require_folder_name, written_whole
from act.report.build import Report
from act.report.page import PAGE, Page, put_page, write_page
from act.report.static import draw

ENDINGS = (".html", ".htm")
"""Of an output that is a page alone, not a folder with one."""


def page_at(output: Path) -> Path:
    """Where the page of an output lies.

    >>> from act.report.write import page_at
    >>> print(page_at(Path("report")), page_at(Path("report/german.html")))
    report/index.html report/german.html
    """
    return output if output.suffix.lower() in ENDINGS else output / PAGE


def require_report_name(output: Path, static: bool = False) -> None:
    """Raise :class:`ActError` if an output is named as a file that is no page, or as a page that takes no pictures.

    Args:
        static: whether pictures are written as files, too, for which there must be a folder.

    >>> from act.report.write import require_report_name
    >>> require_report_name(Path("german.html"), static=True)
    Traceback (most recent call last):
    act.core.errors.ActError: the output german.html is the page alone; give a folder, which takes pictures, too
    """
    if page_at(output) != output:
        require_folder_name(output, ", or a page that ends with .html")
        if output.is_file():
            raise ActError(f"the output {output} is a file; expected a folder, or a page that ends with .html")
    elif static:
        raise ActError(f"the output {output} is the page alone; give a folder, which takes pictures, too")


def write(
    report: Report | None, output: Path, *, page: Page | None = None, static: bool = False, force: bool = False
) -> list[str]:
    """Write a report, whole or not at all, and return the names of its files.

    Args:
        report: the figures of profiles; without any, ``page`` shows the rest.
        output: a new folder; or a file that ends with one of :data:`ENDINGS`, which gets the page alone.
        page: what else the page shows; by default the figures alone.
        static: also write the pictures of the page as SVG and PDF.
        force: replace the output, if it is a report's.

    Raises:
        ActError: ``output`` exists and ``force`` is False; it is named as a file of another kind.
    """
    require_report_name(output, static)
    page = page or Page("Where abilities live", report=report)
    if page_at(output) == output:
        write_page(page, output, force=force)
        return [output.name]
    with written_whole(output, force=force, directory=True) as temporary:
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

"""Fill the tables of the pages on experiments from experiments/results/, between their markers; draw their pictures.

python experiments/page.py
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "benchmarks")]

import language_page as language  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from table import Result, filled, made_on, table  # noqa: E402

PAGES = (HERE / "README.md", HERE.parent / "docs" / "language.md")
FIGURES = {"area": "recovery", "gain": "gain_at_95", "kept": "retained_at_95", "merged, worst": "merging"}
STYLES = {
    "attribution / cost": ("#D55E00", "-", "o"),
    "match": ("#009E73", "-", "v"),
    "attribution": ("#E69F00", "-", "s"),
    "paired": ("#0072B2", "-", "^"),
    "contrast, half": ("#009E73", "-", "v"),
    "weight-diff": ("#000000", "--", "x"),
    "wrong ability: match": ("#CC79A7", "--", "+"),
    "wrong ability: attribution / cost": ("#CC79A7", ":", "1"),
    "interpolation": ("#56B4E9", "--", "d"),
    "TIES": ("#56B4E9", ":", "2"),
    "random": ("#999999", ":", "."),
}
"""Colour (of Okabe and Ito), line and marker of the methods that pictures show; an experiment has some of them."""


def load(name: str = "ability") -> Result:
    """Committed results."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def methods(result: Result) -> str:
    """A table of every method, best area first, controls in italics."""
    areas = result["recovery"]
    names = sorted(areas, key=lambda name: -statistics.mean(areas[name].values()))
    names += [name for name in result["merging"] if name not in areas]
    controls = {*result["controls"], *result["merge_controls"]}
    rows = [
        {"method": f"*{name}*" if name in controls else name}
        | {title: language.cell(result[field].get(name)) for title, field in FIGURES.items()}
        for name in names
    ]
    return table(rows, "| method | " + " | ".join(FIGURES) + " |", "| {method} | {" + "} | {".join(FIGURES) + "} |")


def verdict(result: Result) -> str:
    """A table of our first rule beside the best control of each seed."""
    rows = [
        {"figure": figure} | {f"seed {seed}": f"{ours:.2f} / {best:.2f}" for seed, (ours, best) in by_seed.items()}
        for figure, by_seed in result["verdict"].items()
    ]
    seeds = [f"seed {seed}" for seed in result["target"]]
    head = " | ".join(["| attribution / cost against the best control", *seeds])
    return table(rows, f"{head} |", "| {figure} | {" + "} | {".join(seeds) + "} |")


def tuned(result: Result) -> str:
    """A table of the light tune from each start."""
    rows = [
        {"start": f"{count} records, {start}"}
        | {
            point: language.cell({seed: one[point] for seed, one in seeds.items()})
            for point in ("forgotten", "retained")
        }
        for count, starts in result["tuned"].items()
        for start, seeds in starts.items()
    ]
    return table(rows, "| tune on, after | forgotten | retained |", "| {start} | {forgotten} | {retained} |")


def tried(result: Result) -> str:
    """A table of every form of local match, best area first; references in italics, the package's own in bold."""
    areas, gains, pairs = result["area"], result["gain_at_95"], list(result["untried"])
    names = sorted(areas, key=lambda name: -statistics.mean(areas[name].values()))
    styles = {**dict.fromkeys(result["references"], "*{}*"), **dict.fromkeys(result["built"], "**{}**")}
    rows = [
        {"form": styles.get(name, "{}").format(name)}
        | {pair: f"{areas[name][pair]:.2f} / {gains[name][pair]:.2f}" for pair in pairs}
        for name in names
    ]
    return table(rows, f"| form: area / gain | {' | '.join(pairs)} |", "| {form} | {" + "} | {".join(pairs) + "} |")


def tables(result: Result) -> str:
    """All tables, as the experiment prints them."""
    return "\n".join(section(result) for section in (methods, verdict, tuned))


def draw(result: Result, starts: dict[str, tuple[float, float]], path: Path, *, recovered: str, retained: str) -> None:
    """Draw the frontiers, one panel per run, ours and the paper's beside the controls.

    ``starts`` has the forgotten and the retained ability of each run's target; ``recovered`` and ``retained`` are the
    titles of the axes.
    """
    size, rows = len(starts), 1 + (len(starts) - 1) // 5
    columns = -(-size // rows)
    figure = Figure(figsize=(1 + 2.6 * columns, 0.8 + 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[size:]:
        axes.remove()
    for (run, (forgotten, kept)), axes in zip(starts.items(), panels.flat, strict=False):
        for method, (color, line, marker) in STYLES.items():
            if found := result["frontiers"].get(method, {}).get(run):
                points = [(kept, forgotten), *((share, back) for _, back, share in found)]
                points.sort(reverse=True)
                axes.plot(*zip(*points, strict=True), line, marker=marker, color=color, markersize=3, label=method)
        axes.axvline(0.95 * kept, color="#bbbbbb", linewidth=0.8)
        axes.set(title=run if "/" in run else f"seed {run}", xlabel=retained, xlim=(0, 1.02), ylim=(-0.02, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    for row in panels:
        row[0].set_ylabel(recovered)
    shown: dict[str, Any] = {}
    for axes in panels.flat[:size]:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown.keys(), frameon=False, ncols=4, loc="outside lower center", fontsize=7)
    figure.savefig(path, dpi=90)


def page(text: str) -> str:
    """The page with its tables filled; a marker names the table, after the experiment if that is not ``ability``.

    An experiment without a result file has not been measured yet.
    """
    mine: Sequence[Callable[[Result], str]] = (methods, verdict, tuned, made_on)
    sections = {"ability": {section.__name__: section for section in mine}, "language": language.SECTIONS}
    sections["forms"] = {section.__name__: section for section in (tried, made_on)}

    def table_of(marker: str) -> str:
        experiment, _, name = marker.rpartition(" ")
        experiment = experiment or "ability"
        if not (HERE / "results" / f"{experiment}.json").exists():
            return language.UNMADE
        return sections[experiment][name](load(experiment))

    return filled(text, table_of)


def main() -> None:
    """Write the pages and their pictures."""
    for path in PAGES:
        if path.exists():
            path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    result, folder = load(), HERE / "results"
    titles = {"recovered": "recovered: German", "retained": "retained: new skills"}
    draw(result, result["target"], folder / "ability.png", **titles)
    if (folder / "language.json").exists() and (result := load("language"))["runs"]:
        titles = {"recovered": "recovered of the language lost", "retained": "kept of what was gained"}
        draw(result, dict.fromkeys(result["runs"], (0.0, 1.0)), folder / "language.png", **titles)


if __name__ == "__main__":
    main()

"""Fill the tables of experiments/README.md from experiments/results/, between their markers, and draw its picture.

python experiments/page.py
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "benchmarks"))

from matplotlib.figure import Figure  # noqa: E402
from table import Result, filled, made_on, table  # noqa: E402

PAGE = HERE / "README.md"
FIGURES = {"area": "recovery", "gain": "gain_at_95", "kept": "retained_at_95", "merged, worst": "merging"}


def load() -> Result:
    """The committed results."""
    return json.loads((HERE / "results" / "ability.json").read_text())


def cell(figures: dict[str, float] | None) -> str:
    """Mean and standard deviation over seeds."""
    if figures is None:
        return "-"
    return f"{statistics.mean(figures.values()):.2f} ± {statistics.pstdev(figures.values()):.2f}"


def methods(result: Result) -> str:
    """A table of every method, best area first, controls in italics."""
    areas = result["recovery"]
    names = sorted(areas, key=lambda name: -statistics.mean(areas[name].values()))
    names += [name for name in result["merging"] if name not in areas]
    controls = {*result["controls"], *result["merge_controls"]}
    rows = [
        {"method": f"*{name}*" if name in controls else name}
        | {title: cell(result[field].get(name)) for title, field in FIGURES.items()}
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
        | {point: cell({seed: one[point] for seed, one in seeds.items()}) for point in ("forgotten", "retained")}
        for count, starts in result["tuned"].items()
        for start, seeds in starts.items()
    ]
    return table(rows, "| tune on, after | forgotten | retained |", "| {start} | {forgotten} | {retained} |")


def tables(result: Result) -> str:
    """All tables, as the experiment prints them."""
    return "\n".join(section(result) for section in (methods, verdict, tuned))


def draw(result: Result, path: Path) -> None:
    """Draw the frontiers, one panel per seed, ours and the paper's beside the controls; colours of Okabe and Ito."""
    styles = {
        "attribution / cost": ("#D55E00", "-", "o"),
        "attribution": ("#E69F00", "-", "s"),
        "paired": ("#0072B2", "-", "^"),
        "contrast, half": ("#009E73", "-", "v"),
        "weight-diff": ("#000000", "--", "x"),
        "wrong ability: attribution / cost": ("#CC79A7", "--", "+"),
        "interpolation": ("#56B4E9", "--", "d"),
        "random": ("#999999", ":", "."),
    }
    seeds = list(result["target"])
    figure = Figure(figsize=(1 + 2.6 * len(seeds), 3.6), layout="constrained")
    for number, (seed, axes) in enumerate(zip(seeds, figure.subplots(1, len(seeds), squeeze=False)[0], strict=True)):
        forgotten, retained = result["target"][seed]
        for method, (color, line, marker) in styles.items():
            points = [(retained, forgotten), *((kept, back) for _, back, kept in result["frontiers"][method][seed])]
            points.sort(reverse=True)
            axes.plot(*zip(*points, strict=True), line, marker=marker, color=color, markersize=3, label=method)
        axes.axvline(0.95 * retained, color="#bbbbbb", linewidth=0.8)
        axes.set(title=f"seed {seed}", xlabel="retained: new skills", xlim=(0, 1.02), ylim=(-0.02, 1.02))
        if number == 0:
            axes.set_ylabel("recovered: German")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="outside lower center", fontsize=7)
    figure.savefig(path, dpi=90)


def page(text: str) -> str:
    """The page with its tables filled."""
    sections = {section.__name__: section for section in (methods, verdict, tuned, made_on)}
    return filled(text, lambda name: sections[name](load()))


def main() -> None:
    """Write the page and its picture."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(load(), HERE / "results" / "ability.png")


if __name__ == "__main__":
    main()

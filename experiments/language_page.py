"""The tables of the experiment on prose, for :mod:`page`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from table import Result, made_on, table


def bits(result: Result) -> str:
    """A table of what each model reads how well."""
    rows = []
    for seed, models in result["models"].items():
        for name, model in models.items():
            figures = {
                ability: f"{bits:.2f} ± {error:.2f}" for ability, (bits, error) in model["bits per byte"].items()
            }
            rows.append({"model": f"{seed}/{name}", "steps": model["steps"], **figures})
    abilities = list(rows[0])[2:]
    head = "| model | " + " | ".join(abilities) + " | steps |"
    return table(rows, head, "| {model} | {" + "} | {".join(abilities) + "} | {steps} |")


def verdict(result: Result) -> str:
    """A table of ours, with and without gradients, and the best control, for each run."""
    rows = [
        {"figure": figure.replace("_at_95", " at 95 %").replace("_", ", "), "run": run}
        | {"ours": f"{ours:.2f}", "without": f"{without:.2f}", "best": f"{best:.2f} ({control})"}
        for figure, by_run in result["verdict"].items()
        for run, (ours, without, best, control) in by_run.items()
    ]
    head = f"| figure | run | {result['ours']} | {result['without_gradients']} | best control |"
    return table(rows, head, "| {figure} | {run} | {ours} | {without} | {best} |")


def methods(result: Result) -> str:
    """A table of every method, best gain first, controls in italics; the mean over runs, and their deviation."""
    fields = {
        "area": "area",
        "recovered": "gain_at_95",
        "kept": "retained_at_95",
        "other language": "along_at_95",
        "merged, worst": "merged_worst",
        "merged, mean": "merged_mean",
    }
    gains = result["gain_at_95"]
    names = sorted(gains, key=lambda name: -statistics.mean(gains[name].values()))
    names += [name for name in result["merged_worst"] if name not in gains]
    rows = [
        {"method": f"*{name}*" if name in result["merge_controls"] else name}
        | {title: cell(result[field].get(name)) for title, field in fields.items()}
        for name in names
    ]
    return table(rows, "| method | " + " | ".join(fields) + " |", "| {method} | {" + "} | {".join(fields) + "} |")


def tuned(result: Result) -> str:
    """A table of the light tune from each start: recovered / kept, the mean over runs."""
    rows: dict[str, dict[str, str]] = {}
    runs = result["tuned"].values()
    for count in next(iter(runs), {}):
        for start in next(iter(runs))[count]:
            points = [(run[count][start]["forgotten"], run[count][start]["retained"]) for run in runs]
            means = " / ".join(f"{statistics.mean(figures):.2f}" for figures in zip(*points, strict=True))
            rows.setdefault(start, {"start": start})[f"{count} pages"] = means
    titles = list(next(iter(rows.values()), {}))[1:]
    return table(rows.values(), f"| after | {' | '.join(titles)} |", "| {start} | {" + "} | {".join(titles) + "} |")


def claims(result: Result) -> str:
    """A table of the paper's claims, run by run."""
    rows = [
        {"claim": claim, "run": run, **one} for claim, by_run in result["claims"].items() for run, one in by_run.items()
    ]
    return table(
        rows, "| claim | run | verdict | figure |", "| {claim} | {run} | {verdict} | {figure} |", "|---|---|---|---|"
    )


def cell(figures: dict[str, float] | None) -> str:
    """Mean and standard deviation over runs."""
    if not figures:
        return "-"
    return f"{statistics.mean(figures.values()):.2f} ± {statistics.pstdev(figures.values()):.2f}"


SECTIONS: dict[str, Callable[[Result], str]] = {
    section.__name__: section for section in (bits, verdict, methods, tuned, claims, made_on)
}

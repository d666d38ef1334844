"""The tables of the experiment on prose, for :mod:`page`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from table import Result, made_on, table

UNMADE = "Not measured yet.\n"


def state(result: Result) -> str:
    """Which runs each part has, in a sentence; what is missing is said first."""
    planned: list[str] = result.get("planned") or result["runs"]
    bases = {run.partition("/")[0] for run in planned}
    methods = {result["ours"], result["without_gradients"], *result["controls"], *result["area"]}
    whole = [run for run in planned if all(run in result["area"].get(name, {}) for name in methods)]
    merged = [run for run in planned if all(run in by_run for by_run in result["merged_worst"].values())]
    starts = len(result["settings"]["tune_records"]) * (1 + len(result["settings"]["tune_methods"]))
    tuned_runs = [by_count for by_count in result["tuned"].values() if sum(map(len, by_count.values())) == starts]
    claimed = {run for by_run in result["claims"].values() for run in by_run}
    had = {
        "the models": (len(result["models"]), len(bases), "bases"),
        "recovery": (len(whole), len(planned), "runs by all methods"),
        "merging": (len(merged) if result["merged_worst"] else 0, len(bases), "bases"),
        "the light tune": (len(tuned_runs), len(planned), "runs"),
        "the claims": (len(claimed & {*planned}), len(planned), "runs"),
    }
    missing = [f"{part} of {some} of {all_} {what}" for part, (some, all_, what) in had.items() if some < all_]
    if missing:
        return f"**Not finished**, so far: {', '.join(missing)}; a table has what there is.\n"
    return f"All {len(planned)} runs.\n"


def bits(result: Result) -> str:
    """A table of what each model reads how well."""
    if not result["models"]:
        return UNMADE
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
    if not rows:
        return UNMADE
    head = f"| figure | run | {result['ours']} | {result['without_gradients']} | best control |"
    return table(rows, head, "| {figure} | {run} | {ours} | {without} | {best} |")


def goals(result: Result) -> str:
    """What was hoped for, what was found over the runs, and whether that is it: what is missed comes first."""
    ours, without, merged = result["ours"], result["without_gradients"], result["verdict"]["merged_worst"].values()
    area, gain = (result["verdict"][figure].values() for figure in ("area", "gain_at_95"))
    if not (area and gain and merged):
        return UNMADE
    specific = result["specific_at_95"][ours].values()
    found = [
        (
            f"recovered at 95 % kept by {ours}, over the best control",
            1.6,
            [_over(one, best) for one, _, best, _ in gain],
        ),
        (f"the same by {without}", 1.4, [_over(one, best) for _, one, best, _ in gain]),
        (f"recovered by {without}, over that by {ours}", 0.85, [_over(one, first) for first, one, *_ in gain]),
        (f"area of {ours}, above the best control by", 0.0, [one - best for one, _, best, _ in area]),
        (
            f"worst ability of a merge by {ours}, above the best control by",
            0.0,
            [one - best for one, _, best, _ in merged],
        ),
        ("the language that was asked for, above the other by", 0.0, list(specific)),
    ]
    rows = []
    for name, least, values in found:
        met = sum(value > least for value in values)
        told = f"missed in {len(values) - met} of {len(values)}" if met < len(values) else "met"
        rows.append(
            {"goal": name, "least": f"{least:g}", "found": f"{min(values):.2f} to {max(values):.2f}", "met": told}
        )
    return table(rows, "| goal | at least | found, run by run | |", "| {goal} | {least} | {found} | {met} |")


def _over(one: float, other: float) -> float:
    return one / other if other else float("inf")


def methods(result: Result) -> str:
    """A table of every method, best gain first, controls in italics; the mean over runs, and their deviation.

    Behind the figures of a method that has not all runs of the table stands how many it has.
    """
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
    if not names:
        return UNMADE
    controls = {*result["controls"], *result["merge_controls"]}
    runs = {field: max(map(len, result[field].values()), default=0) for field in fields.values()}
    rows = [
        {"method": f"*{name}*" if name in controls else name}
        | {title: cell(result[field].get(name), runs[field]) for title, field in fields.items()}
        for name in names
    ]
    return table(rows, "| method | " + " | ".join(fields) + " |", "| {method} | {" + "} | {".join(fields) + "} |")


def tuned(result: Result) -> str:
    """A table of the light tune from each start: recovered / kept, the mean over the runs that have it."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for by_count in result["tuned"].values():
        for count, by_start in by_count.items():
            for start, point in by_start.items():
                points.setdefault((start, count), []).append((point["forgotten"], point["retained"]))
    if not points:
        return UNMADE
    runs, counts = max(map(len, points.values())), list(dict.fromkeys(count for _, count in points))
    rows = []
    for start in dict.fromkeys(start for start, _ in points):
        cells = {f"{count} pages": "-" for count in counts}
        for count in counts:
            if found := points.get((start, count)):
                means = " / ".join(f"{statistics.mean(figures):.2f}" for figures in zip(*found, strict=True))
                cells[f"{count} pages"] = means + _of_fewer(len(found), runs)
        rows.append({"start": start, **cells})
    titles = list(rows[0])[1:]
    return table(rows, f"| after | {' | '.join(titles)} |", "| {start} | {" + "} | {".join(titles) + "} |")


def claims(result: Result) -> str:
    """A table of the paper's claims, run by run."""
    rows = [
        {"claim": claim, "run": run, **one} for claim, by_run in result["claims"].items() for run, one in by_run.items()
    ]
    if not rows:
        return UNMADE
    return table(
        rows, "| claim | run | verdict | figure |", "| {claim} | {run} | {verdict} | {figure} |", "|---|---|---|---|"
    )


def cell(figures: dict[str, float] | None, runs: int = 0) -> str:
    """Mean and, of more than one run, standard deviation; then how many runs that is, if it is fewer than ``runs``."""
    if not figures:
        return "-"
    deviation = f" ± {statistics.pstdev(figures.values()):.2f}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures.values()):.2f}{deviation}{_of_fewer(len(figures), runs)}"


def _of_fewer(found: int, runs: int) -> str:
    return f" ({found} of {runs} runs)" if found < runs else ""


SECTIONS: dict[str, Callable[[Result], str]] = {
    section.__name__: section for section in (state, goals, bits, verdict, methods, tuned, claims, made_on)
}

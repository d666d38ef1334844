"""Which rule gives a model the language back that it forgot, on real prose, and at what cost to what it learnt?

    python experiments/language.py --json experiments/results/language.json --cache DIR [--runs 0/mathematics ...]
                                   [--parts models recovery ...] [--data DIR] [--quick] [--made]

A small base reads four languages (the pages of a program's help); specialists of it go on with problems of mathematics,
with German alone or with French alone until validation stops improving, and forget the rest. Figures are shares of bits
per byte, by page: *recovered*, of what the forgotten language lost; *kept*, of what the specialist gained. Settings are
chosen on validation pages, figures are of test pages. The parts: ``models`` trains, ``recovery`` is every method's
frontier, ``merging`` makes one model of three specialists, ``claims`` are the paper's (also tried on the models that
ship and on stories260K), ``tuned`` is the same light tune after each method and after none.

Hours of one core. Everything is kept in the cache folder as it is made (remove it after changing code): the same
command goes on where it was stopped, and runs and parts can be made one by one; the last command collects them.
``--made`` computes nothing and writes what the cache has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import stories
import torch
from ability import QUICK as INVENTED_QUICK
from ability import SETTINGS as INVENTED
from claims import claims
from invented import InventedLab
from laboratory import Lab, Unmade
from measure import options, record
from parts import merge, recover, tuned
from prose import LANGUAGES, MATHEMATICS, Texts, spread
from reading import SPECIALISTS, ProseLab
from schooling import School

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PARTS = ("models", "recovery", "merging", "claims", "tuned")

OURS, WITHOUT_GRADIENTS = "attribution / cost", "match"
CONTROLS = (
    "paired",
    "paired / std",
    "contrast / std",
    "weight-diff",
    "random",
    "rows shuffled: attribution / cost",
    "rows shuffled: weight-diff",
    "wrong ability: attribution / cost",
    "wrong ability: match",
    "wrong ability: paired",
    "interpolation",
    "task arithmetic",
    "TIES",
    "DARE",
)
MERGE_CONTROLS = (
    "paired",
    "paired / std",
    "contrast / std",
    "weight-diff",
    "random",
    "rows shuffled: weight-diff",
    "interpolation",
    "average",
    "task arithmetic",
    "TIES",
    "DARE",
)
TUNED = (
    OURS,
    WITHOUT_GRADIENTS,
    "paired",
    "contrast / std",
    "weight-diff",
    "random",
    "interpolation",
    "TIES",
    "DARE",
)

SETTINGS: dict[str, Any] = {
    "models": {
        "vocabulary": 2048,
        "shape": {"hidden": 192, "inner": 512, "layers": 4, "heads": 6},
        "width": 192,
        "base_steps": 2000,
        "base_rows": 8,
        "base_rate": 3e-3,
        "base_every": 200,
        "specialist_steps": 600,
        "specialist_rows": 12,
        "specialist_rate": 1e-3,
        "specialist_every": 25,
        "specialist_patience": 4,
        "read_tokens": 160,
        "validation_texts": 48,
    },
    "test_texts": 120,
    "localize_texts": 96,
    "tops": [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45],
    "strengths": [0.6, 1.0],
    "merge_tops": [0.05, 0.1, 0.2, 0.3, 0.5],
    "merge_strengths": [0.6, 1.0],
    "interpolations": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7],
    "densities": [0.2, 0.5, 0.9],
    "scales": [0.5, 0.65, 0.8, 0.9, 1.0],
    "tune_records": [16, 64, 256],
    "tune_methods": TUNED,
    "tune_rows": 8,
    "tune_steps": [10, 40],
    "tune_rates": [1e-3],
    "tune_starts": [0.95],
    "demo": {**INVENTED, "base_steps": 0},  # the other models that ship, whose claims are tried, too
}
QUICK: dict[str, Any] = {
    **SETTINGS,
    "models": {
        **SETTINGS["models"],
        "vocabulary": 320,
        "shape": {"hidden": 16, "inner": 32, "layers": 1, "heads": 2},
        "width": 24,
        "base_steps": 6,
        "base_rows": 4,
        "base_every": 3,
        "specialist_steps": 4,
        "specialist_rows": 2,
        "specialist_every": 2,
        "read_tokens": 24,
        "validation_texts": 3,
    },
    "test_texts": 3,
    "localize_texts": 4,
    "tops": [0.3],
    "strengths": [1.0],
    "merge_tops": [0.3],
    "merge_strengths": [1.0],
    "interpolations": [0.3],
    "densities": [0.5],
    "scales": [0.8],
    "tune_records": [2],
    "tune_methods": [OURS, "interpolation"],
    "tune_steps": [1],
    "demo": INVENTED_QUICK,
}


def bits_per_byte(school: School, seed: int) -> dict[str, dict[str, Any]]:
    """Bits per byte of test texts with their bootstrap error, for a base and its specialists, and their training."""
    readings = {ability: school.reading(ability, "test") for ability in (*LANGUAGES, MATHEMATICS)}
    models = {"base": school.base(seed), **{name: school.specialist(seed, name) for name in SPECIALISTS}}
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        figures = {}
        for ability, reading in readings.items():
            bits, size = reading.bits(model), reading.bytes
            figures[ability] = [float(bits.sum() / size.sum()), spread(partial(_over, bits, size), len(bits))]
        log = school.log(f"{name}-{seed}")
        found[name] = {
            "bits per byte": figures,
            "steps": log["step"],
            "cpu minutes": round(log["cpu_s"] / 60, 1),
            "wall minutes": round(log["wall_s"] / 60, 1),
        }
    return found


def _over(bits: torch.Tensor, size: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    return (times @ bits) / (times @ size)


def run_parts(
    settings: dict[str, Any],
    data: Path,
    cache: Path,
    runs: Sequence[str],
    parts: Sequence[str],
    told: dict[str, Any],
    made: bool = False,
) -> dict[str, Any]:
    """What the parts give, by part and run; what is in the cache is not made again.

    ``told`` are the settings of :mod:`stories`; with ``made``, what the cache does not have is left out.
    """
    key = hashlib.sha256(json.dumps(settings["models"], sort_keys=True).encode()).hexdigest()[:8]
    school = School(settings, Texts(data), cache / f"models-{key}")
    school.frozen = made
    labs: dict[str, ProseLab] = {}
    for run in runs:
        seed, specialist = run.split("/")
        labs[run] = ProseLab(settings, cache, school, int(seed), specialist)
    found: dict[str, Any] = {part: {} for part in PARTS}
    for part in parts:
        together = part in ("recovery", "merging", "tuned")  # of what is kept one by one
        for run, lab in labs.items():
            name = str(lab.seed) if part == "models" else run
            if name in found[part] or (part == "merging" and lab.retained != MATHEMATICS):
                continue  # models and the merge are once for each base
            with contextlib.suppress(Unmade):
                found[part][name] = lab.kept(part, partial(_part, part, lab), of_kept=together)
    if "claims" in parts:
        beside: dict[str, Lab] = {"invented": InventedLab(settings["demo"], cache, 0)}
        if (data / stories.RUN).exists():
            beside[stories.RUN] = stories.StoriesLab(told, data, cache)
        else:
            print(f"no claims on {stories.RUN}: it is not in {data}", file=sys.stderr)
        for run, other in beside.items():
            other.frozen = made
            with contextlib.suppress(Unmade):
                found["claims"][run] = other.kept("claims", partial(claims, other))
    return found


def _part(part: str, lab: ProseLab) -> Any:
    if part == "models":
        return bits_per_byte(lab.school, lab.seed)
    if part == "tuned":
        return tuned(lab, lab.kept("recovery", partial(recover, lab), of_kept=True))
    makers: dict[str, Callable[[Lab], Any]] = {"recovery": recover, "merging": merge, "claims": claims}
    return makers[part](lab)


def collect(found: dict[str, Any], settings: dict[str, Any], planned: Sequence[str]) -> dict[str, Any]:
    """What the result file holds: figures by method and run, and the verdict; ``planned`` are all runs asked for."""

    def by_method(part: dict[str, dict[str, Any]], field: str) -> dict[str, dict[str, Any]]:
        names = dict.fromkeys(name for one in part.values() for name in one)
        return {name: {run: one[name][field] for run, one in part.items() if name in one} for name in names}

    recovered = {run: one["methods"] for run, one in found["recovery"].items() if one["methods"]}
    verdicts = {run: one["verdicts"] for run, one in found["claims"].items()}
    result = {
        "ours": OURS,
        "without_gradients": WITHOUT_GRADIENTS,
        "controls": list(CONTROLS),
        "merge_controls": list(MERGE_CONTROLS),
        "planned": list(planned),
        "runs": list(recovered),
        "area": by_method(recovered, "area"),
        "gain_at_95": by_method(recovered, "gain"),
        "gain_error": by_method(recovered, "gain ±"),
        "retained_at_95": by_method(recovered, "retained"),
        "retained_error": by_method(recovered, "retained ±"),
        "along_at_95": by_method(recovered, "along"),
        "specific_at_95": by_method(recovered, "specific"),
        "specific_error": by_method(recovered, "specific ±"),
        "setting_at_95": by_method(recovered, "setting"),
        "frontiers": by_method(recovered, "frontier"),
        "merged_worst": by_method(found["merging"], "worst"),
        "merged_mean": by_method(found["merging"], "mean"),
        "merging_setting": by_method(found["merging"], "setting"),
        "claims": {
            claim: {run: dict(zip(("figure", "verdict"), one[claim], strict=True)) for run, one in verdicts.items()}
            for claim in next(iter(verdicts.values()), {})
        },
        "claims_figures": {run: one["figures"] for run, one in found["claims"].items()},
        "tuned": found["tuned"],
        "models": found["models"],
        "settings": settings,
    }
    return {**result, "verdict": verdict(result)}


def verdict(result: dict[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """For each run: ours, the one without gradients, the best control, and which that is; of runs that have all."""

    def against(figures: dict[str, dict[str, float]], controls: Sequence[str]) -> dict[str, list[Any]]:
        found = {}
        for run, ours in figures.get(OURS, {}).items():
            if all(run in figures.get(name, {}) for name in (*controls, WITHOUT_GRADIENTS)):
                best = max(controls, key=lambda name: figures[name][run])
                found[run] = [ours, figures[WITHOUT_GRADIENTS][run], figures[best][run], best]
        return found

    return {
        **{name: against(result[name], CONTROLS) for name in ("area", "gain_at_95")},
        **{name: against(result[name], MERGE_CONTROLS) for name in ("merged_worst", "merged_mean")},
    }


def summary(result: dict[str, Any]) -> str:
    """What is printed at the end: bits per byte, then each method's figures, run by run."""
    lines: list[str] = []
    for seed, models in result["models"].items():
        for name, model in models.items():
            read = model["bits per byte"].items()
            figures = ", ".join(f"{ability} {bits:.2f} ± {error:.2f}" for ability, (bits, error) in read)
            lines.append(f"base {seed}, {name}: {figures} bits per byte ({model['steps']} steps)")
    for run in result["runs"]:
        lines += ["", f"{run}: area, gained at 95 %, kept, of the other language"]
        methods = [name for name, by_run in result["area"].items() if run in by_run]
        methods.sort(key=lambda name: -result["gain_at_95"][name][run])
        fields = ("area", "gain_at_95", "retained_at_95", "along_at_95")
        lines += ["  ".join([*(f"{result[field][name][run]:6.3f}" for field in fields), name]) for name in methods]
    for name, by_run in result["merged_worst"].items():
        lines.append(f"merged, worst: {', '.join(f'{run} {worst:.3f}' for run, worst in by_run.items())}  {name}")
    for claim, by_run in result["claims"].items():
        lines += [f"{claim}, {run}: {one['verdict']}: {one['figure']}" for run, one in by_run.items()]
    return "\n".join(lines)


def all_runs(seeds: Iterable[int] = (0, 1)) -> list[str]:
    """Two bases, three specialists of each."""
    return [f"{seed}/{specialist}" for seed in seeds for specialist in SPECIALISTS]


def main() -> None:
    """Make the parts, print the figures, write the file."""
    parser = options(__doc__)
    parser.add_argument("--runs", nargs="+", default=all_runs(), metavar="BASE/SPECIALIST", help="default: all six")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="default: all, in this order")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keeps models and results (default: temporary)")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="help pages and problems")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few settings: does it run?")
    parser.add_argument("--made", action="store_true", help="compute nothing: write what the cache has")
    given = parser.parse_args()
    settings, told = (QUICK, stories.QUICK) if given.quick else (SETTINGS, stories.SETTINGS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        cache = given.cache or Path(scratch)
        found = run_parts(settings, given.data, cache, given.runs, given.parts, told, given.made)
    result = collect(found, {**settings, "stories260K": told}, given.runs)
    print(summary(result))
    command = f"python experiments/language.py --json OUT --cache DIR --runs {' '.join(given.runs)}"
    record(given.json, {**result, "command": command + (" --quick" if given.quick else "")})


if __name__ == "__main__":
    main()

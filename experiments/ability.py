"""Which rule gives a model its lost ability back, and at what cost to the others?

    python experiments/ability.py --json experiments/results/ability.json [--seeds 0 1 2 3 4] [--cache DIR] [--quick]

*Recovery*: a specialist forgot German; its base is the donor. All settings of each method are tried on validation
records; those on the frontier of recovered German against retained new skills are reported on test records, as the area
under the frontier and as the gain at 95 % retained. *Merging*: siblings in three languages become one model; the
figure is its worst ability. *Tuning*: a light fine-tune with few records, from the target and after each transfer.
*Analysis*: the paper's four claims about the channels.

Models and the result of each seed are kept in the cache folder (remove it after changing code), so seeds can be run one
by one or in parallel; the last run collects them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import torch
from claims import claims
from invented import InventedLab
from measure import options, record
from page import tables
from parts import merge, recover, tuned

from act.lab import regimes, train
from act.lab.frontier import Point
from act.lab.models import tiny_llama
from act.lab.tokenizer import build_tokenizer
from act.models.channels import ChannelSpace

SETTINGS: dict[str, Any] = {
    "tops": [0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.45],
    "strengths": [0.4, 0.55, 0.7, 1.0],
    "merge_tops": [0.02, 0.05, 0.1, 0.2, 0.3],
    "merge_strengths": [0.4, 0.7, 1.0],
    "interpolations": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8],
    "densities": [0.1, 0.2, 0.35, 0.5, 0.7, 0.9],
    "scales": [0.4, 0.6, 0.8, 1.0, 1.3],
    "localize_records": 128,
    "validation_records": 256,
    "test_records": 512,
    "tune_records": [16, 64, 128],
    "tune_steps": [10, 40],
    "tune_rates": [5e-4, 2e-3],
    "tune_starts": [0.95, 0.85, 0.7],
    "tune_methods": ["attribution / cost", "paired", "weight-diff", "interpolation"],
    "base_steps": train.BASE_STEPS,
    "sibling_steps": regimes.SIBLING_STEPS,
}
QUICK = {
    **SETTINGS,
    "tops": [0.05, 0.3],
    "strengths": [1.0],
    "merge_tops": [0.1],
    "merge_strengths": [1.0],
    "interpolations": [0.1, 0.5],
    "densities": [0.5],
    "scales": [1.0],
    "localize_records": 16,
    "validation_records": 24,
    "test_records": 24,
    "tune_records": [8],
    "tune_steps": [2],
    "tune_rates": [2e-3],
    "tune_starts": [0.95],
    "base_steps": 0,  # the models that ship
    "sibling_steps": 2,
}

OURS = ("attribution / cost", "attribution")
"""Our rules. The other rules are scores that need forward passes only; all must beat :data:`CONTROLS`."""
CONTROLS = (
    "random",
    "weight-diff",
    "wrong ability: paired",
    "wrong ability: attribution / cost",
    "wrong ability: match",
    "rows shuffled: paired",
    "rows shuffled: attribution / cost",
    "interpolation",
    "task arithmetic",
    "TIES",
    "DARE",
)
PARTS = {"analysis": claims, "merging": merge, "recovery": recover}
MERGE_CONTROLS = ("random", "weight-diff", "interpolation", "average", "task arithmetic", "TIES", "DARE")


def run_seed(settings: dict[str, Any], cache: Path, seed: int) -> dict[str, Any]:
    """All parts for one seed; what has been made with these settings comes from the cache."""
    lab = InventedLab(settings, cache, seed)
    made = {part: lab.kept(part, partial(make, lab)) for part, make in PARTS.items()}
    return {**made, "tuned": lab.kept("tuned", partial(tuned, lab, made["recovery"]))}


def collect(by_seed: dict[int, dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """What the result file holds: figures by method and seed, and the verdict."""

    def by_method(part: Callable[[dict[str, Any]], dict[str, Any]], field: str) -> dict[str, dict[str, Any]]:
        names = part(next(iter(by_seed.values())))
        return {name: {str(seed): part(one)[name][field] for seed, one in by_seed.items()} for name in names}

    def methods(one: dict[str, Any]) -> dict[str, Any]:
        return one["recovery"]["methods"]

    channels = len(ChannelSpace.from_model(tiny_llama(build_tokenizer(), 0)))
    result = {
        "recovery": by_method(methods, "area"),
        "gain_at_95": by_method(methods, "gain"),
        "retained_at_95": by_method(methods, "retained"),
        "setting_at_95": by_method(methods, "setting"),
        "merging": by_method(lambda one: one["merging"], "worst"),
        "merging_setting": by_method(lambda one: one["merging"], "setting"),
        "tuned": {
            count: {
                start: {
                    str(seed): {key: one["tuned"][count][start][key] for key in Point._fields}
                    for seed, one in by_seed.items()
                }
                for start in starts
            }
            for count, starts in next(iter(by_seed.values()))["tuned"].items()
        },
        "analysis": {str(seed): one["analysis"] for seed, one in by_seed.items()},
        "frontiers": by_method(methods, "frontier"),
        "target": {str(seed): one["recovery"]["before"] for seed, one in by_seed.items()},
        "donor": {str(seed): one["recovery"]["donor"] for seed, one in by_seed.items()},
        "controls": list(CONTROLS),
        "merge_controls": list(MERGE_CONTROLS),
        "channels": {str(top): max(1, round(top * channels)) for top in settings["tops"]},
        "settings": settings,
    }
    return {**result, "verdict": verdict(result)}


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """Our first rule and the best control, for each seed."""

    def against(figures: dict[str, dict[str, float]], controls: Sequence[str]) -> dict[str, list[float]]:
        return {
            seed: [ours, max(figures[control][seed] for control in controls)] for seed, ours in figures[OURS[0]].items()
        }

    return {
        "area, ours and best control": against(result["recovery"], CONTROLS),
        "gain at 95 %, ours and best control": against(result["gain_at_95"], CONTROLS),
        "worst ability after merging, ours and best control": against(result["merging"], MERGE_CONTROLS),
    }


def main() -> None:
    """Run the seeds, print the tables, write the file."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keeps models and results (default: temporary)")
    parser.add_argument("--quick", action="store_true", help="the shipped models and few settings: does it run?")
    given = parser.parse_args()
    settings = QUICK if given.quick else SETTINGS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        cache = given.cache or Path(scratch)
        by_seed = {seed: run_seed(settings, cache, seed) for seed in given.seeds}
    result = collect(by_seed, settings)
    print(tables(result))
    command = "python experiments/ability.py --json OUT --seeds " + " ".join(map(str, given.seeds))
    record(given.json, {**result, "command": command + (" --quick" if given.quick else "")})


if __name__ == "__main__":
    main()

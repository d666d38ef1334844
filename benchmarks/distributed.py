"""Two gloo ranks on two cores against one rank on one core, and what ``plan`` predicts for the latter.

    python benchmarks/distributed.py --json OUT

Seconds are those of the run itself (from the first batch to the last, the slower rank's), without starting Python and
loading the model; rounds take turns.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from measure import act_profile, in_turns, median, options, record
from workloads import write_german

from act.lab.models import CHECKPOINTS
from act.models.loading import load_config
from act.profiling.forward_speed import measure

MODEL = CHECKPOINTS / "base"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
LAUNCHERS = {
    1: ["taskset", "-c", "0", sys.executable, "-m"],
    2: [*TORCHRUN, "2", "--no-python", "sh", "-c", 'exec taskset -c "$LOCAL_RANK" "$0" -m "$@"', sys.executable],
}


def seconds(corpus: Path, folder: Path, ranks: int) -> float:
    """Seconds of one run over so many ranks, each on its own core."""
    return act_profile(
        *("run", "--model", MODEL, "--dtype", "float32", "--corpus", corpus),
        *("--output", folder / f"{ranks}.safetensors", "--count", "all", "--look-ahead", 256, "--force"),
        launcher=LAUNCHERS[ranks],
    )["seconds"]


def main() -> None:
    """Measure and write."""
    parser = options(__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus = write_german(folder, given.records)
        times = in_turns({str(ranks): partial(seconds, corpus, folder, ranks) for ranks in LAUNCHERS}, given.rounds)
    result = {
        "records": given.records,
        "seconds": times,
        "speedup_of_two_ranks": median(times["1"]) / median(times["2"]),
        "planned": measure(load_config(str(MODEL), "float32"), torch.device("cpu")),
    }
    print(result)
    record(given.json, result)


if __name__ == "__main__":
    main()

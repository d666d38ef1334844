"""Two gloo ranks on two cores beside one rank on one core, and what ``plan`` predicts for that one.

python benchmarks/distributed.py --json OUT

Seconds are those of the run itself (from the first batch to the last, the slower rank's), without starting Python and
loading the model; rounds take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import machine, median, write_json

from act.lab.demo import FORGOTTEN
from act.lab.language import examples
from act.lab.models import CHECKPOINTS
from act.models.loading import load_config
from act.profiling.plan import measure

MODEL = CHECKPOINTS / "base"


def seconds(corpus: Path, folder: Path, ranks: int) -> float:
    """One run over ranks, each on a core of its own."""
    output = folder / f"{ranks}.safetensors"
    arguments = [
        *("run", "--model", str(MODEL), "--dtype", "float32", "--corpus", str(corpus), "--output", str(output)),
        *("--count", "all", "--look-ahead", "256", "--force", "--json"),
    ]
    command = [sys.executable, "-m", "act", *arguments]
    if ranks == 1:
        command = ["taskset", "-c", "0", *command]
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--no-python"]
        command = [sys.executable, *torchrun, "sh", "-c", 'exec taskset -c "$LOCAL_RANK" "$@"', "act", *command]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return float(json.loads(line)["seconds"])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[int, list[float]] = {1: [], 2: []}
    records = [
        {"text": f"{record['prompt']} {record['completion']}"} for record in examples(*FORGOTTEN, arguments.records)
    ]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        for _ in range(arguments.rounds):
            for ranks in times:
                times[ranks].append(seconds(corpus, Path(folder), ranks))
    result: dict[str, Any] = {
        "machine": machine(),
        "records": arguments.records,
        "seconds": {str(ranks): each for ranks, each in times.items()},
        "speedup_of_two_ranks": median(times[1]) / median(times[2]),
        "planned": measure(load_config(str(MODEL), "float32"), torch.device("cpu")),
    }
    print({name: value for name, value in result.items() if name != "machine"})
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()

"""How well does ``act-profile plan`` foretell the time of a run?

    python benchmarks/plan.py --json OUT

Each model over each corpus: what ``plan`` says after its 3 seconds of measurement with random weights, and what ``run``
(or ``pair``, against itself at another seed) takes then, both as a user types them, on as many threads.
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
from corpus import GSM8K, train_tokenizer, write_rows
from measure import machine, median, write_json
from overhead import build

from act.lab.demo import FORGOTTEN
from act.lab.language import examples
from act.lab.models import CHECKPOINTS


def act_profile(threads: int, *arguments: Any) -> dict[str, Any]:
    """The JSON that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "act", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    return json.loads(done.stdout.splitlines()[-1])


def demo_corpus(folder: Path, records: int) -> Path:
    """German records of the demo, as text."""
    path = folder / "german.jsonl"
    lines = [{"text": f"{record['prompt']} {record['completion']}"} for record in examples(*FORGOTTEN, records)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def save(folder: Path, shape: str, corpus: Path) -> list[Path]:
    """Donor and target of a shape of ``overhead.py``, with a tokenizer of the corpus."""
    places = [folder / f"{shape}-{seed}" for seed in range(2)]
    for seed, place in enumerate(places):
        model: Any = build(shape, torch.bfloat16, seed)
        model.save_pretrained(place)
        train_tokenizer(corpus, model.config.vocab_size).save_pretrained(place)
    return places


def compare(name: str, models: list[Path], corpus: Path, count: str, rounds: int, threads: int) -> dict[str, Any]:
    """Foretold and measured seconds of one run; medians of rounds that take turns."""
    pair = len(models) == 2
    foretold, measured = [], []
    with tempfile.TemporaryDirectory() as folder:
        output = ["--output", f"{folder}/profile.safetensors", "--force", "--count", count, "--corpus", corpus]
        command = ["pair", "--donor", models[0], "--target", models[1]] if pair else ["run", "--model", models[0]]
        for _ in range(rounds):
            plan = ["plan", "--model", models[0], "--corpus", corpus, "--count", count, *(["--pair"] if pair else [])]
            foretold.append(act_profile(threads, *plan))
            measured.append(act_profile(threads, *command, *output))
    says, takes = median([each["seconds_here"] for each in foretold]), median([each["seconds"] for each in measured])
    result = {
        "model": name,
        "run": command[0],
        "count": count,
        "tokens": measured[0]["tokens"],
        "counted": measured[0]["counted"],
        "mean_length": round(foretold[0]["corpus"]["mean_length"], 1),
        "foretold_seconds": round(says, 2),
        "measured_seconds": round(takes, 2),
        "measured_over_foretold": round(takes / says, 3),
    }
    print(result, flush=True)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="of GSM8K, or like it, for the small model")
    parser.add_argument("--records", type=int, default=20_000, help="of the demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        german = demo_corpus(folder, options.records)
        rows = write_rows(folder, "gsm8k" if GSM8K.is_file() else "synthetic", options.rows)
        small = save(folder, "small", rows)
        demo = [CHECKPOINTS / "base", CHECKPOINTS / "target"]
        runs = [("demo", demo[:1], german, "all"), ("demo", demo, german, "all")]
        runs += [
            ("small", small[:1], rows, "all"),
            ("small", small[:1], rows, "answer"),
            ("small", small, rows, "answer"),
        ]
        results = [compare(*run, options.rounds, options.threads) for run in runs]
    write_json(options.json, {"machine": machine(), "threads": options.threads, "runs": results})


if __name__ == "__main__":
    main()

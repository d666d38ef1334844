"""How well does ``act-profile plan`` predict the time of a run?

    python benchmarks/plan.py --json OUT

Each model over each corpus: what ``plan`` says after its 3 seconds of measurement with random weights, and what ``run``
(or ``pair``, against itself at another seed) then takes, both as a user types them, with as many threads. The fields
``foretold_seconds`` and ``measured_over_foretold`` of the JSON are about the prediction.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import act_profile, in_turns, median, options, record
from workloads import GSM8K, build, train_tokenizer, write_conversations, write_german

from act.lab.models import CHECKPOINTS


def save(folder: Path, shape: str, corpus: Path) -> list[Path]:
    """Donor and target of a shape of ``overhead.py``, with a tokenizer of the corpus."""
    places = [folder / f"{shape}-{seed}" for seed in range(2)]
    for seed, place in enumerate(places):
        model = build(shape, torch.bfloat16, seed)
        model.save_pretrained(place)
        train_tokenizer(corpus, model.config.vocab_size).save_pretrained(place)
    return places


def compare(name: str, models: list[Path], corpus: Path, count: str, rounds: int, threads: int) -> dict[str, Any]:
    """Predicted and measured seconds of one run; medians of rounds that take turns."""
    pair = len(models) == 2
    command = ["pair", "--donor", models[0], "--target", models[1]] if pair else ["run", "--model", models[0]]
    plan = ["plan", "--model", models[0], *(["--pair"] if pair else [])]
    shared = ["--corpus", corpus, "--count", count]
    with tempfile.TemporaryDirectory() as folder:
        output = ["--output", f"{folder}/profile.safetensors", "--force"]
        calls = {
            "plan": partial(act_profile, *plan, *shared, threads=threads),
            "run": partial(act_profile, *command, *shared, *output, threads=threads),
        }
        found = in_turns(calls, rounds)
    predicted = median([each["seconds_here"] for each in found["plan"]])
    measured = median([each["seconds"] for each in found["run"]])
    result = {
        "model": name,
        "run": command[0],
        "count": count,
        "tokens": found["run"][0]["tokens"],
        "counted": found["run"][0]["counted"],
        "mean_length": round(found["plan"][0]["corpus"]["mean_length"], 1),
        "foretold_seconds": round(predicted, 2),
        "measured_seconds": round(measured, 2),
        "measured_over_foretold": round(measured / predicted, 3),
    }
    print(result, flush=True)
    return result


def main() -> None:
    """Measure and write."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=256, help="of GSM8K, or like it, for the small model")
    parser.add_argument("--records", type=int, default=20_000, help="of the demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        german = write_german(folder, given.records)
        rows = write_conversations(folder, "gsm8k" if GSM8K.is_file() else "synthetic", given.rows)
        small, demo = save(folder, "small", rows), [CHECKPOINTS / "base", CHECKPOINTS / "target"]
        runs = [
            ("demo", demo[:1], german, "all"),
            ("demo", demo, german, "all"),
            ("small", small[:1], rows, "all"),
            ("small", small[:1], rows, "answer"),
            ("small", small, rows, "answer"),
        ]
        results = [compare(*run, given.rounds, given.threads) for run in runs]
    record(given.json, {"threads": given.threads, "runs": results})


if __name__ == "__main__":
    main()

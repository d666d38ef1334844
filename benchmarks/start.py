"""How long does it take to start: an import, a help text, the demo, and a run of a model of 1 GB up to its first batch?

    python benchmarks/start.py --json OUT

Seconds of wall time and of CPU, medians of processes on one thread each. The demo (in the invented language) is without
the import of torch and transformers; the first batch also without the loading of the weights, those of a Llama at
random.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import DTYPES, median, options, record
from transformers import LlamaConfig, LlamaForCausalLM
from workloads import write_lines

from act.lab.language import examples
from act.lab.tokenizer import build_tokenizer

COMMANDS = ("run", "pair", "rank", "transfer", "plan", "evaluate", "recipe", "demo")
IMPORTS = "import act.lab.demo, transformers.models.llama.modeling_llama"

Seconds = dict[str, float]


def process(*arguments: str, cwd: Path | None = None) -> tuple[Seconds, str]:
    """Seconds of one Python process, and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 3), "cpu_seconds": round(work, 3)}, done.stdout


def medians(times: list[Seconds]) -> Seconds:
    """The median of each figure."""
    return {name: round(median([each[name] for each in times]), 3) for name in times[0]}


def make_model(folder: Path, layers: int, dtype: torch.dtype) -> float:
    """Write a Llama of 0.44 billion parameters at 24 layers and a corpus for it; its size in GB."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.set_default_dtype(dtype)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    drawn = examples("English", ("copy", "sort"), 256)
    write_lines(folder / "corpus.jsonl", ({"text": f"{each['prompt']} {each['completion']}"} for each in drawn))
    return sum(each.numel() * each.element_size() for each in model.parameters()) / 1e9


def first_batch(layers: int, dtype: str, rounds: int) -> dict[str, Any]:
    """The way to the first batch, by part."""
    script = str(Path(__file__).with_name("first_batch.py"))
    run = ["run", "--model", "model", "--corpus", "corpus.jsonl", "--output", "profile.safetensors"]
    with tempfile.TemporaryDirectory() as scratch:
        size = make_model(Path(scratch), layers, DTYPES[dtype])
        found = [json.loads(process(script, "act-profile", *run, cwd=Path(scratch))[1]) for _ in range(rounds)]
    parts = {part: medians([each[part] for each in found]) for part in found[0]}
    return {"model_gb": round(size, 2), "dtype": dtype, **parts}


def main() -> None:
    """Measure and write."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24, help="of the model")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the model")
    given = parser.parse_args()

    def timed(*arguments: str, cwd: Path | None = None) -> Seconds:
        return medians([process(*arguments, cwd=cwd)[0] for _ in range(given.rounds)])

    result: dict[str, Any] = {"machine_load": round(os.getloadavg()[0], 1)}
    result |= {"python": timed("-c", "pass"), "import_act": timed("-c", "import act")}
    result["help"] = {command: timed("-m", "act", command, "--help") for command in COMMANDS}
    slowest = max(result["help"], key=lambda command: result["help"][command]["seconds"])
    result["slowest_help"] = {"command": slowest, **result["help"][slowest]}
    imports = timed("-c", IMPORTS)
    with tempfile.TemporaryDirectory() as scratch:
        whole = timed("-m", "act", "demo", "--language", "invented", cwd=Path(scratch))
    beyond = {name: round(whole[name] - imports[name], 3) for name in whole}
    result["demo"] = {"whole": whole, "imports": imports, "beyond": beyond}
    result["first_batch"] = first_batch(given.layers, given.dtype, given.rounds)
    print(json.dumps(result, indent=1))
    record(given.json, result)


if __name__ == "__main__":
    main()

"""Does the memory of a run grow with the corpus?

    python benchmarks/memory.py --json OUT

Peak resident memory of ``act-profile run`` and ``pair``, each in a process of its own, on a corpus and on ten times it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import machine, write_json
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 500


def make_models(folder: Path) -> None:
    """Donor and target: 2 M random parameters, with a tokenizer of one token a word."""
    config = LlamaConfig(
        hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, vocab_size=WORDS
    )
    vocabulary = {"<pad>": 0, **{f"w{i}": i for i in range(1, WORDS)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    for seed, name in enumerate(("donor", "target")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_corpus(path: Path, tokens: int) -> None:
    """Texts of 20 to 119 tokens."""
    generator = torch.Generator().manual_seed(0)
    with path.open("w") as file:
        while tokens > 0:
            length = int(torch.randint(20, 120, (1,), generator=generator))
            words = torch.randint(1, WORDS, (length,), generator=generator).tolist()
            file.write(json.dumps({"text": " ".join(f"w{word}" for word in words)}) + "\n")
            tokens -= length


def peak_megabytes(arguments: list[str]) -> float:
    """Peak resident memory of ``python -m act`` with these arguments."""
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "act", *arguments])
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"act {' '.join(arguments)} failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Print and write the peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of the smaller corpus")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_models(folder)
        for factor in (1, 10):
            write_corpus(folder / f"{factor}.jsonl", factor * options.tokens)
        donor, target = str(folder / "donor"), str(folder / "target")
        for command, models_of in (("run", ["--model", target]), ("pair", ["--donor", donor, "--target", target])):
            peaks = [
                peak_megabytes(
                    [
                        command,
                        *models_of,
                        "--corpus",
                        str(folder / f"{factor}.jsonl"),
                        "--output",
                        str(folder / f"{command}{factor}"),
                        "--json",
                    ]
                )
                for factor in (1, 10)
            ]
            results.append(
                {
                    "command": command,
                    "tokens": options.tokens,
                    "peak_mb": peaks[0],
                    "peak_mb_at_10x": peaks[1],
                    "ratio": round(peaks[1] / peaks[0], 4),
                }
            )
            print(results[-1])
    write_json(options.json, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()

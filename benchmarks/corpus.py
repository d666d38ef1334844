"""From a file to a profile: how fast, compared with the script one would write, and with how much padding and memory?

    python benchmarks/corpus.py --json OUT

End to end: read JSONL, tokenise through a chat template, forward the small model of ``overhead.py``, statistics.
``script`` is what most people write: rows in the order of the file, ``--batch`` at a time, padded to the longest of
their batch; ``model(**batch)`` with its logits; hooks with float32 sum and sum of squares on every linear. ``nnsight``
does the same through nnsight. ``act`` writes all statistics of all sites, the LM head's too, to a profile: of every
token (``all``, as the script does; the ratios are of this one), or of the answers (``answer``, the default); ``packed``
is ``all`` with the texts in one row, without padding.

Corpora: GSM8K training rows, if ``../shared/data`` is beside the checkout, and synthetic conversations.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from baselines import Run, by_nnsight, by_sums
from measure import DTYPES, Call, in_turns, medians, options, record, seconds_of
from memory import peak_of
from transformers import PreTrainedTokenizerBase
from workloads import GSM8K, build, read_lines, train_tokenizer, write_conversations

import act
from act.data.stream import Stream


def padded(path: Path, tokenizer: PreTrainedTokenizerBase, batch: int) -> Iterator[dict[str, torch.Tensor]]:
    """Rows as they come, ``batch`` at a time."""
    rows = read_lines(path)
    for start in range(0, len(rows), batch):
        texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows[start : start + batch]]
        yield dict(tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False))


@torch.inference_mode()
def script(run: Run, path: Path, tokenizer: PreTrainedTokenizerBase, batch: int) -> None:
    """What most people write: every batch through a model with hooks."""
    for inputs in padded(path, tokenizer, batch):
        run(**inputs)


def padding_share(path: Path, tokenizer: PreTrainedTokenizerBase, budget: int) -> float:
    """The share of padding among the tokens that the model reads."""
    batches = list(Stream({"": act.Corpus.from_file(path, tokenizer)}, token_budget=budget))
    return 1 - sum(batch.tokens for batch in batches) / sum(batch.size for batch in batches)


def measure(
    name: str, rows: int, batches: list[int], rounds: int, budget: int, threads: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Medians over rounds in which the ways take turns on the same file."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = write_conversations(folder, name, rows)
        whole = write_conversations(folder / "whole", name, 2000)
        # Hooks of one way must not slow another: each has its own copy of the model.
        model, for_hooks, for_nnsight = (build("small", dtype) for _ in range(3))
        tokenizer = train_tokenizer(path, model.config.vocab_size)
        tokens = sum(len(encoded.input_ids) for encoded in act.Corpus.from_file(path, tokenizer, count="all").encoded())
        profiles: dict[str, act.Profile] = {}

        def profiled(count: Literal["all", "answer"], packing: Literal["on", "off"] = "off") -> None:
            corpus = act.Corpus.from_file(path, tokenizer, count=count)
            profiles[count] = act.profile(model, corpus, packing=packing)
            profiles[count].save(folder / f"{count}.safetensors", force=True)

        hooks, nnsight = by_sums(for_hooks, head=True), by_nnsight(for_nnsight, head=True)
        ways: dict[str, Call] = {
            "packed": lambda: profiled("all", "on"),
            "all": lambda: profiled("all"),
            "answer": lambda: profiled("answer"),
            **{f"script {batch}": partial(script, hooks, path, tokenizer, batch) for batch in batches},
        }
        if nnsight is not None:
            ways["nnsight"] = partial(script, nnsight, path, tokenizer, batches[0])
        middle = medians(in_turns({way: partial(seconds_of, call) for way, call in ways.items()}, rounds))
        measured = profiles["all"].provenance.corpora[0]
        by_batch = {str(batch): round(middle[f"script {batch}"] / middle["all"], 3) for batch in batches}
        slots = {
            batch: sum(inputs["input_ids"].numel() for inputs in padded(path, tokenizer, batch)) for batch in batches
        }
        return {
            "corpus": name,
            "rows": rows,
            "tokens": tokens,
            "threads": threads,
            "dtype": str(dtype).removeprefix("torch."),
            "batch": batches[0],
            "ratio_over_hook_script": by_batch[str(batches[0])],
            "ratio_over_hook_script_answers": round(middle[f"script {batches[0]}"] / middle["answer"], 3),
            "ratio_over_hook_script_by_batch": by_batch,
            "ratio_over_nnsight": round(middle["nnsight"] / middle["all"], 3) if "nnsight" in middle else None,
            "padding_budget": budget,
            "padding_share": round(padding_share(whole, tokenizer, budget), 4),
            "padding_share_script": {str(batch): round(1 - tokens / size, 4) for batch, size in slots.items()},
            "busy_share": round(1 - measured.waited / measured.seconds, 4),
            "tokens_per_second": {way: round(tokens / value, 1) for way, value in middle.items()},
        }


def feeding(rows: int) -> dict[str, float]:
    """Tokens per second of reading, tokenising and batching alone, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        path = write_conversations(Path(scratch), "synthetic", rows)
        stream = Stream({"": act.Corpus.from_file(path, train_tokenizer(path, 8192))}, token_budget=8192)
        counted: list[int] = []
        seconds = seconds_of(lambda: counted.extend(batch.tokens for batch in stream))
        return {"tokens_per_second": round(sum(counted) / seconds, 1)}


def main() -> None:
    """Print and write what was measured."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=384, help="rows of the timed runs; padding is that of 2000")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 8, 32], help="rows per batch of the script")
    parser.add_argument("--budget", type=int, default=8192, help="tokens per batch, for the share of padding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="float32 is faster where a CPU emulates bfloat16"
    )
    parser.add_argument("--corpus", choices=("gsm8k", "synthetic"), nargs="*", default=["gsm8k", "synthetic"])
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="TOKENS", help="peaks of such corpora")
    given = parser.parse_args()
    dtype, results = DTYPES[given.dtype], []
    for name in given.corpus:
        if name == "gsm8k" and not GSM8K.is_file():
            print(f"skipped: {GSM8K} does not exist")
            continue
        for threads in given.threads:
            results.append(measure(name, given.rows, given.batch, given.rounds, given.budget, threads, dtype))
            print(json.dumps(results[-1]), flush=True)
    # The first corpus with the most threads goes to the top.
    of_first = [each for each in results if each["corpus"] == results[0]["corpus"]]
    first = max(of_first, key=lambda each: each["threads"], default={})
    rest: dict[str, Any] = {"feeding": feeding(2000)}
    if given.memory:
        rest["peak_megabytes"] = {f"{size:.0e}": round(peak_of("run", size), 1) for size in given.memory}
    print(json.dumps(rest))
    record(given.json, {**first, "corpora": results, **rest})


if __name__ == "__main__":
    main()

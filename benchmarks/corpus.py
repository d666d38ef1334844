"""From a file to a profile: how fast beside the script one would write, and at what padding and memory?

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

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, median, write_json
from memory import make_models, peak_megabytes, write_corpus
from overhead import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

import act
from act.data.stream import Stream

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k_train_2k.jsonl"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_rows(folder: Path, corpus: str, rows: int) -> Path:
    """The first rows of GSM8K, or conversations whose lengths are log-normal, as in GSM8K, of 8,000 words."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{corpus}.jsonl"
    if corpus == "gsm8k":
        lines = GSM8K.read_text(encoding="utf-8").splitlines()[:rows]
    else:
        generator = np.random.default_rng(0)
        words = [f"w{number}" for number in range(8000)]

        def text() -> str:
            return " ".join(generator.choice(words, max(5, int(generator.lognormal(4.3, 0.45)))))

        lines = [
            json.dumps({"messages": [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]})
            for _ in range(rows)
        ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def train_tokenizer(path: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((turn["content"] for row in read(path) for turn in row["messages"]), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", additional_special_tokens=special[2:]
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def padded(path: Path, tokenizer: Any, batch: int) -> Iterator[dict[str, torch.Tensor]]:
    """Rows as they come, ``batch`` at a time."""
    rows = list(read(path))
    for start in range(0, len(rows), batch):
        texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows[start : start + batch]]
        yield dict(tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False))


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear, in the order of computation for these models."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def script(model: nn.Module, path: Path, tokenizer: Any, batch: int) -> dict[str, list[torch.Tensor]]:
    """What most people write."""
    sums: dict[str, list[torch.Tensor]] = {}

    def accumulate(name: str, output: torch.Tensor) -> None:
        x = output.flatten(0, -2).float()
        new = [x.sum(0), (x * x).sum(0)]
        sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: accumulate(name, output))
        for name, module in linears(model).items()
    ]
    with torch.inference_mode():
        for inputs in padded(path, tokenizer, batch):
            model(**inputs)
    for handle in handles:
        handle.remove()
    return sums


def by_nnsight(model: nn.Module, path: Path, tokenizer: Any, batch: int) -> None:
    """The same through nnsight."""
    import nnsight

    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda _, __, ___, name=name: order.append(name))
        for name, module in linears(model).items()
    ]
    with torch.inference_mode():
        model(input_ids=torch.ones((1, 2), dtype=torch.long))
    for handle in handles:
        handle.remove()
    wrapped = nnsight.NNsight(model)
    sums: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        for inputs in padded(path, tokenizer, batch):
            with wrapped.trace(**inputs):
                saved = nnsight.save([])
                for name in order:
                    x = wrapped.get(name).output.flatten(0, -2).float()
                    saved.append([x.sum(0), (x * x).sum(0)])
            sums = (
                [[a + b for a, b in zip(*two, strict=True)] for two in zip(sums, saved, strict=True)] if sums else saved
            )


def padding_share(path: Path, tokenizer: Any, budget: int) -> float:
    """Of the tokens that the model would read, those that pad."""
    batches = list(Stream({"": act.Corpus.from_file(path, tokenizer)}, token_budget=budget))
    return 1 - sum(batch.tokens for batch in batches) / sum(batch.size for batch in batches)


def measure(name: str, rows: int, batches: list[int], rounds: int, budget: int, threads: int) -> dict[str, Any]:
    """Medians of rounds in which the ways take turns on the same file."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = write_rows(folder, name, rows)
        whole = write_rows(folder / "whole", name, 2000)
        # Hooks of one way must not slow another: each has its own copy of the model.
        model, hooked, traced = (build("small", torch.bfloat16) for _ in range(3))
        tokenizer = train_tokenizer(path, model.config.vocab_size)  # type: ignore[union-attr]
        tokens = sum(len(encoded.input_ids) for encoded in act.Corpus.from_file(path, tokenizer, count="all").encoded())
        profiles: dict[str, Any] = {}

        def profiled(count: str, packing: str = "off") -> None:
            corpus = act.Corpus.from_file(path, tokenizer, count=count)
            profiles[count] = act.profile(model, corpus, packing=packing)
            profiles[count].save(folder / f"{count}.safetensors", force=True)

        ways: dict[str, Callable[[], Any]] = {
            "packed": lambda: profiled("all", "on"),
            "all": lambda: profiled("all"),
            "answer": lambda: profiled("answer"),
        }
        for batch in batches:
            ways[f"script {batch}"] = partial(script, hooked, path, tokenizer, batch)
        if importlib.util.find_spec("nnsight") is not None:
            ways["nnsight"] = lambda: by_nnsight(traced, path, tokenizer, batches[0])
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, call in ways.items():
                start = time.perf_counter()
                call()
                times[way].append(time.perf_counter() - start)
        middle = {way: median(values) for way, values in times.items()}
        measured = profiles["all"].provenance.corpora[0]
        script_seconds = {batch: middle[f"script {batch}"] for batch in batches}
        return {
            "corpus": name,
            "rows": rows,
            "tokens": tokens,
            "threads": threads,
            "batch": batches[0],
            "ratio_over_hook_script": round(script_seconds[batches[0]] / middle["all"], 3),
            "ratio_over_hook_script_answers": round(script_seconds[batches[0]] / middle["answer"], 3),
            "ratio_over_hook_script_by_batch": {
                str(batch): round(seconds / middle["all"], 3) for batch, seconds in script_seconds.items()
            },
            "ratio_over_nnsight": round(middle["nnsight"] / middle["all"], 3) if "nnsight" in middle else None,
            "padding_budget": budget,
            "padding_share": round(padding_share(whole, tokenizer, budget), 4),
            "padding_share_script": {
                str(batch): round(1 - tokens / slots(path, tokenizer, batch), 4) for batch in batches
            },
            "busy_share": round(1 - measured.waited / measured.seconds, 4),
            "tokens_per_second": {way: round(tokens / value, 1) for way, value in middle.items()},
        }


def slots(path: Path, tokenizer: Any, batch: int) -> int:
    """Tokens that the script reads, padding included."""
    return sum(inputs["input_ids"].numel() for inputs in padded(path, tokenizer, batch))


def feeding(rows: int) -> dict[str, float]:
    """Tokens a second that reading, tokenising and batching alone give, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        path = write_rows(Path(scratch), "synthetic", rows)
        tokenizer = train_tokenizer(path, 8192)
        start = time.perf_counter()
        tokens = sum(batch.tokens for batch in Stream({"": act.Corpus.from_file(path, tokenizer)}))
        return {"tokens_per_second": round(tokens / (time.perf_counter() - start), 1)}


def memory(sizes: list[int]) -> dict[str, float]:
    """Peak resident megabytes of ``act-profile run`` on corpora of so many tokens."""
    peaks = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_models(folder)
        for size in sizes:
            write_corpus(folder / "corpus.jsonl", size)
            arguments = ["run", "--model", str(folder / "target"), "--corpus", str(folder / "corpus.jsonl")]
            peaks[f"{size:.0e}"] = round(
                peak_megabytes([*arguments, "--output", str(folder / "profile"), "--force", "--json"]), 1
            )
    return peaks


def main() -> None:
    """Print and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=384, help="rows of the timed runs; padding is that of 2000")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 8, 32], help="rows a batch of the script")
    parser.add_argument("--budget", type=int, default=8192, help="tokens a batch, for the share of padding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--corpus", choices=("gsm8k", "synthetic"), nargs="*", default=["gsm8k", "synthetic"])
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="TOKENS", help="peaks for these corpora")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    results = []
    for name in options.corpus:
        if name == "gsm8k" and not GSM8K.is_file():
            print(f"skipped: {GSM8K} is not there")
            continue
        for threads in options.threads:
            results.append(measure(name, options.rows, options.batch, options.rounds, options.budget, threads))
            print(json.dumps(results[-1]), flush=True)
    # At the top: the first corpus on most threads.
    first = max((each for each in results if each["corpus"] == results[0]["corpus"]), key=lambda each: each["threads"])
    result: dict[str, Any] = {**first, "corpora": results, "feeding": feeding(2000)}
    if options.memory:
        result["peak_megabytes"] = memory(options.memory)
    print(json.dumps({key: result[key] for key in ("feeding", "peak_megabytes") if key in result}))
    write_json(options.json, {**result, "machine": machine()})


if __name__ == "__main__":
    main()

"""How near is a profiled run to the limit, the time of the matrix products and the attention of its forward alone?

    python benchmarks/limit.py --json OUT

GSM8K as tokens, answers counted: ``act.profile``, from tokens in to the profile out, takes turns with ``bare``, which
runs the products of every linear, attention over the same rows, and the LM head for counted tokens, batch by batch in
the shapes of that run and with the same threads, and nothing else: no norm, no activation, no sum, no statistics.
``share_of_bare`` is its time over that of the run. ``rest`` says what else the run spends, as shares of its time:
``start`` until the first batch (the probe above all), ``waited`` for batches, and what a plain forward of the same
batches takes beyond the bare products (``forward``: norms, activations, rotary embedding, sums).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import DTYPES, Call, in_turns, medians, options, record, seconds_of
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import PreTrainedModel
from workloads import build, train_tokenizer, write_conversations

import act
from act.data.batching import Batch
from act.data.stream import Stream
from act.profiles.provenance import CorpusRead


def bare(model: PreTrainedModel) -> Callable[[Batch], None]:
    """The products of a Llama-like model with a batch, on made-up inputs of the right shapes."""
    config, dtype = model.config, model.dtype
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    layers = [
        [module.weight for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        for layer in model.model.layers
    ]
    head = model.lm_head.weight

    def run(batch: Batch) -> None:
        rows, length = batch.count_mask.shape
        x = torch.zeros(rows, length, config.hidden_size, dtype=dtype)
        inner = torch.zeros(rows, length, config.intermediate_size, dtype=dtype)
        for q, k, v, o, gate, up, down in layers:
            queries = linear(x, q).view(rows, length, heads, -1).transpose(1, 2)
            keys, values = (linear(x, w).view(rows, length, groups, -1).transpose(1, 2) for w in (k, v))
            attended = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
            linear(attended.transpose(1, 2).flatten(2), o)
            linear(x, gate)
            linear(x, up)
            linear(inner, down)
        linear(x[batch.count_mask], head)

    return run


def forward(model: PreTrainedModel, batch: Batch) -> None:
    """A plain forward, with the LM head for counted tokens."""
    hidden = model.model(input_ids=batch.inputs["input_ids"], use_cache=False).last_hidden_state
    model.lm_head(hidden[batch.count_mask])


def measure(name: str, dtype: torch.dtype, threads: int, rows: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which the run, the bare products and the plain forward take turns."""
    torch.set_num_threads(threads)
    model = build(name, dtype)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_conversations(Path(scratch), "gsm8k", rows)
        tokenizer = train_tokenizer(path, model.config.vocab_size)
        encoded = act.Corpus.from_file(path, tokenizer).encoded()
        records = [
            {"input_ids": each.input_ids.tolist(), "loss_mask": each.answer.astype(int).tolist()} for each in encoded
        ]
    corpus = act.Corpus.from_records(records, tokenizer)
    batches = list(Stream({"": corpus}, token_budget=2048))
    products = bare(model)
    runs: list[tuple[float, CorpusRead]] = []

    @torch.inference_mode()
    def over(call: Callable[[Batch], Any]) -> None:
        for batch in batches:
            call(batch)

    def profiled() -> None:
        begun = time.perf_counter()
        profile = act.profile(model, corpus, shared_prefix="off")
        runs.append((time.perf_counter() - begun, profile.provenance.corpora[0]))

    calls: dict[str, Call] = {
        "act": profiled,
        "bare": partial(over, products),
        "forward": partial(over, partial(forward, model)),
    }
    middle = medians(in_turns({way: partial(seconds_of, call) for way, call in calls.items()}, rounds))
    whole = middle["act"]
    started = statistics.median(seconds - read.seconds for seconds, read in runs)
    waited, tokens = statistics.median(read.waited for _, read in runs), runs[0][1].tokens
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "share_of_bare": round(middle["bare"] / whole, 3),
        "rest": {
            "start": round(started / whole, 3),
            "waited": round(waited / whole, 3),
            "forward": round((middle["forward"] - middle["bare"]) / whole, 3),
        },
        "tokens": tokens,
        "tokens_per_second": round(tokens / whole, 1),
        "seconds": {way: round(seconds, 3) for way, seconds in middle.items()},
    }


def main() -> None:
    """Print and write what was measured."""
    parser = options(__doc__)
    parser.add_argument("--model", choices=("small", "medium"), nargs="+", default=["small", "medium"])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    results = []
    for name in given.model:
        for dtype in given.dtype:
            for threads in given.threads:
                results.append(measure(name, DTYPES[dtype], threads, given.rows, given.rounds))
                print(json.dumps(results[-1]), flush=True)
    record(given.json, {"results": results})


if __name__ == "__main__":
    main()

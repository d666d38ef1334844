"""What does attribution cost, against one forward and backward with the gradients of all parameters?

    python benchmarks/attribute.py --json OUT

A donor and a target of about 1 B random parameters (``--layers``, ``--hidden``, ``--mlp`` change that). Each way runs
in a process of its own over the same text: peak resident memory beyond the weights, and seconds for each token.
``plain`` is what an optimiser would need before it has any state; ``--dtype`` and ``--tokens`` say how much.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch
from measure import DTYPES, options, record, seconds_of
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import act
from act.models.channels import ChannelSpace
from act.profiling.plan import Shape

WAYS = ("plain", "attribute", "attribute, kept activations")


def model_of(given: Any, seed: int) -> LlamaForCausalLM:
    """A Llama of random weights."""
    config = LlamaConfig(
        hidden_size=given.hidden,
        intermediate_size=given.mlp,
        num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // 64,
        vocab_size=given.vocabulary,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[given.dtype])
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.eval()
    return model


def batch_of(given: Any) -> dict[str, torch.Tensor]:
    """Rows of tokens, all of which count."""
    generator = torch.Generator().manual_seed(0)
    rows = max(1, given.tokens // given.length)
    return {"input_ids": torch.randint(0, given.vocabulary, (rows, given.length), generator=generator)}


def plain(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> None:
    """One forward and backward with all gradients."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").backward()


def peak() -> float:
    """Peak resident megabytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(way: str, given: Any) -> dict[str, Any]:
    """Figures of one way, in this process."""
    target, batch = model_of(given, 0), batch_of(given)
    donor = None if way == "plain" else model_of(given, 1)
    before = peak()
    tokens = batch["input_ids"].numel()
    if donor is None:
        seconds = seconds_of(lambda: plain(target, batch))
    else:
        kept = way != "attribute"
        found = act.attribute(donor, target, [batch], token_budget=tokens, recompute=not kept)
        seconds = found.provenance.corpora[0].seconds
    return {
        "way": way,
        "dtype": given.dtype,
        "parameters": sum(parameter.numel() for parameter in target.parameters()),
        "tokens": tokens,
        "ms_a_token": round(1e3 * seconds / tokens, 3),
        "weights_mb": round(before, 1),
        "peak_mb": round(peak(), 1),
        "beyond_weights_mb": round(peak() - before, 1),
    }


def planned(given: Any) -> dict[str, float]:
    """What ``plan --attribute`` foretells, in megabytes by part."""
    with torch.device("meta"):
        model = model_of(given, 0)
    space = ChannelSpace.from_model(model)
    return {name: round(size / 2**20, 1) for name, size in Shape.of(model, space).attributing(given.tokens).items()}


def main() -> None:
    """Run every way in a process of its own, print and write the figures."""
    import subprocess

    parser = options(__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--mlp", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--way", choices=WAYS, help="run this one here and print its figures as JSON")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(one(given.way, given)))
        return
    results, start = [], time.perf_counter()
    for way in WAYS:
        done = subprocess.run([sys.executable, *sys.argv, "--way", way], capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(results[-1], f"{time.perf_counter() - start:.0f} s")
    record(given.json, {"dtype": given.dtype, "results": results, "planned_mb": planned(given)})


if __name__ == "__main__":
    main()

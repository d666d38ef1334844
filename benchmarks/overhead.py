"""What does profiling cost, beside the plain forward of the same model and what one would write otherwise?

    python benchmarks/overhead.py --model small --dtype bfloat16 --threads 1 --json OUT

All six statistics of all sites except the LM head. ``plain`` is the stock forward with its logits, ``profiled`` the
same batch through ``Taps.forward``; the LM head, whose channels are not wanted, does not run there, so ``body`` (the
stock forward without its head) stands beside it. ``hooks`` keep float32 sum and sum of squares of every linear,
``var_mean`` hooks use ``torch.var_mean``, ``nnsight`` (if installed) saves sum and sum of squares of every linear.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, machine, median, spread, write_json
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.taps.lockstep import lockstep
from act.taps.taps import taps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QWEN2 = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 8192, "max_position_embeddings": 1024}


def build(name: str, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """A model of random weights: ``tiny`` of the demo's shape, ``small`` and ``medium`` of Qwen2's."""
    torch.manual_seed(seed)
    if name == "tiny":
        shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=101)).to(dtype).eval()
    hidden, inner, layers = {"small": (512, 2048, 8), "medium": (1024, 4096, 6)}[name]
    config = Qwen2Config(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, **QWEN2)
    return Qwen2ForCausalLM(config).to(dtype).eval()


@contextlib.contextmanager
def hooked(model: nn.Module, accumulate: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Forward hooks on every linear but the LM head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: accumulate(name, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_sums(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    """The hooks most people write: float32 sum and sum of squares."""
    sums: dict[str, list[torch.Tensor]] = {}

    def accumulate(name: str, output: torch.Tensor) -> None:
        x = output.flatten(0, -2).float()
        new = [x.sum(0), (x * x).sum(0)]
        sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new

    def run() -> None:
        with hooked(model, accumulate):
            model(**inputs, use_cache=False)

    return run


def by_var_mean(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    """The same by ``torch.var_mean`` of each batch."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def accumulate(name: str, output: torch.Tensor) -> None:
        found[name] = torch.var_mean(output.flatten(0, -2).float(), dim=0)

    def run() -> None:
        with hooked(model, accumulate):
            model(**inputs, use_cache=False)

    return run


def by_nnsight(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None] | None:
    """Sum and sum of squares of every linear through nnsight, None where it is not installed."""
    if importlib.util.find_spec("nnsight") is None:
        return None
    import nnsight

    wrapped = nnsight.NNsight(model)
    order: list[str] = []
    with hooked(model, lambda name, _: order.append(name)):
        model(**inputs, use_cache=False)

    def run() -> None:
        with wrapped.trace(**inputs, use_cache=False):
            saved = []
            for name in order:
                x = wrapped.get(name).output.flatten(0, -2).float()
                saved.append((x.sum(0).save(), (x * x).sum(0).save()))

    return run


@contextlib.contextmanager
def calls_of(name: str, dtype: str, batch: int = 8, length: int = 256) -> Iterator[dict[str, Callable[[], Any]]]:
    """Every way of running one batch, ready to be timed."""
    model, donor = (build(name, DTYPES[dtype], seed) for seed in (0, 1))
    # Taps stay on copies of their own, or they would slow the others.
    tapped_model, pair_target = (build(name, DTYPES[dtype]) for _ in range(2))
    vocabulary = model.config.vocab_size  # type: ignore[union-attr]
    ids = torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    count_mask = torch.ones_like(ids, dtype=torch.bool)
    space = ChannelSpace.from_model(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        tapped = stack.enter_context(taps(tapped_model, Moments(space), exclude=["head"]))
        lockstepped = stack.enter_context(lockstep(donor, pair_target, Moments(space, pair=True), exclude=["head"]))
        nnsight = by_nnsight(model, inputs)
        yield {
            "plain": lambda: model(**inputs, use_cache=False),
            "body": lambda: model.model(**inputs, use_cache=False),
            "hooks": by_sums(model, inputs),
            "var_mean": by_var_mean(model, inputs),
            **({"nnsight": nnsight} if nnsight else {}),
            "profiled": lambda: tapped.forward(inputs, count_mask),
            "pair": lambda: lockstepped.forward(inputs, count_mask),
        }


def measure(
    name: str, dtype: str, threads: int, batch: int, length: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Medians of interleaved rounds."""
    torch.set_num_threads(threads)
    with calls_of(name, dtype, batch, length) as calls:
        times = interleaved(calls, seconds, rounds)
    middle = {call: median(values) for call, values in times.items()}
    tokens = batch * length
    return {
        "model": name,
        "dtype": dtype,
        "threads": threads,
        "tokens": tokens,
        **{f"{call}_s": round(value, 6) for call, value in middle.items()},
        "nnsight_s": round(middle["nnsight"], 6) if "nnsight" in middle else None,
        "ratio": round(middle["profiled"] / middle["plain"], 4),
        "ratio_to_body": round(middle["profiled"] / middle["body"], 4),
        "pair_ratio": round(middle["pair"] / middle["plain"] / 2, 4),
        "hooks_ratio": round(middle["hooks"] / middle["plain"], 4),
        "tokens_per_second": round(tokens / middle["profiled"], 1),
        "spread": {call: round(spread(values), 4) for call, values in times.items()},
    }


def main() -> None:
    """Print one line a case; write the last, or all where several were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "small", "medium"), nargs="+", default=["small"])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0, help="time a case")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    results = []
    for name in options.model:
        for dtype in options.dtype:
            for threads in options.threads:
                row = measure(name, dtype, threads, options.batch, options.length, options.seconds, options.rounds)
                results.append(row)
                times = " ".join(
                    f"{key[:-2]} {value:.4f}" for key, value in row.items() if key.endswith("_s") and value
                )
                print(f"{name} {dtype} x{threads}: {row['ratio']:.3f} x plain; pair {row['pair_ratio']:.3f}; {times}")
    result = {**results[0], "machine": machine()} if len(results) == 1 else {"results": results, "machine": machine()}
    write_json(options.json, result)


if __name__ == "__main__":
    main()

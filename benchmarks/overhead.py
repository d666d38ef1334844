"""What does profiling cost, compared with the plain forward of the same model and with what one would write instead?

    python benchmarks/overhead.py --model small --dtype bfloat16 --threads 1 --json OUT

All six statistics of all sites except the LM head. ``plain`` is the stock forward with its logits, ``profiled`` the
same batch through ``Taps.forward``; the LM head, whose channels are not wanted, does not run there, so ``body`` (the
stock forward without its head) stands beside it. ``half`` measures the first half of the layers only (``include``),
where the forward ends. ``pair`` runs two models in lockstep, ``swapped`` the same with swapped outputs.
``hooks`` keep float32 sum and sum of squares of every linear, ``var_mean`` hooks use
``torch.var_mean``, ``nnsight`` (if installed) saves sum and sum of squares of every linear.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from baselines import by_nnsight, by_sums, by_var_mean
from measure import DTYPES, Call, interleaved, medians, options, record, spread
from workloads import SHAPES, build

from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.taps.lockstep import lockstep
from act.taps.tapped import taps


@contextlib.contextmanager
def calls_of(name: str, dtype: str, batch: int = 8, length: int = 256) -> Iterator[dict[str, Call]]:
    """Every way of running one batch, ready to be timed."""
    model, donor = (build(name, DTYPES[dtype], seed) for seed in (0, 1))
    # Taps are on copies of their own, or they would slow the others down.
    tapped_model, half_model, pair_target, swap_target = (build(name, DTYPES[dtype]) for _ in range(4))
    swap_donor = build(name, DTYPES[dtype], 1)
    first_half = ["embed", *(f"model.layers.{layer}.*" for layer in range(model.config.num_hidden_layers // 2))]
    ids = torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    count_mask = torch.ones_like(ids, dtype=torch.bool)
    space = ChannelSpace.from_model(model)
    stock = {
        "plain": model,
        "body": model.model,
        "hooks": by_sums(model),
        "var_mean": by_var_mean(model),
        "nnsight": by_nnsight(model),
    }
    with (
        torch.inference_mode(),
        taps(tapped_model, Moments(space), exclude=["head"]) as tapped,
        taps(half_model, Moments(space), include=first_half) as half,
        lockstep(donor, pair_target, Moments(space, pair=True), exclude=["head"]) as both,
        lockstep(swap_donor, swap_target, Moments(space, pair=True, swap=True), exclude=["head"]) as swapped,
    ):
        yield {
            **{way: partial(run, **inputs, use_cache=False) for way, run in stock.items() if run is not None},
            "profiled": lambda: tapped.forward(inputs, count_mask),
            "half": lambda: half.forward(inputs, count_mask),
            "pair": lambda: both.forward(inputs, count_mask),
            "swapped": lambda: swapped.forward(inputs, count_mask),
        }


def measure(
    name: str, dtype: str, threads: int, batch: int, length: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Medians of interleaved rounds."""
    torch.set_num_threads(threads)
    with calls_of(name, dtype, batch, length) as calls:
        times = interleaved(calls, seconds, rounds)
    middle = medians(times)
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
        "half_ratio": round(middle["half"] / middle["profiled"], 4),
        "pair_ratio": round(middle["pair"] / middle["plain"] / 2, 4),
        "swap_ratio": round(middle["swapped"] / middle["pair"], 4),
        "hooks_ratio": round(middle["hooks"] / middle["plain"], 4),
        "tokens_per_second": round(tokens / middle["profiled"], 1),
        "spread": {call: round(spread(values), 4) for call, values in times.items()},
    }


def main() -> None:
    """Print one line per case, and write the only one, or all if there are several."""
    parser = options(__doc__)
    parser.add_argument("--model", choices=SHAPES, nargs="+", default=["small"])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0, help="time per case")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    results = []
    for name, dtype, threads in itertools.product(given.model, given.dtype, given.threads):
        row = measure(name, dtype, threads, given.batch, given.length, given.seconds, given.rounds)
        results.append(row)
        times = " ".join(f"{key[:-2]} {value:.4f}" for key, value in row.items() if key.endswith("_s") and value)
        pair = f"pair {row['pair_ratio']:.3f}, swapped {row['swap_ratio']:.3f} x that"
        print(f"{name} {dtype} x{threads}: {row['ratio']:.3f} x plain; {pair}; {times}")
    record(given.json, results[0] if len(results) == 1 else {"results": results})


if __name__ == "__main__":
    main()

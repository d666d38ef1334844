"""How exact are streamed mean and variance after ten million rows, and in orders that are hard on float32 sums?

    python benchmarks/accuracy.py --json OUT

Rows are fed in uneven batches and compared with float64 over all of them. The error of the mean is relative to the root
mean square of the channel, since a mean near zero has no relative error of its own. The orders, from outliers first to
heavy tails, are those of ``tests/kernels/orders.py``, on every backend that this machine can run or imitate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]  # "kernels" is the folder of the tests

import torch  # noqa: E402
from kernels import emulated, interpreter, orders  # noqa: E402
from kernels.oracle import ISAS  # noqa: E402
from measure import options, record  # noqa: E402
from pytest import MonkeyPatch  # noqa: E402

from act_kernels import column_moments, empty_moments, native  # noqa: E402
from act_kernels.backends import BACKENDS, ENVIRONMENT_VARIABLE  # noqa: E402
from act_kernels.statistics import COUNT, M2, MEAN  # noqa: E402

RATIOS = (0.0, 1.0, 100.0, 10_000.0)  # mean over standard deviation; one group of channels each
CHANNELS_EACH = 8
SIZES = (4096, 1, 777, 60_000, 2048, 33)
DTYPES = (torch.float32, torch.bfloat16)
ORDERED = 20_000  # rows in a hard order; of imitated GPUs:
IMITATED = 700


def batches(rows: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Uneven batches of normal values; the channels differ in scale and in mean over standard deviation."""
    generator = torch.Generator().manual_seed(0)
    ratio = torch.tensor(RATIOS).repeat_interleave(CHANNELS_EACH)
    scale = torch.logspace(-2, 2, CHANNELS_EACH).repeat(len(RATIOS))
    turn = 0
    while rows:
        size = min(SIZES[turn % len(SIZES)], rows)
        yield ((torch.randn(size, len(ratio), generator=generator) + ratio) * scale).to(dtype)
        rows, turn = rows - size, turn + 1


def streamed(rows: int, dtype: torch.dtype) -> torch.Tensor:
    """The moments that the kernel accumulates."""
    block = empty_moments(len(RATIOS) * CHANNELS_EACH)
    for batch in batches(rows, dtype):
        column_moments(batch, block)
    return block


def float64_truth(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance by two passes over the same rows in float64."""
    zero = torch.zeros(len(RATIOS) * CHANNELS_EACH, dtype=torch.float64)
    mean = sum((batch.double().sum(0) for batch in batches(rows, dtype)), zero) / rows
    return mean, sum(((batch.double() - mean).square().sum(0) for batch in batches(rows, dtype)), zero) / rows


def measure(rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """The largest relative errors over all channels, and whether a second run gives the same bits."""
    block = streamed(rows, dtype)
    mean, variance = float64_truth(rows, dtype)
    assert (block[COUNT] == rows).all()
    scale = (variance + mean.square()).sqrt()
    constant = variance == 0  # bfloat16 cannot store a spread of a ten-thousandth of the mean
    assert not block[M2, constant].any()
    spread = variance.where(~constant, 1)
    return {
        "rows": rows,
        "dtype": str(dtype).removeprefix("torch."),
        "max_rel_error_mean": ((block[MEAN] - mean).abs() / scale).max().item(),
        "max_rel_error_mean_in_deviations": ((block[MEAN] - mean).abs() / spread.sqrt()).max().item(),
        "max_rel_error_var": ((block[M2] / rows - variance).abs() / spread).max().item(),
        "constant_channels": int(constant.sum()),
        "bit_equal": torch.equal(block, streamed(rows, dtype)),
    }


@contextmanager
def backend(name: str) -> Iterator[int]:
    """Runs everything on an instruction set of the C++ kernels or on a backend; yields how many rows suit it."""
    with MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, "native" if name in ISAS else name)
        if name in ISAS:
            native._native.use_instruction_set(name)
        elif name == "cuda":
            emulated.emulate(patch)
        elif name == "triton":
            interpreter.correct_interpreter(patch)
        yield IMITATED if name in ("cuda", "triton") else ORDERED


def worst_of_all_orders(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """The largest relative errors over all orders, and the order of each."""
    with backend(name) as rows:
        found = {order: orders.measure(order, rows, dtype) for order in orders.ORDERS}
    place = {"cuda": "cuda (emulated)", "triton": "triton (interpreted)"}.get(name, name)
    row = {"backend": place, "dtype": str(dtype).removeprefix("torch."), "rows": rows, "orders": len(found)}
    for statistic in ("mean", "variance", "mean_abs"):
        order = max(found, key=lambda order: found[order][statistic])
        row |= {statistic: found[order][statistic], f"{statistic}_in": order}
    return row


def in_hard_orders() -> list[dict[str, Any]]:
    """One row per backend and type; Triton is interpreted in a process of its own."""
    names = [*ISAS, "reference", *(["cuda"] if emulated.REASON is None else [])]
    found = [worst_of_all_orders(name, dtype) for name in names for dtype in DTYPES]
    if next(one for one in BACKENDS if one.name == "triton").refusal("cuda") is None:
        command = [sys.executable, __file__, "--interpreted"]
        child = subprocess.run(
            command, env={**os.environ, "TRITON_INTERPRET": "1"}, stdout=subprocess.PIPE, text=True, check=True
        )
        found += json.loads(child.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure float32, the type in which mean / deviation = 1e4 can be stored, and bfloat16 beside it."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--interpreted", action="store_true", help="print the hard orders on interpreted Triton alone")
    given = parser.parse_args()
    if given.interpreted:
        return print(json.dumps([worst_of_all_orders("triton", dtype) for dtype in DTYPES]))
    results = [measure(given.rows, dtype) for dtype in DTYPES]
    ordered = in_hard_orders()
    for result in [*results, *ordered]:
        print(result)
    worst = {key: max(result[key] for result in results) for key in ("max_rel_error_mean", "max_rel_error_var")}
    told = {"orders": len(orders.ORDERS), "backends": ", ".join(dict.fromkeys(row["backend"] for row in ordered))}
    worst["max_rel_error_in_hard_orders"] = max(row[key] for row in ordered for key in ("mean", "variance", "mean_abs"))
    bit_equal = all(result["bit_equal"] for result in results)
    record(given.json, {**worst, **told, "bit_equal": bit_equal, "results": results, "ordered": ordered})


if __name__ == "__main__":
    main()

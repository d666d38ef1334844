"""How fast is an op against a copy of the same tensor, and against the same statistics by PyTorch operators?

python benchmarks/kernels.py --op column_moments --json OUT
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, machine, median, spread, write_json

from act_kernels import blend_rows, column_moments, empty_moments, pair_moments
from act_kernels.backends import choose

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def by_operators(x: torch.Tensor, moments: torch.Tensor) -> None:
    """The same six statistics as one would write them with PyTorch operators, in float32."""
    x = x.float()
    mean = x.mean(0)
    moments[0] += len(x)
    moments[1] = mean
    moments[2] += (x - mean).square().sum(0)
    moments[3] += x.abs().sum(0)
    moments[4] = torch.maximum(moments[4], x.abs().amax(0))
    moments[5] += (x > 0).sum(0)


def column_case(x: torch.Tensor, other: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """The op, the same by operators, and the bytes it must read or write."""
    moments, slow = empty_moments(x.shape[1]), empty_moments(x.shape[1])
    return lambda: column_moments(x, moments), lambda: by_operators(x, slow), x.nbytes


def pair_case(x: torch.Tensor, other: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """Likewise."""
    moments, slow = (empty_moments(x.shape[1], 3) for _ in range(2))

    def operators() -> None:
        for block, values in zip(slow, (x, other, x.float() - other.float()), strict=True):
            by_operators(values, block)

    return lambda: pair_moments(x, other, moments), operators, 2 * x.nbytes


def blend_case(x: torch.Tensor, other: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """Likewise, for one row in twenty."""
    rows = torch.arange(0, len(x), 20)

    def operators() -> None:
        x[rows] = torch.lerp(x[rows], other[rows], 0.4)

    return lambda: blend_rows(x, other, rows, 0.4), operators, 3 * len(rows) * x.shape[1] * x.element_size()


CASES = {"column_moments": column_case, "pair_moments": pair_case, "blend_rows": blend_case}


def measure(op: str, dtype: str, rows: int, channels: int, threads: int, seconds: float) -> dict[str, Any]:
    """One row of the result: medians of interleaved rounds, the spread beside them."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(rows, channels, generator=generator).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(x)
    run, operators, moved = CASES[op](x, other)
    fast = interleaved({"op": run, "copy": lambda: out.copy_(x)}, seconds)
    slow = interleaved({"operators": operators}, seconds / 4, rounds=3)
    op_s, copy_s, operators_s = (median(times) for times in (fast["op"], fast["copy"], slow["operators"]))
    return {
        "op": op,
        "dtype": dtype,
        "T": rows,
        "C": channels,
        "threads": threads,
        "backend": choose(x.device.type).backend.name,
        "seconds": op_s,
        "spread": round(spread(fast["op"]), 3),
        "bytes": moved,
        "gbps": round(moved / op_s / 1e9, 2),
        "copy_gbps": round(x.nbytes / copy_s / 1e9, 2),
        "ratio_to_copy": round(op_s / copy_s, 3),
        "speedup_over_torch": round(operators_s / op_s, 1),
    }


def main() -> None:
    """Print one line a case, and write them all where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=CASES, default="column_moments")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, nargs="+", default=[2048])
    parser.add_argument("--channels", type=int, nargs="+", default=[512, 4864, 18944])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="time a case")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "results": []}
    print(
        f"{'op':15}{'dtype':>9}{'T':>7}{'C':>7}{'thr':>4}{'GB/s':>8}{'copy':>8}{'x copy':>8}{'x torch':>9}{'spread':>8}"
    )
    for threads, dtype, rows, channels in itertools.product(
        options.threads, options.dtype, options.rows, options.channels
    ):
        row = measure(options.op, dtype, rows, channels, threads, options.seconds)
        result["results"].append(row)
        print(
            f"{row['op']:15}{dtype:>9}{rows:>7}{channels:>7}{threads:>4}{row['gbps']:>8.1f}{row['copy_gbps']:>8.1f}"
            f"{row['ratio_to_copy']:>8.2f}{row['speedup_over_torch']:>9.1f}{row['spread']:>8.1%}"
        )
    write_json(options.json, result)


if __name__ == "__main__":
    main()

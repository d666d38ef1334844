"""How exact are streamed mean and variance after ten million rows?

    python benchmarks/accuracy.py --json OUT

Rows are fed in uneven batches and compared with float64 over all of them. The error of the mean is relative to the root
mean square of the channel, since a mean near zero has no relative error of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from measure import options, record

from act_kernels import column_moments, empty_moments
from act_kernels.statistics import COUNT, M2, MEAN

RATIOS = (0.0, 1.0, 100.0, 10_000.0)  # mean over standard deviation; one group of channels each
CHANNELS_EACH = 8
SIZES = (4096, 1, 777, 60_000, 2048, 33)


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


def main() -> None:
    """Measure float32, the type in which mean / deviation = 1e4 can be stored, and bfloat16 beside it."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    given = parser.parse_args()
    results = [measure(given.rows, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for result in results:
        print(result)
    worst = {key: max(result[key] for result in results) for key in ("max_rel_error_mean", "max_rel_error_var")}
    bit_equal = all(result["bit_equal"] for result in results)
    record(given.json, {**worst, "bit_equal": bit_equal, "results": results})


if __name__ == "__main__":
    main()

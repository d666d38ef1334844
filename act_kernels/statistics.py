"""The layout of a moments block, and the exact merge of two blocks.

A block is a float64 tensor of shape ``[7, C]``: one row per entry of :data:`STATISTICS`, one column per channel.
A pair block is ``[3, 7, C]``: donor, target, and difference (donor - target); of a pair with a swapped output it is
``[5, 7, C]``.
"""

from __future__ import annotations

import torch

STATISTICS = ("count", "mean", "m2", "sum_abs", "max_abs", "positive", "nonfinite")
"""Rows of a block: finite values counted, their mean, their second central moment (sum of squared deviations),
sum and maximum of absolute values, number of values > 0, and number of NaN or infinite values left out."""

COUNT, MEAN, M2, SUM_ABS, MAX_ABS, POSITIVE, NONFINITE = range(len(STATISTICS))

PAIR = ("donor", "target", "difference")
"""First axis of a pair block."""

SWAPPED_PAIR = (*PAIR, "swap", "product")
"""The same with a swapped output, what the donor's module gives on the target's input: ``swap`` is swapped - target,
``product`` that times the difference."""


def empty_moments(channels: int, *leading: int, device: torch.device | str | None = None) -> torch.Tensor:
    """A zeroed block of shape ``[*leading, 7, channels]``, float64: the neutral element of :func:`merge_moments`.

    Args:
        channels: C.
        leading: sizes before it, such as 3 for a pair.
        device: where it lies; None: where PyTorch makes tensors by default.

    >>> act_kernels.empty_moments(4, 3).shape  # of a pair, four channels
    torch.Size([3, 7, 4])
    """
    return torch.zeros((*leading, len(STATISTICS), channels), dtype=torch.float64, device=device)


def merge_moments(into: torch.Tensor, other: torch.Tensor) -> None:
    """Add the values summarised by ``other`` to ``into``, in place, by the parallel formula of Chan et al. (1979).

    Both are float64 blocks ``[..., 7, C]`` on one device. The merge is exact up to float64 rounding, in any order:
    ``mean += d * n_b / n`` and ``M2 += M2_b + d**2 * n_a * n_b / n`` with ``d = mean_b - mean_a``.

    >>> x = torch.arange(20.0).reshape(10, 2)
    >>> whole, first, second = (act_kernels.empty_moments(2) for _ in range(3))
    >>> for rows, moments in ((x, whole), (x[:4], first), (x[4:], second)):
    ...     act_kernels.column_moments(rows, moments)
    >>> act_kernels.merge_moments(first, second)
    >>> torch.allclose(first, whole)
    True
    """
    a, b = into.unbind(-2), other.unbind(-2)
    total = a[COUNT] + b[COUNT]
    weight = b[COUNT] / total.clamp(min=1)
    delta = b[MEAN] - a[MEAN]
    a[M2].add_(b[M2] + delta.square() * a[COUNT] * weight)
    # A weighted step towards b from the nearer end, so that merging into an empty block copies b exactly.
    a[MEAN].copy_(torch.where(weight < 0.5, a[MEAN] + delta * weight, b[MEAN] - delta * (1 - weight)))
    # Two empty sides leave weight 0 and the mean unchanged at 0.
    torch.maximum(a[MAX_ABS], b[MAX_ABS], out=a[MAX_ABS])
    for statistic in (COUNT, SUM_ABS, POSITIVE, NONFINITE):
        a[statistic].add_(b[statistic])

"""The ops in plain PyTorch: the truth that every kernel is tested against, and the backend of last resort."""

from __future__ import annotations

import torch

from act_kernels.statistics import STATISTICS, merge_moments

ROWS_AT_A_TIME = 4096  # bounds the float64 copy of the input


def column_moments(x: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Two-pass float64 statistics of the counted rows of ``x``; see :func:`act_kernels.ops.column_moments`."""
    if mask is not None:
        x = x[mask]
    for rows in x.split(ROWS_AT_A_TIME):
        merge_moments(moments, _block(rows.double()))


def pair_moments(
    donor: torch.Tensor, target: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    """Statistics of donor, target and donor - target; see :func:`act_kernels.ops.pair_moments`."""
    if mask is not None:
        donor, target = donor[mask], target[mask]
    for d, t in zip(donor.split(ROWS_AT_A_TIME), target.split(ROWS_AT_A_TIME), strict=True):
        d, t = d.double(), t.double()
        for block, values in zip(moments, (d, t, d - t), strict=True):
            merge_moments(block, _block(values))


def blend_rows(target: torch.Tensor, donor: torch.Tensor, rows: torch.Tensor, strength: float) -> None:
    """``target[rows] += strength * (donor[rows] - target[rows])``; see :func:`act_kernels.ops.blend_rows`."""
    new, old = donor[rows], target[rows]
    if strength != 1:
        wide_new, wide_old = new.double(), old.double()
        new = (wide_old + strength * (wide_new - wide_old)).to(old.dtype)
    target[rows] = new


def _block(x: torch.Tensor) -> torch.Tensor:
    """The moments block ``[7, C]`` of ``x``, float64 of shape ``[T, C]``, by two passes over the finite values."""
    if not len(x):
        return x.new_zeros(len(STATISTICS), x.shape[1])
    finite = x.isfinite()
    x = torch.where(finite, x, 0)
    count = finite.sum(0).double()
    mean = x.sum(0) / count.clamp(min=1)
    m2 = torch.where(finite, x - mean, 0).square().sum(0)
    return torch.stack(
        [count, mean, m2, x.abs().sum(0), x.abs().amax(0), (x > 0).sum(0).double(), (~finite).sum(0).double()]
    )

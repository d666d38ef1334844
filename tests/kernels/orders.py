"""Orders and distributions of rows that are hard on float32 sums; tests and ``benchmarks/accuracy.py`` measure them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from act_kernels import empty_moments, ops
from act_kernels.statistics import COUNT, M2, MAX_ABS, MEAN, NONFINITE, POSITIVE, SUM_ABS
from kernels.oracle import truth

Tensor = torch.Tensor
CHANNELS = 3
FIRST = 150  # more rows than any backend takes at once


def normal(rows: int, seed: int = 0) -> Tensor:
    """Standard normal values ``[rows, CHANNELS]``."""
    return torch.randn(rows, CHANNELS, generator=torch.Generator().manual_seed(seed))


def _with(x: Tensor, rows: slice, value: float) -> Tensor:
    x[rows] = value
    return x


def _cauchy(rows: int) -> Tensor:
    return normal(rows) / normal(rows, 1)


def _not_finite_first(rows: int) -> Tensor:
    x = normal(rows) + 100
    x[0, 0], x[3, 1], x[:40, 2], x[5] = torch.nan, torch.inf, torch.nan, -torch.inf
    return x


def _parity(rows: int, period: int = 1) -> Tensor:
    """1 and -1 in turns of ``period`` rows, ``[rows, 1]``."""
    return 1 - 2 * (torch.arange(rows)[:, None] // period % 2).float()


ORDERS: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda rows: normal(rows) + 1,
    "one outlier first": lambda rows: _with(torch.full((rows, CHANNELS), 0.003), slice(1), 1e5),
    "one outlier first, then noise": lambda rows: _with(normal(rows) + 1, slice(1), 1e6),
    "many outliers first": lambda rows: _with(normal(rows) + 1, slice(32), 1e4),
    "outliers for longer than a run": lambda rows: _with(torch.full((rows, CHANNELS), 0.003), slice(FIRST), 1e6),
    "outliers in the middle": lambda rows: _with(normal(rows) + 1, slice(rows // 2, rows // 2 + 5), -1e5),
    "one outlier last": lambda rows: _with(torch.full((rows, CHANNELS), 0.003), slice(rows - 1, rows), 1e5),
    "outliers of both signs": lambda rows: torch.where(
        torch.arange(rows)[:, None] % 100 == 7, _parity(rows) * 1e5, 0.7
    ),
    "ascending": lambda rows: normal(rows).sort(0).values,
    "descending, log-normal": lambda rows: normal(rows).exp().sort(0, descending=True).values,
    "log-normal of sigma 3": lambda rows: (3 * normal(rows)).exp(),
    "Cauchy": _cauchy,
    "alternating signs": lambda rows: _parity(rows) * torch.tensor([3.3, 0.1, 1e4]),
    "alternating levels": lambda rows: 7.7 + _parity(rows, 128) * torch.tensor([1e-2, 1, 1e3]) + normal(rows) / 1e3,
    "huge mean, tiny spread": lambda rows: 1e4 + normal(rows),
    "step": lambda rows: torch.where(torch.arange(rows)[:, None] < rows // 3, 1.1, torch.tensor([1.3, -77.7, 3e5])),
    "drift": lambda rows: torch.linspace(0, 1000, rows)[:, None] + normal(rows),
    "constant": lambda rows: torch.tensor([1.1, -1 / 3, 1e6]).expand(rows, CHANNELS),
    "constant, then a spike": lambda rows: _with(torch.full((rows, CHANNELS), 1.1), slice(rows - 9, rows - 8), 3e4),
    "few are not zero": lambda rows: (normal(rows) - 2).relu(),
    "NaN and infinity first": _not_finite_first,
    "squares that vanish": lambda rows: normal(rows) * 1e-25,
    "squares that overflow": lambda rows: normal(rows) * 1e30,
}


def errors(block: Tensor, x: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Largest relative errors of mean (of the root mean square), variance and mean of absolute values of ``block``.

    Asserts that counts and maxima are exact.
    """
    expected = truth(x, mask)
    for statistic in (COUNT, MAX_ABS, POSITIVE, NONFINITE):
        assert torch.equal(block[statistic], expected[statistic])
    count = expected[COUNT].clamp(min=1)
    root_mean_square = (expected[M2] / count + expected[MEAN].square()).sqrt()
    scales = {
        "mean": (MEAN, root_mean_square),
        "variance": (M2, expected[M2]),
        "mean_abs": (SUM_ABS, expected[SUM_ABS]),
    }
    return {
        name: ((block[row] - expected[row]).abs() / scale.clamp(min=1e-300)).max().item()
        for name, (row, scale) in scales.items()
    }


def measure(order: str, rows: int, dtype: torch.dtype) -> dict[str, float]:
    """The :func:`errors` of ``column_moments`` on rows in that order, and with rows before them that do not count."""
    x = ORDERS[order](rows).expand(rows, CHANNELS).to(dtype)
    found = []
    for mask in (None, torch.arange(rows + 40) >= 40):
        given = x if mask is None else torch.cat([torch.full((40, CHANNELS), 1e9, dtype=dtype), x])
        block = empty_moments(CHANNELS)
        ops.column_moments(given, block, mask)
        found.append(errors(block, given, mask))
    return {name: max(one[name] for one in found) for name in found[0]}

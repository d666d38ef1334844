"""Means with their standard errors, and paired tests: is a difference on the same records more than chance?"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

FLIPS = 10_000  # random sign flips if all 2^n are too many; the smallest p they can give is 1 / (FLIPS + 1)
EXACT_UP_TO = 13


@dataclass(frozen=True)
class Difference:
    """A mean difference, its standard error, and the two-sided probability of a difference as large by chance."""

    difference: float
    standard_error: float
    p: float


def mcnemar(before: torch.Tensor, after: torch.Tensor) -> Difference:
    """Difference of two shares of right answers to the same records (bool ``[R]``): McNemar's exact test.

    ``p`` is the probability that a fair coin falls as unevenly as records were gained and lost.
    """
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    flips = gained + lost
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1))
    p = min(1.0, 2 * tail / 2**flips)  # integers of any size: exact before the division
    mean, error = mean_and_error(after.double() - before.double())
    return Difference(mean, error, p)


def sign_flip(differences: torch.Tensor, seed: int = 0) -> Difference:
    """Mean of paired differences (float ``[R]``) and its permutation test: each sign is flipped or not by a fair coin.

    Tests all ``2^R`` ways for at most :data:`EXACT_UP_TO` records, else :data:`FLIPS` random ways and the observed one.
    Everything is NaN if a difference is NaN or infinite.
    """
    values = differences.double()
    count = len(values)
    if not values.isfinite().all():
        return Difference(math.nan, math.nan, math.nan)
    mean, error = mean_and_error(values)
    if count <= EXACT_UP_TO:
        signs = (torch.arange(2**count)[:, None] >> torch.arange(count)) & 1
        sums, extra = (signs.double() * 2 - 1) @ values, 0
    else:
        generator = torch.Generator().manual_seed(seed)
        draws = (torch.randint(0, 2, (FLIPS // 10, count), generator=generator) for _ in range(10))
        sums, extra = torch.cat([(draw.double() * 2 - 1) @ values for draw in draws]), 1
    as_large = int((sums.abs() >= values.sum().abs() * (1 - 1e-12)).sum())  # the identity must not miss by rounding
    return Difference(mean, error, (as_large + extra) / (len(sums) + extra))


def least_p(signs: int) -> float:
    """The smallest p that few signs can have: records of :func:`sign_flip`, or those that gained or lost of
    :func:`mcnemar`.

    Of all ``2^signs`` ways, two are as uneven as can be: all signs plus, and all minus.

    >>> from act.evaluation.significance import least_p
    >>> least_p(4), least_p(6)
    (0.125, 0.03125)
    """
    return min(1.0, 2.0 ** (1 - signs))


def fewest_signs(below: float) -> int:
    """The smallest number of signs of which p can be below a level."""
    return next(signs for signs in itertools.count() if least_p(signs) < below)


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Mean and its standard error (sample standard deviation / sqrt(R)); NaN for fewer than two values."""
    values = values.double()
    error = values.std(correction=1).item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error


def ratio_and_error(sums: torch.Tensor, counts: torch.Tensor) -> tuple[float, float]:
    """``sum(sums) / sum(counts)`` and its standard error over records: tokens of one record are not independent."""
    sums, counts = sums.double(), counts.double()
    ratio = (sums.sum() / counts.sum()).item()
    records = len(sums)
    if records < 2:
        return ratio, math.nan
    spread = (sums - ratio * counts).square().sum() * records / (records - 1)
    return ratio, (spread.sqrt() / counts.sum()).item()


def finite(value: float | None) -> float | None:
    """``value``, or None if it is NaN or infinite, which JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def with_error(value: float | None, error: float | None, digits: int, sign: str = "") -> str:
    """A figure with its standard error, such as ``93.8 ± 2.5``; ``sign="+"`` also shows the sign of a positive one."""
    if value is None or not math.isfinite(value):
        return "unknown"
    return f"{value:{sign}.{digits}f}" + ("" if error is None or math.isnan(error) else f" ± {error:.{digits}f}")

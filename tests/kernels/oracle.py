"""The truth in float64, what counts as close to it, and random inputs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

from act_kernels import STATISTICS, empty_moments, native
from act_kernels.statistics import COUNT, M2, MAX_ABS, MEAN, NONFINITE, POSITIVE, SUM_ABS
from kernels.interpreter import INTERPRETED

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDE_AND_NARROW = DTYPES[:2] if INTERPRETED else DTYPES
"""For tests of what types have in common: interpreted, float16 differs from bfloat16 in its conversions alone."""
ISAS = native._native.instruction_sets() if native.LOAD_ERROR is None else []
EXACT = ("reference", *(isa for isa in ISAS if isa != "baseline"))
"""Backends whose exponential is, bit for bit, that of PyTorch on this CPU."""


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """PyTorch's own kernels, where it leaves some to oneDNN on this CPU, whose last bits are others."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@functools.cache
def gelu_is_onednn() -> bool:
    """Whether PyTorch leaves the GELU of float32 to oneDNN on this CPU."""
    x = torch.linspace(-8, 8, 1 << 17)
    with without_onednn():
        own = torch.nn.functional.gelu(x)
    return not torch.equal(own, torch.nn.functional.gelu(x))


def truth(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The block of ``x`` by textbook two-pass float64 over its finite values."""
    x = (x if mask is None else x[mask]).double()
    block = empty_moments(x.shape[1])
    if len(x):
        finite = x.isfinite()
        values = x.where(finite, torch.nan)
        mean = values.nanmean(0)
        block[COUNT] = finite.sum(0)
        block[MEAN] = mean
        block[M2] = (values - mean).square().nansum(0)
        block[SUM_ABS] = values.abs().nansum(0)
        block[MAX_ABS] = values.abs().nan_to_num(0).amax(0)
        block[POSITIVE] = (values > 0).sum(0)
        block[NONFINITE] = (~finite).sum(0)
    return block.nan_to_num(0)


def paired(donor: torch.Tensor, target: torch.Tensor, swapped: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The values of each block of ``pair_moments``, formed in float32."""
    d, t = donor.float(), target.float()
    if swapped is None:
        return [d, t, d - t]
    swap = swapped.float() - t
    return [d, t, d - t, swap, swap * (d - t)]


def assert_moments_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-6) -> None:
    """Counts and maxima exact; the mean within ``relative`` of the root mean square, M2 and sum_abs of themselves."""
    for statistic in (COUNT, POSITIVE, NONFINITE):
        assert torch.equal(actual[statistic], expected[statistic]), STATISTICS[statistic]
    assert torch.equal(actual[MAX_ABS].float(), expected[MAX_ABS].float())  # a difference is formed in float32
    count = expected[COUNT].clamp(min=1)
    root_mean_square = (expected[M2] / count + expected[MEAN].square()).sqrt()
    # A deviation formed in float32 carries a rounding error of up to 6e-8 of the value.
    floor = count * (6e-8 * expected[MAX_ABS]).square()
    for statistic, scale in (
        (MEAN, root_mean_square),
        (M2, expected[M2] + floor / relative),
        (SUM_ABS, expected[SUM_ABS]),
    ):
        error = ((actual[statistic] - expected[statistic]).abs() / scale.clamp(min=1e-300)).max().item()
        assert error <= relative, f"{STATISTICS[statistic]}: relative error {error:.2e}"


def random(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(columns, generator=generator) * 3 + 0.1
    return (torch.randn(rows, columns, generator=generator) * spread + spread.flip(0)).to(dtype)

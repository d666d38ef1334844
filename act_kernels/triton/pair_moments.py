"""Statistics of donor, target and donor - target in one read of both; see :func:`act_kernels.ops.pair_moments`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from act_kernels.statistics import PAIR
from act_kernels.triton.partials import (
    MAX_RUN,
    WARPS,
    add_tile,
    counted_span,
    empty_partials,
    is_counted,
    load_tile,
    merge_partials,
    no_sums,
    plan_runs,
    store_run,
    tile_mean,
)

UNROLL = 4  # rows of each input that a thread has in flight
BLOCK_C = 128  # four channels per thread of a warp: the 15 sums of each stay in registers


@triton.jit(do_not_specialize=["rows", "run"])
def pair_moments_kernel(
    donor,
    target,
    mask,
    partials,
    rows,
    channels,
    donor_row_stride,
    donor_column_stride,
    target_row_stride,
    target_column_stride,
    run,
    block_stride,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes ``partials`` [3, S, 7, C] for two matrices [T, C]; program: one run of BLOCK_C channels."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    split = (tl.program_id(0) // channel_blocks).to(tl.int64)
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.max_contiguous(channel, 4)
    in_channels = channel < channels
    start = split * run
    length = tl.minimum(rows - start, run).to(tl.int32)
    donor += start * donor_row_stride + channel.to(tl.int64) * donor_column_stride
    target += start * target_row_stride + channel.to(tl.int64) * target_column_stride
    if mask is not None:
        mask += start
    first, end, counted = counted_span(mask, length, MAX_RUN)
    tile_row = tl.arange(0, UNROLL)[:, None, None] * WARPS + tl.arange(0, WARPS)[None, :, None]

    row = first + tile_row
    wanted = is_counted(mask, row, end) & in_channels[None, None, :]
    d = load_tile(donor, row, donor_row_stride, wanted)
    t = load_tile(target, row, target_row_stride, wanted)
    donor_shift = tile_mean(d, wanted, donor.dtype.element_ty)
    target_shift = tile_mean(t, wanted, donor.dtype.element_ty)
    difference_shift = tile_mean(d - t, wanted, donor.dtype.element_ty)
    donor_sums = no_sums(WARPS, BLOCK_C)
    target_sums = no_sums(WARPS, BLOCK_C)
    difference_sums = no_sums(WARPS, BLOCK_C)
    for tile_start in range(first, end, UNROLL * WARPS):
        row = tile_start + tile_row
        rows_counted = is_counted(mask, row, end)
        wanted = rows_counted & in_channels[None, None, :]
        weight = rows_counted.to(tl.float32)
        d = load_tile(donor, row, donor_row_stride, wanted)
        t = load_tile(target, row, target_row_stride, wanted)
        donor_sums = add_tile(donor_sums, d, weight, donor_shift)
        target_sums = add_tile(target_sums, t, weight, target_shift)
        difference_sums = add_tile(difference_sums, d - t, weight, difference_shift)

    plane = channels.to(tl.int64)
    partials += split * 7 * plane + channel
    store_run(
        donor_sums, donor_shift, counted, first, end, donor, donor_row_stride, None, None, mask, in_channels,
        partials, plane,
    )  # fmt: skip
    store_run(
        target_sums, target_shift, counted, first, end, target, target_row_stride, None, None, mask, in_channels,
        partials + block_stride, plane,
    )  # fmt: skip
    store_run(
        difference_sums, difference_shift, counted, first, end, donor, donor_row_stride, target, target_row_stride,
        mask, in_channels, partials + 2 * block_stride.to(tl.int64), plane,
    )  # fmt: skip


def pair_moments(
    donor: torch.Tensor, target: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    """``moments`` [3, 7, C] += statistics of ``donor``, ``target`` [T, C] and their difference."""
    rows, channels = donor.shape
    channel_blocks = triton.cdiv(channels, BLOCK_C)
    run, splits = plan_runs(rows, channel_blocks)
    partials = empty_partials(len(PAIR), splits, donor)
    with torch.cuda.device_of(donor):
        pair_moments_kernel[(channel_blocks * splits,)](
            donor,
            target,
            mask,
            partials,
            rows,
            channels,
            donor.stride(0),
            donor.stride(1),
            target.stride(0),
            target.stride(1),
            run,
            partials.stride(0),
            MAX_RUN=MAX_RUN,
            UNROLL=UNROLL,
            WARPS=WARPS,
            BLOCK_C=BLOCK_C,
            num_warps=WARPS,
        )
        merge_partials(partials, moments)

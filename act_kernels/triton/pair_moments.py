"""Statistics of donor, target and what is formed of them, each read once; see :func:`act_kernels.ops.pair_moments`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from act_kernels.triton.partials import (
    MAX_RUN,
    WARPS,
    add_tile,
    cdiv,
    contiguous_channels,
    counted_span,
    empty_partials,
    is_counted,
    load_values,
    merge_partials,
    no_sums,
    plan_runs,
    run_bounds,
    store_sums,
    tile_mean,
)

UNROLL = 4  # rows of each input that a thread has in flight
BLOCK_C = 128  # four channels for each thread of a warp: more would not leave room for 15 sums of each in registers
SWAPPED_BLOCK_C = 64  # two channels, for 25 sums of each


@triton.jit(do_not_specialize=["rows", "run"])
def pair_moments_kernel(
    donor,
    donor_row_stride,
    target,
    target_row_stride,
    swapped,
    swapped_row_stride,
    mask,
    partials,
    plane,
    rows,
    channels,
    run,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes ``partials`` [S, 7, C] of donor, target and difference; where a matrix is swapped, of swap and product.

    Matrices are [T, C]. Rows of ``mask`` [T] count, or all; a program sums one run.
    """
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    split = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.max_contiguous(channel, BLOCK_C // 32)  # or 16-bit inputs would be laid out eight to a thread
    in_channels = channel < channels
    start, length = run_bounds(split, rows, run)
    if mask is not None:
        mask += start
    first, end, count = counted_span(mask, length, MAX_RUN)
    donor_matrix = (donor + start * donor_row_stride, donor_row_stride)
    target_matrix = (target + start * target_row_stride, target_row_stride)
    tile_row = tl.arange(0, UNROLL * WARPS)[:, None]
    tile_channel = channel[None, :]

    row = first + tile_row
    wanted = is_counted(mask, row, end) & in_channels[None, :]
    d = load_values(donor_matrix, row, tile_channel, wanted)
    t = load_values(target_matrix, row, tile_channel, wanted)
    donor_shift = tile_mean(d, wanted, donor.dtype.element_ty)
    target_shift = tile_mean(t, wanted, donor.dtype.element_ty)
    difference_shift = tile_mean(d - t, wanted, donor.dtype.element_ty)
    donor_sums = no_sums(WARPS, BLOCK_C)
    target_sums = no_sums(WARPS, BLOCK_C)
    difference_sums = no_sums(WARPS, BLOCK_C)
    if swapped is not None:
        swapped_matrix = (swapped + start * swapped_row_stride, swapped_row_stride)
        swap = load_values(swapped_matrix, row, tile_channel, wanted) - t
        swap_shift = tile_mean(swap, wanted, donor.dtype.element_ty)
        product_shift = tile_mean(swap * (d - t), wanted, tl.float32)
        swap_sums = no_sums(WARPS, BLOCK_C)
        product_sums = no_sums(WARPS, BLOCK_C)
    for tile_start in range(first, end, UNROLL * WARPS):
        row = tile_start + tile_row
        counted = is_counted(mask, row, end)
        wanted = counted & in_channels[None, :]
        d = load_values(donor_matrix, row, tile_channel, wanted)
        t = load_values(target_matrix, row, tile_channel, wanted)
        donor_sums = add_tile(donor_sums, d, counted, donor_shift)
        target_sums = add_tile(target_sums, t, counted, target_shift)
        difference_sums = add_tile(difference_sums, d - t, counted, difference_shift)
        if swapped is not None:
            swap = load_values(swapped_matrix, row, tile_channel, wanted) - t
            swap_sums = add_tile(swap_sums, swap, counted, swap_shift)
            product_sums = add_tile(product_sums, swap * (d - t), counted, product_shift)
    store_sums(partials[0], plane, split, channel, in_channels, count, donor_shift, donor_sums)
    store_sums(partials[1], plane, split, channel, in_channels, count, target_shift, target_sums)
    store_sums(partials[2], plane, split, channel, in_channels, count, difference_shift, difference_sums)
    if swapped is not None:
        store_sums(partials[3], plane, split, channel, in_channels, count, swap_shift, swap_sums)
        store_sums(partials[4], plane, split, channel, in_channels, count, product_shift, product_sums)


def pair_moments(
    donor: torch.Tensor,
    target: torch.Tensor,
    moments: torch.Tensor,
    mask: torch.Tensor | None = None,
    swapped: torch.Tensor | None = None,
) -> None:
    """``moments`` [3 or 5, 7, C] += statistics of ``donor``, ``target`` [T, C] and what is formed of them."""
    donor, target = contiguous_channels(donor), contiguous_channels(target)
    rows, channels = donor.shape
    block, precision, matrices = BLOCK_C, donor.dtype, [donor, target, donor]
    if swapped is not None:  # products are float32, whatever they are of
        swapped = contiguous_channels(swapped)
        block, precision = SWAPPED_BLOCK_C, torch.float32
        matrices += [swapped, swapped]
    channel_blocks = cdiv(channels, block)
    run, splits = plan_runs(rows, channel_blocks, precision)
    measured = tuple(zip(matrices, moments, strict=True))  # from the third on less target
    partials, plane = empty_partials(splits, *measured)
    with torch.cuda.device_of(donor):
        pair_moments_kernel[(channel_blocks * splits,)](
            donor,
            donor.stride(0),
            target,
            target.stride(0),
            swapped,
            1 if swapped is None else swapped.stride(0),
            mask,
            partials,
            plane,
            rows,
            channels,
            run,
            MAX_RUN=MAX_RUN,
            UNROLL=UNROLL,
            WARPS=WARPS,
            BLOCK_C=block,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
        merge_partials(partials, run, mask, *measured, subtrahend=target)

"""Per-channel statistics of the counted rows of one matrix; see :func:`act_kernels.ops.column_moments`."""

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
    where_counted,
)

UNROLL = 4  # rows of 16 bytes that a thread has in flight


@triton.jit
def measure_run(
    matrix,
    copy,
    mask,
    partials,
    plane,
    split,
    start,
    length,
    channel,
    in_channels,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Writes the partial of one run of some channels of ``matrix``, and its rows to ``copy``; either may be None.

    A matrix is its first value and row stride.
    """
    x, row_stride = matrix
    matrix = (x + start * row_stride, row_stride)
    if mask is not None:
        mask += start
    first, end, count = counted_span(mask, length, MAX_RUN)
    tile_row = tl.arange(0, UNROLL * WARPS)[:, None]
    tile_channel = channel[None, :]

    row = first + tile_row
    wanted = is_counted(mask, row, end) & in_channels[None, :]
    shift = tile_mean(load_values(matrix, row, tile_channel, wanted), wanted, x.dtype.element_ty)
    sums = no_sums(WARPS, channel.shape[0])
    if copy is None:
        for tile_start in range(first, end, UNROLL * WARPS):
            row = tile_start + tile_row
            counted = is_counted(mask, row, end)
            tile = load_values(matrix, row, tile_channel, counted & in_channels[None, :])
            sums = add_tile(sums, tile, counted, shift)
    else:
        out, out_row_stride = copy
        out += start * out_row_stride
        for tile_start in range(0, length, UNROLL * WARPS):
            row = tile_start + tile_row
            wanted = (row < length) & in_channels[None, :]
            tile = load_values(matrix, row, tile_channel, wanted)
            tl.store(out + (row.to(tl.int64) * out_row_stride + tile_channel), tile.to(x.dtype.element_ty), wanted)
            if partials is not None:
                counted = is_counted(mask, row, end)
                sums = add_tile(sums, where_counted(mask, tile, counted), counted, shift)
    if partials is not None:
        store_sums(partials, plane, split, channel, in_channels, count, shift, sums)


@triton.jit(do_not_specialize=["rows", "run"])
def column_moments_kernel(
    x,
    row_stride,
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
    """Writes ``partials`` [S, 7, C] of ``x`` [T, C], counting ``mask`` [T] or all; a program sums one run."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    split = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    in_channels = channel < channels
    start, length = run_bounds(split, rows, run)
    matrix = (x, row_stride)
    measure_run(matrix, None, mask, partials, plane, split, start, length, channel, in_channels, MAX_RUN, UNROLL, WARPS)


def block_channels(element_size: int) -> int:
    """Channels per program: 16 bytes for each thread of a warp."""
    return 32 * 16 // element_size


def column_moments(x: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """``moments`` [7, C] += statistics of ``x`` [T, C]; fastest where rows are 16-byte aligned."""
    x = contiguous_channels(x)
    rows, channels = x.shape
    block = block_channels(x.element_size())
    channel_blocks = cdiv(channels, block)
    run, splits = plan_runs(rows, channel_blocks, x.dtype)
    partials, plane = empty_partials(splits, (x, moments))
    aligned = x.stride(0) * x.element_size() % 16 == 0  # Triton 3.7 would spill registers on the other rows
    with torch.cuda.device_of(x):
        column_moments_kernel[(channel_blocks * splits,)](
            x,
            x.stride(0),
            mask,
            *partials,
            plane,
            rows,
            channels,
            run,
            MAX_RUN=MAX_RUN,
            UNROLL=UNROLL if aligned else UNROLL // 2,
            WARPS=WARPS,
            BLOCK_C=block,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
        merge_partials(partials, run, mask, (x, moments))

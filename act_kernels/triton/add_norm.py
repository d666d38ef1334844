"""Residual sum, its norm, and the statistics of the addend and the norm; see :func:`act_kernels.ops.add_norm`.

A norm reduces rows, its statistics reduce columns. One program that did both would keep ten sums of every channel of a
row, more than registers hold, or read the row again later. So a program takes a run of rows of a block of channels, as
in the other ops, twice: first it adds, and reduces its part of each row; then, when a small kernel has joined the parts
of each row, it normalises. That moves five values for each of ``x``, where one pass would move four.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from act_kernels.triton.partials import (
    MAX_RUN,
    REGISTERS,
    WARPS,
    add_tile,
    cdiv,
    contiguous_channels,
    counted_span,
    empty_partials,
    is_counted,
    load_values,
    merge_partials,
    next_power_of_2,
    no_sums,
    plan_runs,
    run_bounds,
    store_sums,
    tile_mean,
    where_counted,
)

UNROLL = 2  # rows of each input that a thread has in flight
BLOCK_C = 128  # four channels for each thread of a warp
SCALE_TILE = 1024  # parts of rows that a program joins


@triton.jit(do_not_specialize=["rows", "run"])
def add_kernel(
    x,
    x_row_stride,
    residual,
    residual_row_stride,
    total,
    mask,
    x_partials,
    plane,
    row_parts,
    rows,
    channels,
    run,
    CENTERED: tl.constexpr,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes one run of ``total = residual + x`` [T, C], the partial of x, and the parts of rows [1 or 3, blocks, T].

    The part of a row is the sum of squares over a block of channels; CENTERED, of deviations from their mean in
    float32, which follows, and the sum of these deviations. Residual and total may be None (then the parts are of x),
    and so may the partials.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    split = tl.program_id(0) // channel_blocks
    block = tl.program_id(0) % channel_blocks
    channel = tl.max_contiguous(block * BLOCK_C + tl.arange(0, BLOCK_C), BLOCK_C // 32)  # not eight to a thread
    in_channels = channel < channels
    width = tl.minimum(channels - block * BLOCK_C, BLOCK_C)
    start, length = run_bounds(split, rows, run)
    if mask is not None:
        mask += start
    first, end, count = counted_span(mask, length, MAX_RUN)
    matrix = (x + start * x_row_stride, x_row_stride)
    row_parts += block.to(tl.int64) * rows + start
    parts_plane = tl.cast(rows, tl.int64) * channel_blocks
    tile_row = tl.arange(0, UNROLL * WARPS)[:, None]
    tile_channel = channel[None, :]

    row = first + tile_row
    wanted = is_counted(mask, row, end) & in_channels[None, :]
    shift = tile_mean(load_values(matrix, row, tile_channel, wanted), wanted, DTYPE)
    sums = no_sums(WARPS, BLOCK_C)
    for tile_start in range(0, length, UNROLL * WARPS):
        row = tile_start + tile_row
        inside = row < length
        wanted = inside & in_channels[None, :]
        tile = load_values(matrix, row, tile_channel, wanted)
        if x_partials is not None:
            counted = is_counted(mask, row, end)
            sums = add_tile(sums, where_counted(mask, tile, counted), counted, shift)
        if residual is not None:
            residual_matrix = (residual + start * residual_row_stride, residual_row_stride)
            tile = (load_values(residual_matrix, row, tile_channel, wanted) + tile).to(DTYPE)
            tl.store(total + (start + row) * channels + tile_channel, tile, wanted)
            tile = tile.to(tl.float32)
        if CENTERED:
            mean = tl.sum(tile, 1, keep_dims=True) / width
            deviation = tl.where(wanted, tile - mean, 0)
            tl.store(row_parts + parts_plane + row, mean, inside)
            tl.store(row_parts + 2 * parts_plane + row, tl.sum(deviation, 1, keep_dims=True), inside)
            tile = deviation
        tl.store(row_parts + row, tl.sum(tile * tile, 1, keep_dims=True), inside)
    if x_partials is not None:
        store_sums(x_partials, plane, split, channel, in_channels, count, shift, sums)


@triton.jit(do_not_specialize=["rows"])
def row_scale_kernel(
    row_parts,
    scales,
    rows,
    channels,
    eps,
    CENTERED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Joins the parts of ROWS rows, in float64, to their ``scales`` [1 or 3, T]: 1 / sqrt(mean square + eps).

    CENTERED, of the deviations from the mean, which follows, in two float32 numbers that add up to it.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = row < rows
    part = tl.arange(0, PARTS)[:, None]
    parts = tl.cdiv(channels, BLOCK_C)
    wanted = (part < parts) & in_rows[None, :]
    plane = tl.cast(rows, tl.int64)
    offset = part * plane + row[None, :]
    square = tl.load(row_parts + offset, wanted, other=0).to(tl.float64)
    if CENTERED:
        center = tl.load(row_parts + parts * plane + offset, wanted, other=0).to(tl.float64)
        total = tl.load(row_parts + 2 * parts * plane + offset, wanted, other=0).to(tl.float64)
        width = tl.minimum(channels - part * BLOCK_C, BLOCK_C).to(tl.float64)
        mean = tl.sum(tl.where(wanted, center * width + total, 0), 0) / channels
        offset = mean[None, :] - center
        square = tl.where(wanted, square + offset * (offset * width - 2 * total), 0)
        near = mean.to(tl.float32)
        tl.store(scales + plane + row, near, in_rows)
        tl.store(scales + 2 * plane + row, (mean - near.to(tl.float64)).to(tl.float32), in_rows)
    scale = 1 / tl.sqrt(tl.sum(square, 0) / channels + tl.cast(eps, tl.float64))
    tl.store(scales + row, scale.to(tl.float32), in_rows)


@triton.jit
def load_norm(matrix, scales, plane, row, in_rows, channel, in_channels, weight, bias, STYLE: tl.constexpr):
    """Float32 norm [R, C] of rows of a matrix, rounded to its dtype."""
    DTYPE: tl.constexpr = matrix[0].dtype.element_ty
    value = load_values(matrix, row, channel, in_rows & in_channels)
    scale = tl.load(scales + row, in_rows, other=0)
    if STYLE == "layer":
        near = tl.load(scales + plane + row, in_rows, other=0)
        rest = tl.load(scales + 2 * plane + row, in_rows, other=0)
        value = (value - near - rest) * scale * weight
        if bias is not None:
            value += bias
    elif STYLE == "rms":
        value = (value * scale).to(DTYPE).to(tl.float32) * weight
    elif STYLE == "rms_float":
        value = value * scale * weight
    else:
        value = value * scale * (1 + weight)
    return value.to(DTYPE).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "run"])
def norm_kernel(
    total,
    row_stride,
    scales,
    weight,
    bias,
    norm,
    mask,
    partials,
    plane,
    rows,
    channels,
    run,
    STYLE: tl.constexpr,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes one run of the ``norm`` [T, C] of ``total`` by the ``scales`` of its rows, and its partial unless None."""
    DTYPE: tl.constexpr = total.dtype.element_ty
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    split = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.max_contiguous(channel, BLOCK_C // 32)  # not eight to a thread
    in_channels = channel < channels
    start, length = run_bounds(split, rows, run)
    if mask is not None:
        mask += start
    first, end, count = counted_span(mask, length, MAX_RUN)
    matrix = (total + start * row_stride, row_stride)
    scales += start
    scales_plane = tl.cast(rows, tl.int64)
    tile_row = tl.arange(0, UNROLL * WARPS)[:, None]
    tile_channel = channel[None, :]
    in_tile = in_channels[None, :]
    weight = tl.load(weight + tile_channel, in_tile, other=0).to(tl.float32)
    if bias is not None:
        bias = tl.load(bias + tile_channel, in_tile, other=0).to(tl.float32)

    row = first + tile_row
    counted = is_counted(mask, row, end)
    tile = load_norm(matrix, scales, scales_plane, row, counted, tile_channel, in_tile, weight, bias, STYLE)
    shift = tile_mean(tile, counted & in_tile, DTYPE)
    sums = no_sums(WARPS, BLOCK_C)
    for tile_start in range(0, length, UNROLL * WARPS):
        row = tile_start + tile_row
        inside = row < length
        tile = load_norm(matrix, scales, scales_plane, row, inside, tile_channel, in_tile, weight, bias, STYLE)
        tl.store(norm + (start + row) * channels + tile_channel, tile.to(DTYPE), inside & in_tile)
        if partials is not None:
            counted = is_counted(mask, row, end)
            sums = add_tile(sums, tl.where(counted, tile, 0), counted, shift)
    if partials is not None:
        store_sums(partials, plane, split, channel, in_channels, count, shift, sums)


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    style: str,
    x_moments: torch.Tensor | None,
    norm_moments: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``residual + x`` [T, C] and its norm; moments [7, C] += statistics of ``x`` and of the norm, where not None."""
    rows, channels = x.shape
    addend = contiguous_channels(x)
    residual = None if residual is None else contiguous_channels(residual)
    total = x if residual is None else x.new_empty((rows, channels))
    summed = addend if residual is None else total
    norm = x.new_empty((rows, channels))
    channel_blocks = cdiv(channels, BLOCK_C)
    run, splits = plan_runs(rows, channel_blocks, x.dtype)
    measured = ((addend, x_moments), (norm, norm_moments))
    (x_partials, norm_partials), plane = empty_partials(splits, *measured)
    centered = style == "layer"
    row_parts = x.new_empty((3 if centered else 1, channel_blocks, rows), dtype=torch.float32)
    scales = x.new_empty((3 if centered else 1, rows), dtype=torch.float32)
    parts = next_power_of_2(channel_blocks)
    scale_rows = max(1, SCALE_TILE // parts)
    tiles = {"MAX_RUN": MAX_RUN, "UNROLL": UNROLL, "WARPS": WARPS, "BLOCK_C": BLOCK_C}
    options = {"num_warps": WARPS, "maxnreg": REGISTERS, "enable_fp_fusion": True}
    with torch.cuda.device_of(x):
        add_kernel[(channel_blocks * splits,)](
            addend,
            addend.stride(0),
            residual,
            0 if residual is None else residual.stride(0),
            None if residual is None else total,
            mask,
            x_partials,
            plane,
            row_parts,
            rows,
            channels,
            run,
            CENTERED=centered,
            **tiles,
            **options,
        )
        row_scale_kernel[(cdiv(rows, scale_rows),)](
            row_parts,
            scales,
            rows,
            channels,
            float(eps),
            CENTERED=centered,
            BLOCK_C=BLOCK_C,
            PARTS=parts,
            ROWS=scale_rows,
            **options,
        )
        norm_kernel[(channel_blocks * splits,)](
            summed,
            summed.stride(0),
            scales,
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            norm,
            mask,
            norm_partials,
            plane,
            rows,
            channels,
            run,
            STYLE=style,
            **tiles,
            **options,
        )
        merge_partials((x_partials, norm_partials), run, mask, *measured)
    return total, norm

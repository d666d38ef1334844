"""Code shared by the ops that measure: float32 sums of short runs of rows, merged in float64 in a fixed order.

Stage 1 is the op's own kernel. A program sums one *run*, at most MAX_RUN rows of a block of channels, around a shift
close to its mean, and writes float32 ``partials[split, :, channels]`` of each matrix it measures: how many rows
counted, the shift, and the sums of deviations, of their squares, of absolute values, the largest of these, and the
number of values > 0. Stage 2, :func:`merge_partials`, merges the runs of each channel into its moments. Where a run
holds a NaN, an infinity or values whose squares leave the range of float32, where its mean is far from the shift, or
where one value outweighs the others, its sums show it, and stage 2 reads that run again in float64, so the common case
costs nothing extra. Both stages add in an order that depends only on shapes.

In stage 1 a tile is ``[UNROLL * WARPS, C]``: warps take the rows in turn, channels lie along a warp. Its sums stay
``[WARPS, C]`` until the run ends, so the loop exchanges nothing between threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

SUMS = 7  # rows of a partial
WARPS = 4
MIN_RUN = 128  # shorter runs would write almost as much as they read
MAX_RUN = 1024  # rows of 16-bit values summed in float32: at most 128 tiles, each added as a tree
MAX_RUN_FLOAT32 = 256  # sums of equal values, which 16 bits keep exact, round with a bias that grows with the run
PROGRAMS = 512  # enough to keep every memory channel of an H200 busy; fixed, so that all GPUs give the same bits
MERGE_TILE = 256  # runs x channels in one step of the merge: two of each thread, with all their float64 values
NEAR = tl.constexpr(0.75)  # share of a run's squares that may cancel: its mean is near the shift
DOMINANT = tl.constexpr(64.0)  # times the mean size of a run: a larger value outweighs the others
REGISTERS = 168  # for three programs per multiprocessor; the assembler may aim at four, and spill a few registers

Measured = tuple[torch.Tensor, torch.Tensor | None]  # a matrix [T, C] and its moments [7, C], None if not wanted


def cdiv(n: int, size: int) -> int:
    """``n / size`` rounded up; several calls of triton.cdiv take as long as a launch."""
    return -(-n // size)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()


def plan_runs(rows: int, channel_blocks: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows per run and the number of runs: the longest runs that fill the GPU."""
    wanted = cdiv(PROGRAMS, channel_blocks)
    run = cdiv(cdiv(rows, wanted), 32) * 32  # whole tiles
    run = min(max(run, MIN_RUN), MAX_RUN_FLOAT32 if dtype == torch.float32 else MAX_RUN)
    return run, cdiv(rows, run)


@triton.jit
def run_bounds(split, rows, run):
    """The first row of a run, and its number of rows."""
    start = split.to(tl.int64) * run
    return start, tl.minimum(rows - start, run).to(tl.int32)


@triton.jit
def counted_span(mask, length, MAX_RUN: tl.constexpr):
    """The first counted row of a run, the end of its last one, and the number of counted rows between them."""
    if mask is None:
        first, end, count = length * 0, length, length
    else:
        row = tl.arange(0, MAX_RUN)
        counted = tl.load(mask + row, row < length, other=0).to(tl.int1)
        first = tl.min(tl.where(counted, row, MAX_RUN), 0)
        end = tl.max(tl.where(counted, row + 1, 0), 0)
        count = tl.sum(counted.to(tl.int32), 0)
    return first, end, count


@triton.jit
def is_counted(mask, row, end):
    """Which rows are loaded."""
    counted = row < end
    if mask is not None:
        counted = tl.load(mask + row, counted, other=0).to(tl.int1)
    return counted


@triton.jit
def load_values(matrix, row, channel, wanted):
    """Float32 values [R, C] at ``row`` [R, 1] and ``channel`` [1, C]; 0 where not wanted."""
    data, row_stride = matrix
    return tl.load(data + (row.to(tl.int64) * row_stride + channel), wanted, other=0).to(tl.float32)


@triton.jit
def where_counted(mask, tile, counted):
    """The tile with 0 in rows that do not count; without a mask these are the rows that were not loaded, 0 already."""
    if mask is not None:
        tile = tl.where(counted, tile, 0)
    return tile


@triton.jit
def tile_mean(tile, wanted, DTYPE: tl.constexpr):
    """Mean [C] of the finite wanted values, 0 if none: the shift around which a run is summed."""
    finite = wanted & (tl.abs(tile) < float("inf"))
    count = tl.sum(tl.where(finite, 1.0, 0.0), 0)
    # Divided before the sum, which could overflow.
    share = tl.where(finite, tile, 0) / tl.maximum(count, 1)[None, :]
    # Cut to the precision of the input: deviations of 16-bit values and most of their sums are then exact.
    return tl.sum(share, 0).to(DTYPE).to(tl.float32)


@triton.jit
def no_sums(WARPS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Empty sums [WARPS, C] of deviations, their squares, absolute values, the largest of them, values > 0."""
    zero = tl.zeros([WARPS, BLOCK_C], tl.float32)
    return zero, zero, zero, zero, zero


@triton.jit
def by_warp(tile, WARPS: tl.constexpr):
    """A tile [U * W, C] as [U, W, C]: rows of one thread, then of all warps. As loaded, so that nothing moves."""
    return tl.reshape(tile, [tile.shape[0] // WARPS, WARPS, tile.shape[1]])


@triton.jit
def add_tile(sums, tile, counted, shift):
    """The sums with a tile added; where rows are not ``counted`` [U * W, 1], the tile is 0."""
    total, square, absolute, largest, positive = sums
    WARPS: tl.constexpr = total.shape[0]
    deviation = by_warp(tl.fma(counted.to(tl.float32), -shift[None, :], tile), WARPS)
    magnitude = by_warp(tl.abs(tile), WARPS)
    total += tl.sum(deviation, 0)
    square += tl.sum(deviation * deviation, 0)
    absolute += tl.sum(magnitude, 0)
    largest = tl.maximum(largest, tl.max(magnitude, 0))
    positive += tl.sum(by_warp(tl.where(tile > 0, 1.0, 0.0), WARPS), 0)
    return total, square, absolute, largest, positive


@triton.jit
def store_sums(partials, plane, split, channel, in_channels, count, shift, sums):
    """Writes ``partials`` [S, 7, C], rows ``plane`` values apart, of one run and block of channels."""
    total, square, absolute, largest, positive = sums
    plane = tl.cast(plane, tl.int64)
    partial = partials + split * 7 * plane + channel
    tl.store(partial, tl.zeros_like(shift) + count, in_channels)
    tl.store(partial + plane, shift, in_channels)
    tl.store(partial + 2 * plane, tl.sum(total, 0), in_channels)
    tl.store(partial + 3 * plane, tl.sum(square, 0), in_channels)
    tl.store(partial + 4 * plane, tl.sum(absolute, 0), in_channels)
    tl.store(partial + 5 * plane, tl.max(largest, 0), in_channels)
    tl.store(partial + 6 * plane, tl.sum(positive, 0), in_channels)


def contiguous_channels(x: torch.Tensor) -> torch.Tensor:
    """``x`` [T, C], copied unless the channels of a row are neighbours: a warp reads along a row."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def empty_partials(splits: int, *measured: Measured) -> tuple[tuple[torch.Tensor | None, ...], int]:
    """Per matrix ``[S, 7, C]``, uninitialised: stage 1 writes all of it; and how far its rows are apart.

    They are views of one buffer, None for matrices without moments.
    """
    widths = [0 if moments is None else x.shape[1] for x, moments in measured]
    buffer = measured[0][0].new_empty((splits, SUMS, sum(widths)), dtype=torch.float32)
    views = buffer.split_with_sizes(widths, 2)
    return tuple(view if width else None for view, width in zip(views, widths, strict=True)), sum(widths)


@triton.jit
def merge_tile(moments, count, mean, m2, absolute, largest, positive, nonfinite):
    """The seven float64 ``moments`` [C] merged with those of N groups of values [N, C]; groups of count 0 are empty.

    Of the groups: ``mean = sum(n_i mean_i) / n``, ``M2 = sum(M2_i + n_i (mean_i - mean)**2)`` with ``n = sum(n_i)``;
    these two join by the formula of :func:`act_kernels.statistics.merge_moments`.
    """
    all_count, all_mean, all_m2, all_absolute, all_largest, all_positive, all_nonfinite = moments
    n = tl.sum(count, 0)
    center = tl.sum(count * mean, 0) / tl.maximum(n, 1)
    spread = mean - center[None, :]
    both = all_count + n
    weight = n / tl.maximum(both, 1)
    delta = center - all_mean
    all_m2 += tl.sum(m2 + count * spread * spread, 0) + delta * delta * all_count * weight
    # From the nearer end, so that merging into an empty block copies the mean.
    all_mean = tl.where(weight < 0.5, all_mean + delta * weight, center - delta * (1 - weight))
    return (
        both,
        all_mean,
        all_m2,
        all_absolute + tl.sum(absolute, 0),
        tl.maximum(all_largest, tl.max(largest, 0)),
        all_positive + tl.sum(positive, 0),
        all_nonfinite + tl.sum(nonfinite, 0),
    )


@triton.jit
def merge_rows(moments, x, other, factor, mask, begin, end, channel, chosen, ROWS: tl.constexpr):
    """The ``moments`` merged with rows ``begin`` to ``end`` of the chosen channels, each value as a separate group.

    The values are those of ``x``, less those of ``other``: a matrix, and whether to subtract it; or None. They may be
    multiplied by those of ``factor`` less ``other``: a matrix, and whether to multiply; or None.
    """
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        wanted = is_counted(mask, row, end) & chosen[None, :]
        value = load_values(x, row, channel[None, :], wanted)
        if other is not None:
            matrix, subtracted = other
            subtrahend = load_values(matrix, row, channel[None, :], wanted)
            value = tl.where(subtracted, value - subtrahend, value)
            if factor is not None:
                matrix, multiplied = factor
                step = load_values(matrix, row, channel[None, :], wanted) - subtrahend
                value = tl.where(multiplied, value * step, value)
        value = value.to(tl.float64)
        finite = wanted & (tl.abs(value) < float("inf"))
        value = tl.where(finite, value, 0)
        size = tl.abs(value)
        moments = merge_tile(
            moments,
            count=finite.to(tl.float64),
            mean=value,
            m2=tl.zeros_like(value),
            absolute=size,
            largest=size,
            positive=(value > 0).to(tl.float64),
            nonfinite=(wanted & ~finite).to(tl.float64),
        )
    return moments


@triton.jit
def choose_part(parts, index):
    """The part with that index, its members chosen by selection."""
    partials, moments, statistic_stride, x, row_stride, channels = parts[0]
    for i in tl.static_range(1, len(parts)):
        here = index == i
        partials = tl.where(here, parts[i][0], partials)
        moments = tl.where(here, parts[i][1], moments)
        statistic_stride = tl.where(here, parts[i][2], statistic_stride)
        x = tl.where(here, parts[i][3], x)
        row_stride = tl.where(here, parts[i][4], row_stride)
        channels = tl.where(here, parts[i][5], channels)
    return partials, moments, statistic_stride, x, row_stride, channels


@triton.jit
def merge_runs(
    partials,
    plane,
    splits,
    moments,
    statistic_stride,
    matrix,
    other,
    factor,
    mask,
    rows,
    run,
    channel,
    in_channels,
    BLOCK_S: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Merges the ``partials`` [S, 7, C] of a matrix [T, C] into its ``moments`` [7, C]; see :func:`merge_rows`."""
    plane = tl.cast(plane, tl.int64)  # a size of 1 is a plain int
    statistic = tl.cast(statistic_stride, tl.int64)
    moments += channel

    merged = (
        tl.load(moments, in_channels, other=0),
        tl.load(moments + statistic, in_channels, other=0),
        tl.load(moments + 2 * statistic, in_channels, other=0),
        tl.load(moments + 3 * statistic, in_channels, other=0),
        tl.load(moments + 4 * statistic, in_channels, other=0),
        tl.load(moments + 5 * statistic, in_channels, other=0),
        tl.load(moments + 6 * statistic, in_channels, other=0),
    )
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)[:, None]
        partial = partials + split.to(tl.int64) * 7 * plane + channel[None, :]
        wanted = (split < splits) & in_channels[None, :]
        count = tl.load(partial, wanted, other=0)
        shift = tl.load(partial + plane, wanted, other=0)
        total = tl.load(partial + 2 * plane, wanted, other=0)
        square = tl.load(partial + 3 * plane, wanted, other=0)
        absolute = tl.load(partial + 4 * plane, wanted, other=0)
        largest = tl.load(partial + 5 * plane, wanted, other=0)
        positive = tl.load(partial + 6 * plane, wanted, other=0)

        # NaN, infinite and overflowing values make a sum NaN or infinite; squares of tiny ones may have underflowed.
        vanishing = (largest > 0) & (largest < 1e-10)
        if factor is not None:  # products of small differences are tiny while their squares are sums as any other
            vanishing &= ~factor[1] | (square < 1e-27)
        suspect = ~(square + absolute < float("inf")) | vanishing
        # More than NEAR of the squares would cancel in the variance; small values are lost beside the largest.
        suspect |= total * total > count * square * NEAR
        suspect |= largest * count > absolute * DOMINANT
        count = tl.where(suspect, 0, count).to(tl.float64)
        total = tl.where(suspect, 0, total).to(tl.float64)
        offset = total / tl.maximum(count, 1)
        merged = merge_tile(
            merged,
            count=count,
            mean=tl.where(suspect, 0, shift).to(tl.float64) + offset,
            m2=tl.maximum(tl.where(suspect, 0, square) - total * offset, 0),
            absolute=tl.where(suspect, 0, absolute).to(tl.float64),
            largest=tl.where(suspect, 0, largest).to(tl.float64),
            positive=tl.where(suspect, 0, positive).to(tl.float64),
            nonfinite=tl.zeros_like(count),
        )
        suspects = suspect.to(tl.int32)
        if tl.max(tl.max(suspects, 0), 0) > 0:
            for s in range(start, tl.minimum(start + BLOCK_S, splits)):
                chosen = tl.max(tl.where(split == s, suspects, 0), 0) > 0
                begin = tl.cast(s, tl.int64) * run  # an interpreted loop counts in int
                end = tl.where(tl.max(chosen.to(tl.int32), 0) > 0, tl.minimum(begin + run, rows), begin)
                merged = merge_rows(merged, matrix, other, factor, mask, begin, end, channel, chosen, ROWS)
    for statistic_index in tl.static_range(7):
        tl.store(moments + statistic_index * statistic, merged[statistic_index], in_channels)


@triton.jit(do_not_specialize=["splits", "rows", "run"])
def merge_partials_kernel(
    parts,
    plane,
    splits,
    subtrahend,
    subtrahend_row_stride,
    mask,
    rows,
    run,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Merges one block of channels of one of the ``parts``.

    A part is its partials [S, 7, C], its moments [7, C] and their row stride, and its matrix [T, C], row stride and C.
    Unless it is None, the ``subtrahend`` is subtracted from the matrices of the third part and those after it, and the
    fifth part is the product of its difference and the third's.
    """
    index = tl.program_id(1)
    partials, moments, statistic_stride, x, row_stride, channels = choose_part(parts, index)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.max_contiguous(channel, 1)  # or a thread would hold the float64 moments of four channels
    in_channels = channel < channels
    other = None
    factor = None
    if subtrahend is not None:
        other = ((subtrahend, subtrahend_row_stride), index >= 2)
        if len(parts) == 5:
            factor = ((parts[2][3], parts[2][4]), index == 4)
    matrix = (x, row_stride)
    merge_runs(
        partials,
        plane,
        splits,
        moments,
        statistic_stride,
        matrix,
        other,
        factor,
        mask,
        rows,
        run,
        channel,
        in_channels,
        BLOCK_S,
        ROWS,
    )


def merge_partials(
    partials: Sequence[torch.Tensor | None],
    run: int,
    mask: torch.Tensor | None,
    *measured: Measured,
    subtrahend: torch.Tensor | None = None,
) -> None:
    """Merges the ``partials`` of runs of ``run`` rows into the moments that are measured.

    If there is a ``subtrahend`` [T, C], these are those of a pair; see :func:`merge_partials_kernel`.
    """
    parts = tuple(
        (partial, moments, moments.stride(0), x, x.stride(0), x.shape[1])
        for partial, (x, moments) in zip(partials, measured, strict=True)
        if partial is not None and moments is not None
    )
    if not parts:
        return
    splits, _, _ = parts[0][0].shape
    split_tile = min(32, next_power_of_2(splits))
    channel_tile = MERGE_TILE // split_tile
    widest = max(channels for *_, channels in parts)
    merge_partials_kernel[(cdiv(widest, channel_tile), len(parts))](
        parts,
        parts[0][0].stride(1),
        splits,
        subtrahend,
        1 if subtrahend is None else subtrahend.stride(0),
        mask,
        len(parts[0][3]),
        run,
        BLOCK_S=split_tile,
        BLOCK_C=channel_tile,
        ROWS=split_tile,
        num_warps=WARPS,
        maxnreg=REGISTERS,
        enable_fp_fusion=True,
    )

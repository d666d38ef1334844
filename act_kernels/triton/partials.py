"""What the two moments ops share: the sums of one run of rows, and the merge of all runs in a fixed order.

Stage 1 is the op's own kernel: each program sums one *run*, at most :data:`MAX_RUN` rows of a block of channels, and
writes the moments block of that run to float64 ``partials[b, split, :, channels]``. Stage 2, :func:`merge_partials`,
merges the runs of a channel into its moments. Both stages add in an order that depends on the shapes alone.

A run is summed in float32 as tiles ``[UNROLL, WARPS, C]``: rows of one thread, one row per warp, channels of a warp.
The sums stay ``[WARPS, C]`` until the run ends, so the loop exchanges nothing between threads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from act_kernels.statistics import STATISTICS

WARPS = 4
MAX_RUN = 1024  # rows summed in float32: 32 tiles, each added as a tree
MIN_RUN = 128  # shorter ones would write as many bytes as they read
PROGRAMS = 512  # enough to keep every memory channel of an H200 busy; fixed, so that all GPUs give the same bits
MERGE_TILE = 512  # splits x channels of one step of the merge


def plan_runs(rows: int, channel_blocks: int) -> tuple[int, int]:
    """Rows per run and the number of runs: the longest runs that fill the GPU."""
    wanted = triton.cdiv(PROGRAMS, channel_blocks)
    run = triton.cdiv(triton.cdiv(rows, wanted), 32) * 32  # whole tiles
    run = min(max(run, MIN_RUN), MAX_RUN)
    return run, triton.cdiv(rows, run)


@triton.jit
def counted_span(mask, length, MAX_RUN: tl.constexpr):
    """First counted row of a run, end of its last one, and how many rows count between them."""
    if mask is None:
        first, end, counted = length * 0, length, length
    else:
        row = tl.arange(0, MAX_RUN)
        counts = tl.load(mask + row, row < length, other=0).to(tl.int1)
        first = tl.min(tl.where(counts, row, MAX_RUN), 0)
        end = tl.max(tl.where(counts, row + 1, 0), 0)
        counted = tl.sum(counts.to(tl.int32), 0)
    return first, end, counted


@triton.jit
def is_counted(mask, row, end):
    """Which rows are loaded at all."""
    counted = row < end
    if mask is not None:
        counted = tl.load(mask + row, counted, other=0).to(tl.int1)
    return counted


@triton.jit
def load_tile(x, row, row_stride, wanted):
    """Float32 tile of the rows ``row`` [U, W, 1] at the channel pointers ``x`` [C], 0 where not wanted."""
    return tl.load(x[None, None, :] + row.to(tl.int64) * row_stride, wanted, other=0).to(tl.float32)


@triton.jit
def tile_mean(tile, wanted, DTYPE: tl.constexpr):
    """Mean [C] of the finite wanted values, 0 if none: the shift around which a run is summed."""
    finite = wanted & (tl.abs(tile) < float("inf"))
    count = tl.sum(tl.sum(finite.to(tl.float32), 0), 0)
    # Divided before the sum, which could overflow.
    share = tl.where(finite, tile, 0) / tl.maximum(count, 1)[None, None, :]
    # Cut to the precision of the input: deviations of 16-bit values and most of their sums are then exact.
    return tl.sum(tl.sum(share, 0), 0).to(DTYPE).to(tl.float32)


@triton.jit
def no_sums(WARPS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Empty sums [WARPS, C]: deviations, their squares, absolute values, the largest of them, values > 0."""
    zero = tl.zeros([WARPS, BLOCK_C], tl.float32)
    return zero, zero, zero, zero, zero


@triton.jit
def add_tile(sums, tile, weight, shift):
    """The sums with a tile added; weight [U, W, 1] is 1 for counted rows, else 0, where the tile is 0 too.

    NaN, infinity and float32 overflow end up in the absolute or square sum: :func:`store_run` looks for them there.
    """
    total, square, absolute, largest, positive = sums
    deviation = tile - weight * shift[None, None, :]  # one fused multiply-add
    magnitude = tl.abs(tile)
    total += tl.sum(deviation, 0)
    square += tl.sum(deviation * deviation, 0)
    absolute += tl.sum(magnitude, 0)
    largest = tl.maximum(largest, tl.max(magnitude, 0))
    positive += tl.sum((tile > 0).to(tl.float32), 0)
    return total, square, absolute, largest, positive


@triton.jit
def store_run(
    sums, shift, counted, first, end, x, x_stride, other, other_stride, mask, in_channels, partial, plane
):
    """Writes the moments block of one run of ``x``, or of ``x - other``, with its rows ``plane`` values apart.

    A block of channels with a NaN, an infinity, or squares out of the range of float32 is read again in float64.
    """
    WARPS: tl.constexpr = sums[0].shape[0]
    total = tl.sum(sums[0].to(tl.float64), 0)
    square = tl.sum(sums[1].to(tl.float64), 0)
    absolute = tl.sum(sums[2].to(tl.float64), 0)
    largest = tl.max(sums[3], 0)
    positive = tl.sum(sums[4], 0)
    _store_block((total, square, absolute, largest, positive, 0), shift, counted, in_channels, partial, plane)
    suspect = ~(square + absolute < float("inf")) | ((largest > 0) & (largest < 1e-10))
    if tl.max(suspect.to(tl.int32), 0) > 0:
        exact = _exact_sums(shift, first, end, x, x_stride, other, other_stride, mask, in_channels, WARPS)
        _store_block(exact, shift, counted, in_channels, partial, plane)


@triton.jit
def _store_block(sums, shift, counted, in_channels, partial, plane):
    total, square, absolute, largest, positive, nonfinite = sums
    count = counted - nonfinite + tl.zeros_like(total)
    offset = total / tl.maximum(count, 1)
    tl.store(partial, count, in_channels)
    tl.store(partial + plane, tl.where(count > 0, shift + offset, 0), in_channels)
    tl.store(partial + 2 * plane, tl.maximum(square - total * offset, 0), in_channels)
    tl.store(partial + 3 * plane, absolute, in_channels)
    tl.store(partial + 4 * plane, largest, in_channels)
    tl.store(partial + 5 * plane, positive, in_channels)
    tl.store(partial + 6 * plane, nonfinite, in_channels)


@triton.jit
def _exact_sums(shift, first, end, x, x_stride, other, other_stride, mask, in_channels, WARPS: tl.constexpr):
    """The sums [C] of one run's finite values in float64, and the number of the others."""
    zero = tl.zeros([WARPS, shift.shape[0]], tl.float64)
    total, square, absolute, largest = zero, zero, zero, zero
    positive = tl.zeros([WARPS, shift.shape[0]], tl.int32)
    nonfinite = positive
    for start in range(first, end, WARPS):
        row = start + tl.arange(0, WARPS)[:, None]
        wanted = is_counted(mask, row, end) & in_channels[None, :]
        value = tl.load(x[None, :] + row.to(tl.int64) * x_stride, wanted, other=0).to(tl.float64)
        if other is not None:
            value -= tl.load(other[None, :] + row.to(tl.int64) * other_stride, wanted, other=0).to(tl.float64)
        magnitude = tl.abs(value)
        finite = wanted & (magnitude < float("inf"))
        magnitude = tl.where(finite, magnitude, 0)
        deviation = tl.where(finite, value - shift[None, :], 0)
        total += deviation
        square += deviation * deviation
        absolute += magnitude
        largest = tl.maximum(largest, magnitude)
        positive += (finite & (value > 0)).to(tl.int32)
        nonfinite += (wanted & ~finite).to(tl.int32)
    return (
        tl.sum(total, 0),
        tl.sum(square, 0),
        tl.sum(absolute, 0),
        tl.max(largest, 0),
        tl.sum(positive, 0),
        tl.sum(nonfinite, 0),
    )


@triton.jit(do_not_specialize=["splits"])
def merge_partials_kernel(
    partials, moments, splits, channels, block_stride, row_stride, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Merges ``partials`` [B, S, 7, C] into ``moments`` [B, 7, C] in the order of the splits.

    Of BLOCK_S runs at a time: ``mean = sum(n_i mean_i) / sum(n_i)``, ``M2 = sum(M2_i + n_i (mean_i - mean)**2)``;
    then Chan's formula for two, as in :func:`act_kernels.statistics.merge_moments`.
    """
    block = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_channels = channel < channels
    moments += block * block_stride + channel
    row_stride = row_stride.to(tl.int64)
    plane = channels.to(tl.int64)
    partials += block * splits * 7 * plane + channel[None, :]

    count = tl.load(moments, in_channels, other=0)
    mean = tl.load(moments + row_stride, in_channels, other=0)
    m2 = tl.load(moments + 2 * row_stride, in_channels, other=0)
    absolute = tl.load(moments + 3 * row_stride, in_channels, other=0)
    largest = tl.load(moments + 4 * row_stride, in_channels, other=0)
    positive = tl.load(moments + 5 * row_stride, in_channels, other=0)
    nonfinite = tl.load(moments + 6 * row_stride, in_channels, other=0)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)[:, None]
        part = partials + split.to(tl.int64) * 7 * plane
        wanted = (split < splits) & in_channels[None, :]
        counts = tl.load(part, wanted, other=0)
        means = tl.load(part + plane, wanted, other=0)
        m2s = tl.load(part + 2 * plane, wanted, other=0)
        absolute += tl.sum(tl.load(part + 3 * plane, wanted, other=0), 0)
        largest = tl.maximum(largest, tl.max(tl.load(part + 4 * plane, wanted, other=0), 0))
        positive += tl.sum(tl.load(part + 5 * plane, wanted, other=0), 0)
        nonfinite += tl.sum(tl.load(part + 6 * plane, wanted, other=0), 0)

        tile_count = tl.sum(counts, 0)
        tile_mean = tl.sum(counts * means, 0) / tl.maximum(tile_count, 1)
        spread = means - tile_mean[None, :]
        total = count + tile_count
        weight = tile_count / tl.maximum(total, 1)
        delta = tile_mean - mean
        m2 += tl.sum(m2s + counts * spread * spread, 0) + delta * delta * count * weight
        # From the nearer end, so that merging into an empty block copies the mean.
        mean = tl.where(weight < 0.5, mean + delta * weight, tile_mean - delta * (1 - weight))
        count = total
    tl.store(moments, count, in_channels)
    tl.store(moments + row_stride, mean, in_channels)
    tl.store(moments + 2 * row_stride, m2, in_channels)
    tl.store(moments + 3 * row_stride, absolute, in_channels)
    tl.store(moments + 4 * row_stride, largest, in_channels)
    tl.store(moments + 5 * row_stride, positive, in_channels)
    tl.store(moments + 6 * row_stride, nonfinite, in_channels)


def empty_partials(blocks: int, splits: int, like: torch.Tensor) -> torch.Tensor:
    """Uninitialised ``[B, S, 7, C]``: every program of stage 1 writes its whole part."""
    shape = (blocks, splits, len(STATISTICS), like.shape[1])
    return torch.empty(shape, dtype=torch.float64, device=like.device)


def merge_partials(partials: torch.Tensor, moments: torch.Tensor) -> None:
    """Merges ``partials`` [B, S, 7, C] into ``moments`` [B, 7, C], in place."""
    blocks, splits, _, channels = partials.shape
    split_tile = min(32, triton.next_power_of_2(splits))
    channel_tile = MERGE_TILE // split_tile
    merge_partials_kernel[(triton.cdiv(channels, channel_tile), blocks)](
        partials,
        moments,
        splits,
        channels,
        moments.stride(0),
        moments.stride(1),
        BLOCK_S=split_tile,
        BLOCK_C=channel_tile,
        num_warps=WARPS,
    )

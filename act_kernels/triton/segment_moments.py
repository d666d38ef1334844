"""Per-channel statistics of every segment of rows of one matrix; see :func:`act_kernels.ops.segment_moments`.

The GPU alone knows where segments begin. Run k of segment e has the number ``offsets[e] // run + e + k``, whatever the
segments before it hold, so a launch has ``rows // run + segments`` of them, some of which stay unused.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from act_kernels.triton.column_moments import UNROLL, block_channels, measure_run
from act_kernels.triton.partials import (
    MAX_RUN,
    MERGE_TILE,
    REGISTERS,
    WARPS,
    cdiv,
    contiguous_channels,
    empty_partials,
    merge_runs,
    plan_runs,
)

SOUGHT = 256  # segments that a program looks through at a time
MERGED = 8  # runs of one segment in one step of the merge: most segments have few


@triton.jit
def offset_of(offsets, segment, segments, rows):
    """The first row of a segment; one that is not in the matrix is cut, so that nothing outside is ever read."""
    offset = tl.load(offsets + segment, segment <= segments, other=0).to(tl.int64)
    return tl.minimum(tl.maximum(offset, 0), rows)


@triton.jit
def first_run(offsets, segment, segments, rows, run):
    """The number of the first run of a segment."""
    return offset_of(offsets, segment, segments, rows) // run + segment


@triton.jit(do_not_specialize=["rows", "run", "segments"])
def segment_moments_kernel(
    x,
    row_stride,
    mask,
    offsets,
    segments,
    partials,
    plane,
    rows,
    channels,
    run,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SOUGHT: tl.constexpr,
):
    """Writes ``partials`` [S, 7, C] of ``x`` [R, C], counting ``mask`` [R] or all; a program sums at most one run."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    split = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    in_channels = channel < channels
    begun = tl.cast(0, tl.int32)  # segments whose runs begin no later
    for start in range(0, segments, SOUGHT):
        segment = start + tl.arange(0, SOUGHT)
        earlier = (segment < segments) & (first_run(offsets, segment, segments, rows, run) <= split)
        begun += tl.sum(earlier.to(tl.int32), 0)
    segment = tl.maximum(begun - 1, 0)
    number = split - first_run(offsets, segment, segments, rows, run)
    start = offset_of(offsets, segment, segments, rows) + number * run
    length = tl.minimum(offset_of(offsets, segment + 1, segments, rows) - start, run).to(tl.int32)
    if (number >= 0) & (length > 0):
        matrix = (x, row_stride)
        measure_run(
            matrix, None, mask, partials, plane, split, start, length, channel, in_channels, MAX_RUN, UNROLL, WARPS
        )


@triton.jit(do_not_specialize=["rows", "run", "segments"])
def merge_segments_kernel(
    x,
    row_stride,
    mask,
    offsets,
    segments,
    partials,
    plane,
    moments,
    statistic_stride,
    segment_stride,
    rows,
    channels,
    run,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merges one block of channels of one segment into ``moments`` [7, E, C]."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    segment = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.max_contiguous(channel, 1)  # or a thread would hold the float64 moments of four channels
    in_channels = channel < channels
    start = offset_of(offsets, segment, segments, rows)
    length = (offset_of(offsets, segment + 1, segments, rows) - start).to(tl.int32)
    if length > 0:
        first = first_run(offsets, segment, segments, rows, run)
        partials += first * 7 * plane
        moments += tl.cast(segment, tl.int64) * segment_stride
        matrix = (x + start * row_stride, row_stride)
        if mask is not None:
            mask += start
        splits = tl.cdiv(length, run)
        merge_runs(
            partials,
            plane,
            splits,
            moments,
            statistic_stride,
            matrix,
            None,
            None,
            mask,
            length,
            run,
            channel,
            in_channels,
            BLOCK_S,
            BLOCK_S,
        )


def segment_moments(
    x: torch.Tensor, moments: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    """``moments`` [7, E, C] += statistics of the segments of ``x`` [R, C] that begin at ``offsets`` [E + 1]."""
    x = contiguous_channels(x)
    (rows, channels), segments = x.shape, len(offsets) - 1
    block = block_channels(x.element_size())
    channel_blocks = cdiv(channels, block)
    run, _ = plan_runs(rows, channel_blocks, x.dtype)
    splits = rows // run + segments
    (partials,), plane = empty_partials(splits, (x, moments))
    aligned = x.stride(0) * x.element_size() % 16 == 0  # Triton 3.7 would spill registers on the other rows
    matrix = (x, x.stride(0), mask, offsets, segments, partials, plane)
    with torch.cuda.device_of(x):
        segment_moments_kernel[(channel_blocks * splits,)](
            *matrix,
            rows,
            channels,
            run,
            MAX_RUN=MAX_RUN,
            UNROLL=UNROLL if aligned else UNROLL // 2,
            WARPS=WARPS,
            BLOCK_C=block,
            SOUGHT=SOUGHT,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
        merge_segments_kernel[(cdiv(channels, MERGE_TILE // MERGED) * segments,)](
            *matrix,
            moments,
            moments.stride(0),
            moments.stride(1),
            rows,
            channels,
            run,
            BLOCK_S=MERGED,
            BLOCK_C=MERGE_TILE // MERGED,
            num_warps=WARPS,
            maxnreg=REGISTERS,
            enable_fp_fusion=True,
        )

"""Rotary embedding of q and k, and the statistics of q, k and v before it; see :func:`act_kernels.ops.rotary`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from act_kernels.statistics import empty_moments
from act_kernels.triton.column_moments import measure_run
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
    no_sums,
    plan_runs,
    run_bounds,
    store_sums,
    tile_mean,
    where_counted,
)

UNROLL = 2  # rows of both halves and of four tables that a thread has in flight
BLOCK = 128  # pairs that rotate, or channels that do not: four for each thread of a warp


@triton.jit
def load_halves(matrix, row, lane, wanted, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """First and second values of pairs, float32 [R, BLOCK]: neighbours, loaded together, or HALF apart."""
    if INTERLEAVED:
        tile = load_values(matrix, row, lane, wanted)
        first, second = tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1] // 2, 2]))
    else:
        first = load_values(matrix, row, lane, wanted)
        second = load_values(matrix, row, lane + HALF, wanted)
    return first, second


@triton.jit
def turned(x, cos, across, sin, ROUND_ONCE: tl.constexpr, DTYPE: tl.constexpr):
    """``x * cos + across * sin``; unless ROUND_ONCE, both products are rounded to DTYPE first."""
    along, across = x * cos, across * sin
    if not ROUND_ONCE:
        along, across = along.to(DTYPE).to(tl.float32), across.to(DTYPE).to(tl.float32)
    return (along + across).to(DTYPE)


@triton.jit
def turn_run(
    part,
    partials,
    tables,
    mask,
    plane,
    split,
    start,
    length,
    block,
    WIDTH: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROUND_ONCE: tl.constexpr,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotates one run of a block of pairs, counted over all heads, and writes the partials of both channels."""
    x, row_stride, heads, out = part
    cos, sin, table_rows = tables
    DTYPE: tl.constexpr = x.dtype.element_ty
    HALF: tl.constexpr = TURNED // 2
    # Lanes are what a row of the tile loads at once: both values of neighbours, else the first of each pair.
    LANES: tl.constexpr = 2 * BLOCK if INTERLEAVED else BLOCK
    SPAN: tl.constexpr = TURNED if INTERLEAVED else HALF
    index = block * LANES + tl.arange(0, LANES)
    in_lanes = (index // SPAN < heads)[None, :]
    table_lane = index % SPAN
    lane = index // SPAN * WIDTH + table_lane
    if not INTERLEAVED and SPAN % 4 == 0 and WIDTH % 4 == 0:
        table_lane, lane = tl.max_contiguous(table_lane, 4), tl.max_contiguous(lane, 4)  # for one thread
    table_lane, lane = table_lane[None, :], lane[None, :]
    pair = block * BLOCK + tl.arange(0, BLOCK)
    in_pairs = pair // HALF < heads
    channel = pair // HALF * WIDTH + pair % HALF * (2 if INTERLEAVED else 1)
    next_channel = channel + (1 if INTERLEAVED else HALF)

    matrix = (x + start * row_stride, row_stride)
    if mask is not None:
        mask += start
    first, end, count = counted_span(mask, length, MAX_RUN)
    channels = heads * WIDTH
    out += start * channels
    start_row = start.to(tl.int32)
    tile_row = tl.arange(0, UNROLL * WARPS)[:, None]

    row = first + tile_row
    counted = is_counted(mask, row, end)
    a, b = load_halves(matrix, row, lane, counted & in_lanes, HALF, INTERLEAVED)
    a_shift = tile_mean(a, counted & in_pairs[None, :], DTYPE)
    b_shift = tile_mean(b, counted & in_pairs[None, :], DTYPE)
    a_sums = no_sums(WARPS, BLOCK)
    b_sums = no_sums(WARPS, BLOCK)
    for tile_start in range(0, length, UNROLL * WARPS):
        row = tile_start + tile_row
        wanted = (row < length) & in_lanes
        a, b = load_halves(matrix, row, lane, wanted, HALF, INTERLEAVED)
        table_row = (start_row + row) % table_rows
        a_cos, b_cos = load_halves((cos, TURNED), table_row, table_lane, wanted, HALF, INTERLEAVED)
        a_sin, b_sin = load_halves((sin, TURNED), table_row, table_lane, wanted, HALF, INTERLEAVED)
        a_turned = turned(a, a_cos, -b, a_sin, ROUND_ONCE, DTYPE)
        b_turned = turned(b, b_cos, a, b_sin, ROUND_ONCE, DTYPE)
        to = out + (row.to(tl.int64) * channels + lane)
        if INTERLEAVED:
            tl.store(to, tl.reshape(tl.join(a_turned, b_turned), [UNROLL * WARPS, LANES]), wanted)
        else:
            tl.store(to, a_turned, wanted)
            tl.store(to + HALF, b_turned, wanted)
        if partials is not None:
            counted = is_counted(mask, row, end)
            a_sums = add_tile(a_sums, where_counted(mask, a, counted), counted, a_shift)
            b_sums = add_tile(b_sums, where_counted(mask, b, counted), counted, b_shift)
    if partials is not None:
        store_sums(partials, plane, split, channel, in_pairs, count, a_shift, a_sums)
        store_sums(partials, plane, split, next_channel, in_pairs, count, b_shift, b_sums)


@triton.jit(do_not_specialize=["rows", "run"])
def rotary_kernel(
    q,
    k,
    v,
    tables,
    mask,
    q_partials,
    k_partials,
    v_partials,
    plane,
    rows,
    run,
    WIDTH: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROUND_ONCE: tl.constexpr,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotates one run of a block of q or k and writes its partial, or writes that of v unless v is None.

    q and k are tuples: matrix [T, heads * WIDTH], row stride, heads and output; v: matrix [T, C], row stride and C.
    Partials [S, 7, C] of both q and k, or of neither.
    """
    turning = TURNED // 2
    passing = WIDTH - TURNED
    q_blocks = tl.cdiv(q[2] * turning, BLOCK) + tl.cdiv(q[2] * passing, BLOCK)
    k_blocks = tl.cdiv(k[2] * turning, BLOCK) + tl.cdiv(k[2] * passing, BLOCK)
    v_blocks = 0
    if v is not None:
        v_blocks = tl.cdiv(v[2], BLOCK)
    blocks = q_blocks + k_blocks + v_blocks
    split = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    start, length = run_bounds(split, rows, run)

    # One program for both: chosen by selection, they share its code.
    is_k = block >= q_blocks
    part = (
        tl.where(is_k, k[0], q[0]),
        tl.where(is_k, k[1], q[1]),
        tl.where(is_k, k[2], q[2]),
        tl.where(is_k, k[3], q[3]),
    )
    partials = q_partials
    if q_partials is not None:
        partials = tl.where(is_k, k_partials, q_partials)
    if block >= q_blocks + k_blocks:
        if v is not None:
            index = tl.max_contiguous((block - q_blocks - k_blocks) * BLOCK + tl.arange(0, BLOCK), 4)
            matrix = (v[0], v[1])
            measure_run(
                matrix, None, mask, v_partials, plane, split, start, length, index, index < v[2], MAX_RUN, UNROLL, WARPS
            )
    else:
        block -= tl.where(is_k, q_blocks, 0)
        turned_blocks = tl.cdiv(part[2] * turning, BLOCK)
        if block < turned_blocks:
            turn_run(
                part, partials, tables, mask, plane, split, start, length, block,
                WIDTH, TURNED, INTERLEAVED, ROUND_ONCE, MAX_RUN, UNROLL, WARPS, BLOCK,
            )  # fmt: skip
        elif TURNED < WIDTH:
            index = (block - turned_blocks) * BLOCK + tl.arange(0, BLOCK)
            head = index // passing
            channel = head * WIDTH + TURNED + index % passing
            if passing % 4 == 0 and WIDTH % 4 == 0:
                channel = tl.max_contiguous(channel, 4)
            matrix = (part[0], part[1])
            copy = (part[3], part[2] * WIDTH)
            measure_run(
                matrix,
                copy,
                mask,
                partials,
                plane,
                split,
                start,
                length,
                channel,
                head < part[2],
                MAX_RUN,
                UNROLL,
                WARPS,
            )


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` [B, heads, L, width] as [B * L, heads * width]: the projection it is a view of, or else a copy."""
    batch, heads, length, width = x.shape
    return contiguous_channels(x.transpose(1, 2).reshape(batch * length, heads * width))


def as_table(x: torch.Tensor) -> torch.Tensor:
    """``x`` [B or 1, L, R] as [B * L or L, R]."""
    return (x[:1] if x.stride(0) == 0 else x).reshape(-1, x.shape[2]).contiguous()


def rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
    round_once: bool,
    v: torch.Tensor | None,
    q_moments: torch.Tensor | None,
    k_moments: torch.Tensor | None,
    v_moments: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated ``q`` [B, H, L, D] and ``k`` [B, G, L, D]; moments [7, heads * width] += statistics where not None."""
    batch, heads, length, width = q.shape
    key_heads, turned_width = k.shape[1], cos.shape[2]
    rows = batch * length
    q_rows, k_rows = as_rows(q), as_rows(k)
    q_out = q.new_empty((batch, length, heads, width))
    k_out = k.new_empty((batch, length, key_heads, width))
    cos, sin = as_table(cos), as_table(sin)
    counts = [n * part for n in (heads, key_heads) for part in (turned_width // 2, width - turned_width)]
    v_part, v_rows = None, q_rows
    if v is not None and v_moments is not None:
        v_rows = as_rows(v)
        v_part = (v_rows, v_rows.stride(0), v_rows.shape[1])
        counts.append(v_rows.shape[1])
    if (q_moments is None) != (k_moments is None):  # the kernel measures both or neither
        q_moments = empty_moments(q_rows.shape[1], device=q.device) if q_moments is None else q_moments
        k_moments = empty_moments(k_rows.shape[1], device=q.device) if k_moments is None else k_moments

    blocks = sum(cdiv(count, BLOCK) for count in counts)
    run, splits = plan_runs(rows, blocks, q.dtype)
    measured = ((q_rows, q_moments), (k_rows, k_moments), (v_rows, v_moments))
    partials, plane = empty_partials(splits, *measured)
    with torch.cuda.device_of(q):
        rotary_kernel[(blocks * splits,)](
            (q_rows, q_rows.stride(0), heads, q_out),
            (k_rows, k_rows.stride(0), key_heads, k_out),
            v_part,
            (cos, sin, len(cos)),
            mask,
            *partials,
            plane,
            rows,
            run,
            WIDTH=width,
            TURNED=turned_width,
            INTERLEAVED=interleaved,
            ROUND_ONCE=round_once,
            MAX_RUN=MAX_RUN,
            UNROLL=UNROLL,
            WARPS=WARPS,
            BLOCK=BLOCK,
            num_warps=WARPS,
            maxnreg=REGISTERS,
            enable_fp_fusion=False,  # PyTorch rounds both products before it adds them, in float32 too
        )
        merge_partials(partials, run, mask, *measured)
    return q_out.transpose(1, 2), k_out.transpose(1, 2)

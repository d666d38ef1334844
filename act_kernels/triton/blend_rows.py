"""Blend rows of many matrices with those of others, in place; see :func:`act_kernels.ops.blend_rows`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from act_kernels.rows import FIELDS, Blend, blend_table

TILE = 4096  # values per program
WARPS = 4
BLOCK_E = 128  # blends of the table that a program searches at once


@triton.jit
def stepped(old, donor, strength):
    """``old + strength * (donor - old)`` in float32 from the nearer end; strength 1 gives the donor's bits."""
    t, d = old.to(tl.float32), donor.to(tl.float32)
    from_donor = strength >= 0.5
    by = tl.where(from_donor, 1 - strength, strength).to(tl.float32)
    start, end = tl.where(from_donor, d, t), tl.where(from_donor, t, d)
    blended = start + by * (end - start)
    quarter = start * 0.25 + by * (end * 0.25 - start * 0.25)  # where a step overflows
    blended = tl.where(tl.abs(blended) < float("inf"), blended, quarter * 4)
    return tl.where(strength == 1, donor, blended.to(donor.dtype))


@triton.jit(do_not_specialize=["like", "blends"])
def blend_rows_kernel(
    like,
    table,
    blends,
    FIELDS: tl.constexpr,
    PACK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One tile of one blend of the ``table`` (:func:`act_kernels.rows.blend_table`); ``like`` tells the dtype.

    PACK values of a row are loaded together, for which every row must be aligned; with PACK 1, strides are any.
    """
    tile = tl.program_id(0)
    index = tl.program_id(0) * 0 - 1  # the last blend that begins at or before this tile
    for begin in range(0, blends, BLOCK_E):
        e = begin + tl.arange(0, BLOCK_E)
        first_tiles = tl.load(table + e, e < blends, other=2**40)
        index += tl.sum((first_tiles <= tile).to(tl.int32), 0)
    tile = tile - tl.load(table + index)
    entry = table + blends + index.to(tl.int64) * FIELDS
    pointer = tl.pointer_type(like.dtype.element_ty)
    target = tl.load(entry).to(pointer)
    donor = tl.load(entry + 1).to(pointer)
    rows = tl.load(entry + 2).to(tl.pointer_type(tl.int64))
    count = tl.load(entry + 3)
    width = tl.load(entry + 4)
    target_row_stride = tl.load(entry + 5)
    target_column_stride = tl.load(entry + 6)
    donor_row_stride = tl.load(entry + 7)
    donor_column_stride = tl.load(entry + 8)
    gathered = tl.load(entry + 9)
    strength = tl.load(entry + 10).to(tl.float64, bitcast=True)

    # Unsigned 32 bits divide several times faster than 64; a blend of 2**32 packs does not fit on a GPU.
    pack = (tile * (TILE // PACK) + tl.arange(0, TILE // PACK)).to(tl.uint32)
    if PACK == 1:
        along_rows = target_row_stride < target_column_stride  # the dimension whose values are nearer
        inner = tl.where(along_rows, count, width).to(tl.uint32)
        outer_place, inner_place = pack // inner, pack % inner
        k = tl.where(along_rows, inner_place, outer_place).to(tl.int64)
        column = tl.where(along_rows, outer_place, inner_place).to(tl.int64)
        wanted = pack < (count * width).to(tl.uint32)
        row = tl.load(rows + k, wanted, other=0)
        donor_row = tl.where(gathered == 1, k, row)
        to = target + (row * target_row_stride + column * target_column_stride)
        new = tl.load(donor + (donor_row * donor_row_stride + column * donor_column_stride), wanted, other=0)
    else:
        in_row = (width // PACK).to(tl.uint32)
        k = (pack // in_row).to(tl.int64)
        wanted = pack < (count * (width // PACK)).to(tl.uint32)
        row = tl.load(rows + k, wanted, other=0)
        donor_row = tl.where(gathered == 1, k, row)
        column = (pack % in_row).to(tl.int64) * PACK
        to_offset = tl.multiple_of(row * target_row_stride + column, PACK)[:, None] + tl.arange(0, PACK)[None, :]
        from_offset = tl.multiple_of(donor_row * donor_row_stride + column, PACK)[:, None] + tl.arange(0, PACK)[None, :]
        wanted = wanted[:, None]
        to = tl.multiple_of(target, 16) + to_offset
        new = tl.load(tl.multiple_of(donor, 16) + from_offset, wanted, other=0)
    old = tl.load(to, wanted, other=0)
    tl.store(to, stepped(old, new, strength), wanted)


def pack_size(blend: Blend) -> int:
    """The number of values in 16 bytes if every row consists of such packs, else 1."""
    target, donor = blend.target, blend.donor
    size = target.element_size()
    neighbours = target.stride(1) == donor.stride(1) == 1
    spans = (target.data_ptr(), donor.data_ptr(), *(size * n for n in (target.stride(0), donor.stride(0))))
    even = not any(span % 16 for span in (*spans, size * target.shape[1]))
    return 16 // size if neighbours and even else 1


def blend_rows(blends: Sequence[Blend]) -> None:
    """All ``blends``, of one dtype and device, in one launch; two if only some have aligned rows."""
    for pack in sorted({pack_size(blend) for blend in blends}):
        alike = [blend for blend in blends if pack_size(blend) == pack]
        table, tiles = blend_table(alike, TILE)
        with torch.cuda.device_of(table):
            blend_rows_kernel[(tiles,)](
                alike[0].target,
                table,
                len(alike),
                FIELDS=FIELDS,
                PACK=pack,
                TILE=TILE,
                BLOCK_E=BLOCK_E,
                num_warps=WARPS,
                enable_fp_fusion=True,
            )

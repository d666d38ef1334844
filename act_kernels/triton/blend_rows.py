"""Steps from rows of one matrix towards those of another, in place; see :func:`act_kernels.ops.blend_rows`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE = 2048  # values per program
WARPS = 4


@triton.jit(do_not_specialize=["count"])
def blend_rows_kernel(
    target,
    donor,
    rows,
    count,
    width,
    target_row_stride,
    target_column_stride,
    donor_row_stride,
    donor_column_stride,
    step,
    COPY: tl.constexpr,
    FROM_DONOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One tile of the K rows x W columns: ``target += step * (donor - target)``.

    FROM_DONOR steps from the other end: ``target = donor + step * (target - donor)``, with step = 1 - strength.
    """
    column_blocks = tl.cdiv(width, BLOCK_W)
    k = (tl.program_id(0) // column_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    column = (tl.program_id(0) % column_blocks) * BLOCK_W + tl.arange(0, BLOCK_W)
    row = tl.load(rows + k, k < count, other=0)[:, None]  # int64
    wanted = (k < count)[:, None] & (column < width)[None, :]
    column = column.to(tl.int64)[None, :]
    to = target + row * target_row_stride + column * target_column_stride
    new = tl.load(donor + row * donor_row_stride + column * donor_column_stride, wanted, other=0)
    if not COPY:
        d = new.to(tl.float32)
        t = tl.load(to, wanted, other=0).to(tl.float32)
        start = d if FROM_DONOR else t
        end = t if FROM_DONOR else d
        new = (start + step * (end - start)).to(new.dtype)
    tl.store(to, new, wanted)


def blend_rows(target: torch.Tensor, donor: torch.Tensor, rows: torch.Tensor, strength: float) -> None:
    """``target[rows] += strength * (donor[rows] - target[rows])`` for ``target``, ``donor`` [R, W], ``rows`` [K]."""
    count, width = rows.numel(), target.shape[1]
    # The end nearer to the result: accurate for a strength near 1 as for one near 0.
    from_donor = strength >= 0.5
    column_tile = min(512, triton.next_power_of_2(width))
    row_tile = TILE // column_tile
    with torch.cuda.device_of(target):
        blend_rows_kernel[(triton.cdiv(count, row_tile) * triton.cdiv(width, column_tile),)](
            target,
            donor,
            rows.contiguous(),
            count,
            width,
            target.stride(0),
            target.stride(1),
            donor.stride(0),
            donor.stride(1),
            1 - strength if from_donor else strength,
            COPY=strength == 1,
            FROM_DONOR=from_donor,
            BLOCK_K=row_tile,
            BLOCK_W=column_tile,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )

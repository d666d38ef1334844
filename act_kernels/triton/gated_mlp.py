"""The gated product of an MLP and the statistics of its factors and itself; see :func:`act_kernels.ops.gated_mlp`."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

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

UNROLL = 2  # rows of each input that a thread has in flight: with more, two programs fit where three do
BLOCK_C = 128  # four channels for each thread of a warp: more would not leave room for 15 sums of each in registers

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def exp(x):
    """The exponential of PyTorch on a GPU, bit for bit; tl.exp is up to 20 units in the last place off."""
    return tl.exp(x) if INTERPRETED else libdevice.exp(x)  # the interpreter cannot call the device's library


@triton.jit
def tanh(x):
    """The hyperbolic tangent of PyTorch on a GPU."""
    return 1 - 2 / (1 + tl.exp(2 * x)) if INTERPRETED else libdevice.tanh(x)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """The activation of float32 values by PyTorch's formulas; NaN stays NaN."""
    if ACTIVATION == "silu":
        y = tl.div_rn(x, 1 + exp(-x))
    elif ACTIVATION == "gelu":
        y = x * 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * (x * x * x))))
    else:
        y = tl.where(x < 0, 0.0, x)
        if ACTIVATION == "relu2":
            y = y * y
    return y


@triton.jit
def load_product(gate, up, row, channel, wanted, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """Float32 gate, up and product; the activation and the product are rounded to DTYPE."""
    g = load_values(gate, row, channel, wanted)
    u = load_values(up, row, channel, wanted)
    product = activated(g, ACTIVATION).to(DTYPE).to(tl.float32) * u
    return g, u, product.to(DTYPE).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "run"])
def gated_mlp_kernel(
    gate,
    gate_row_stride,
    up,
    up_row_stride,
    product,
    mask,
    gate_partials,
    up_partials,
    product_partials,
    plane,
    rows,
    channels,
    run,
    ACTIVATION: tl.constexpr,
    MAX_RUN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes one run of the ``product`` [T, C], and the partials [S, 7, C] of gate, up and product that are not None.

    A program takes one run of rows of a block of channels: all of them for the product, the counted for the partials.
    """
    DTYPE: tl.constexpr = gate.dtype.element_ty
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    split = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = tl.max_contiguous(channel, BLOCK_C // 32)  # or 16-bit inputs would be laid out eight to a thread
    in_channels = channel < channels
    start, length = run_bounds(split, rows, run)
    if mask is not None:
        mask += start
    first, end, count = counted_span(mask, length, MAX_RUN)
    gate_matrix = (gate + start * gate_row_stride, gate_row_stride)
    up_matrix = (up + start * up_row_stride, up_row_stride)
    product += start * channels
    tile_row = tl.arange(0, UNROLL * WARPS)[:, None]
    tile_channel = channel[None, :]

    row = first + tile_row
    wanted = is_counted(mask, row, end) & in_channels[None, :]
    g, u, p = load_product(gate_matrix, up_matrix, row, tile_channel, wanted, ACTIVATION, DTYPE)
    gate_shift = tile_mean(g, wanted, DTYPE)
    up_shift = tile_mean(u, wanted, DTYPE)
    product_shift = tile_mean(p, wanted, DTYPE)
    gate_sums = no_sums(WARPS, BLOCK_C)
    up_sums = no_sums(WARPS, BLOCK_C)
    product_sums = no_sums(WARPS, BLOCK_C)
    for tile_start in range(0, length, UNROLL * WARPS):
        row = tile_start + tile_row
        wanted = (row < length) & in_channels[None, :]
        g, u, p = load_product(gate_matrix, up_matrix, row, tile_channel, wanted, ACTIVATION, DTYPE)
        tl.store(product + (row.to(tl.int64) * channels + tile_channel), p.to(DTYPE), wanted)
        counted = is_counted(mask, row, end)
        if gate_partials is not None:
            gate_sums = add_tile(gate_sums, where_counted(mask, g, counted), counted, gate_shift)
        if up_partials is not None:
            up_sums = add_tile(up_sums, where_counted(mask, u, counted), counted, up_shift)
        if product_partials is not None:
            product_sums = add_tile(product_sums, where_counted(mask, p, counted), counted, product_shift)
    if gate_partials is not None:
        store_sums(gate_partials, plane, split, channel, in_channels, count, gate_shift, gate_sums)
    if up_partials is not None:
        store_sums(up_partials, plane, split, channel, in_channels, count, up_shift, up_sums)
    if product_partials is not None:
        store_sums(product_partials, plane, split, channel, in_channels, count, product_shift, product_sums)


def gated_mlp(
    gate: torch.Tensor,
    up: torch.Tensor,
    activation: str,
    gate_moments: torch.Tensor | None,
    up_moments: torch.Tensor | None,
    product_moments: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """``activation(gate) * up`` [T, C]; moments [7, C] += statistics of gate, up and product, where not None."""
    gate, up = contiguous_channels(gate), contiguous_channels(up)
    rows, channels = gate.shape
    product = gate.new_empty((rows, channels))
    channel_blocks = cdiv(channels, BLOCK_C)
    run, splits = plan_runs(rows, channel_blocks, gate.dtype)
    measured = ((gate, gate_moments), (up, up_moments), (product, product_moments))
    partials, plane = empty_partials(splits, *measured)
    with torch.cuda.device_of(gate):
        gated_mlp_kernel[(channel_blocks * splits,)](
            gate,
            gate.stride(0),
            up,
            up.stride(0),
            product,
            mask,
            *partials,
            plane,
            rows,
            channels,
            run,
            ACTIVATION=activation,
            MAX_RUN=MAX_RUN,
            UNROLL=UNROLL,
            WARPS=WARPS,
            BLOCK_C=BLOCK_C,
            num_warps=WARPS,
            maxnreg=REGISTERS,
            enable_fp_fusion=True,
        )
        merge_partials(partials, run, mask, *measured)
    return product

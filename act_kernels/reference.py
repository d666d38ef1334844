"""The ops in plain PyTorch: the reference for tests of all kernels, and the backend of last resort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch.nn import functional as F

from act_kernels.rows import Blend
from act_kernels.statistics import STATISTICS, merge_moments

ROWS_AT_A_TIME = 4096  # bounds the float64 copy of the input

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def column_moments(x: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Two-pass float64 statistics of the counted rows of ``x``; see :func:`act_kernels.ops.column_moments`."""
    if mask is not None:
        x = x[mask]
    for rows in x.split(ROWS_AT_A_TIME):
        merge_moments(moments, _block(rows.double()))


def segment_moments(
    x: torch.Tensor, moments: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    """:func:`column_moments` of the rows of each segment; see :func:`act_kernels.ops.segment_moments`."""
    for block, (begin, end) in zip(moments.unbind(1), pairwise(offsets.tolist()), strict=True):
        if begin < end:
            column_moments(x[begin:end], block, None if mask is None else mask[begin:end])


def pair_moments(
    donor: torch.Tensor,
    target: torch.Tensor,
    moments: torch.Tensor,
    mask: torch.Tensor | None = None,
    swapped: torch.Tensor | None = None,
) -> None:
    """Statistics of donor, target and what is formed of them; see :func:`act_kernels.ops.pair_moments`."""
    outputs = [x if mask is None else x[mask] for x in (donor, target, swapped) if x is not None]
    for some in zip(*(x.split(ROWS_AT_A_TIME) for x in outputs), strict=True):
        d, t, *s = (x.float() for x in some)
        swap = [x - t for x in s]
        for block, values in zip(moments, (d, t, d - t, *swap, *(x * (d - t) for x in swap)), strict=True):
            merge_moments(block, _block(values.double()))


def blend_rows(blends: Sequence[Blend]) -> None:
    """``target[rows] += strength * (donor[rows] - target[rows])`` of each; see :func:`act_kernels.ops.blend_rows`."""
    for blend in blends:
        rows = blend.rows.to(blend.target.device)
        new, old = blend.donor if blend.gathered else blend.donor[rows], blend.target[rows]
        if blend.strength != 1:
            wide_new, wide_old = new.double(), old.double()
            new = (wide_old + blend.strength * (wide_new - wide_old)).to(old.dtype)
        blend.target[rows] = new


def gated_mlp(
    gate: torch.Tensor,
    up: torch.Tensor,
    activation: str,
    gate_moments: torch.Tensor | None,
    up_moments: torch.Tensor | None,
    product_moments: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """``activation(gate) * up``; see :func:`act_kernels.ops.gated_mlp`."""
    product = ACTIVATIONS[activation](gate) * up
    for x, moments in ((gate, gate_moments), (up, up_moments), (product, product_moments)):
        if moments is not None:
            column_moments(x, moments, mask)
    return product


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
    """``x * cos + rotate(x) * sin`` for q and k; see :func:`act_kernels.ops.rotary`."""
    for x, moments in ((q, q_moments), (k, k_moments), (v, v_moments)):
        if x is not None and moments is not None:
            column_moments(x.transpose(1, 2).flatten(2).flatten(0, 1), moments, mask)
    return _rotated(q, cos, sin, interleaved, round_once), _rotated(k, cos, sin, interleaved, round_once)


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
    """``total = residual + x`` and its norm; see :func:`act_kernels.ops.add_norm`."""
    total = x if residual is None else residual + x
    if style == "layer":
        norm = F.layer_norm(total, total.shape[-1:], weight, bias, eps)
    else:
        wide = total.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        if style == "rms":
            norm = weight * wide.to(x.dtype)
        else:
            norm = (wide * (weight.float() + (style == "rms_one_plus"))).to(x.dtype)
    for values, moments in ((x, x_moments), (norm, norm_moments)):
        if moments is not None:
            column_moments(values, moments, mask)
    return total, norm


def _rotated(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, round_once: bool
) -> torch.Tensor:
    width = cos.shape[-1]
    turned, passed = x[..., :width], x[..., width:]
    wide = turned.float() if round_once else turned
    if interleaved:
        half = torch.stack((-wide[..., 1::2], wide[..., ::2]), -1).flatten(-2)
    else:
        half = torch.cat((-wide[..., width // 2 :], wide[..., : width // 2]), -1)
    turned = wide * cos[:, None] + half * sin[:, None]
    return torch.cat((turned.to(x.dtype), passed), -1).transpose(1, 2).contiguous().transpose(1, 2)


def _block(x: torch.Tensor) -> torch.Tensor:
    """The moments block ``[7, C]`` of ``x``, float64 of shape ``[T, C]``, in two passes over the finite values."""
    if not len(x):
        return x.new_zeros(len(STATISTICS), x.shape[1])
    finite = x.isfinite()
    x = torch.where(finite, x, 0)
    count = finite.sum(0).double()
    mean = x.sum(0) / count.clamp(min=1)
    m2 = torch.where(finite, x - mean, 0).square().sum(0)
    return torch.stack(
        [count, mean, m2, x.abs().sum(0), x.abs().amax(0), (x > 0).sum(0).double(), (~finite).sum(0).double()]
    )

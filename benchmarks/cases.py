"""One call of every op, and what PyTorch users would write instead; ``kernels.py`` and ``gpu.py`` time them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from act_kernels import (
    add_norm,
    blend_rows,
    column_moments,
    empty_moments,
    gated_mlp,
    pair_moments,
    rotary,
    segment_moments,
)

Call = Callable[[], Any]
Tensor = torch.Tensor


@dataclass(frozen=True)
class Case:
    """An op, the bytes it must read or write, and the same by PyTorch operators.

    Fused ops run with statistics; ``plain`` is the same op without statistics, and the operators take none either.
    ``swapped`` is the op with a third input of the same size.
    """

    op: Call
    moved: int
    operators: Call
    plain: Call | None = None
    swapped: Call | None = None


def by_operators(x: Tensor, moments: Tensor) -> None:
    """The same six statistics as one would write them with PyTorch operators, in float32."""
    x = x.float()
    mean = x.mean(0)
    moments[0] += len(x)
    moments[1] = mean
    moments[2] += (x - mean).square().sum(0)
    moments[3] += x.abs().sum(0)
    moments[4] = torch.maximum(moments[4], x.abs().amax(0))
    moments[5] += (x > 0).sum(0)


def column_case(x: Tensor, other: Tensor) -> Case:
    """The statistics of ``x`` [T, C]."""
    moments, slow = (empty_moments(x.shape[1], device=x.device) for _ in range(2))
    return Case(lambda: column_moments(x, moments), x.nbytes, lambda: by_operators(x, slow))


def segment_case(x: Tensor, other: Tensor) -> Case:
    """The statistics of 64 segments of rows, of log-normal sizes and one empty, as a router sends tokens to experts."""
    segments = 64
    weights = torch.randn(segments, generator=torch.Generator().manual_seed(0)).exp()
    weights[segments // 2] = 0
    offsets = torch.zeros(segments + 1, dtype=torch.int32)
    offsets[1:] = weights.cumsum(0) / weights.sum() * len(x)
    spans = [slice(*span) for span in pairwise(offsets.tolist())]
    offsets = offsets.to(x.device)
    # Beside those of the other projections, as in an arena.
    moments, slow = (
        empty_moments(3 * segments * x.shape[1], device=x.device).unflatten(1, (segments, -1))[..., : x.shape[1]]
        for _ in range(2)
    )

    def operators() -> None:
        for span, block in zip(spans, slow.unbind(1), strict=True):
            if span.start < span.stop:
                by_operators(x[span], block)

    return Case(lambda: segment_moments(x, moments, offsets), x.nbytes, operators)


def pair_case(x: Tensor, other: Tensor) -> Case:
    """The statistics of both and of their difference; and with a swapped output between the two."""
    moments, slow = (empty_moments(x.shape[1], 3, device=x.device) for _ in range(2))
    more, swapped = empty_moments(x.shape[1], 5, device=x.device), (x + other) / 2

    def operators() -> None:
        for block, values in zip(slow, (x, other, x.float() - other.float()), strict=True):
            by_operators(values, block)

    return Case(
        lambda: pair_moments(x, other, moments),
        2 * x.nbytes,
        operators,
        swapped=lambda: pair_moments(x, other, more, swapped=swapped),
    )


def blend_case(x: Tensor, other: Tensor) -> Case:
    """One row in twenty of four matrices."""
    targets, donors = x.chunk(4), other.chunk(4)
    rows = [torch.arange(0, len(target), 20) for target in targets]

    def operators() -> None:
        for target, donor, chosen in zip(targets, donors, rows, strict=True):
            target[chosen] = torch.lerp(target[chosen], donor[chosen], 0.4)

    moved = 3 * sum(map(len, rows)) * x.shape[1] * x.element_size()
    return Case(lambda: blend_rows(targets, donors, rows, 0.4), moved, operators)


def gated_case(x: Tensor, other: Tensor) -> Case:
    """``silu(gate) * up`` with the statistics of both."""
    gate, up = (empty_moments(x.shape[1], device=x.device) for _ in range(2))
    return Case(
        lambda: gated_mlp(x, other, gate_moments=gate, up_moments=up),
        3 * x.nbytes,
        lambda: torch.nn.functional.silu(x) * other,
        lambda: gated_mlp(x, other),
    )


def add_norm_case(x: Tensor, other: Tensor) -> Case:
    """Residual sum and RMS norm as Llama writes them, with the statistics of what is added and of the norm."""
    added, normed = (empty_moments(x.shape[1], device=x.device) for _ in range(2))
    weight = torch.ones_like(x[0])

    def operators() -> Tensor:
        wide = (other + x).to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight * wide.to(x.dtype)

    return Case(
        lambda: add_norm(x, other, weight, eps=1e-6, x_moments=added, norm_moments=normed),
        4 * x.nbytes,
        operators,
        lambda: add_norm(x, other, weight, eps=1e-6),
    )


def rotary_case(x: Tensor, other: Tensor) -> Case:
    """Heads of 64 channels; q as wide as ``x``, k and v a quarter of that, with the statistics of all three."""
    width = 64
    q, k, v = (
        z.view(8, len(z) // 8, -1, width).transpose(1, 2)
        for z in (x, *(other[:, : x.shape[1] // 4].contiguous() for _ in range(2)))
    )
    angle = torch.rand(1, len(x) // 8, width // 2, device=x.device).repeat(1, 1, 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    blocks = [empty_moments(z.shape[1] * width, device=z.device) for z in (q, k, v)]

    def half(z: Tensor) -> Tensor:
        return torch.cat((-z[..., width // 2 :], z[..., : width // 2]), dim=-1)

    def operators() -> tuple[Tensor, Tensor]:
        c, s = cos[:, None], sin[:, None]
        return (q * c) + (half(q) * s), (k * c) + (half(k) * s)

    return Case(
        lambda: rotary(q, k, cos, sin, v=v, q_moments=blocks[0], k_moments=blocks[1], v_moments=blocks[2]),
        2 * (q.nbytes + k.nbytes) + v.nbytes,
        operators,
        lambda: rotary(q, k, cos, sin),
    )


MOMENTS: dict[str, Callable[[Tensor, Tensor], Case]] = {"column_moments": column_case, "pair_moments": pair_case}
FUSED: dict[str, Callable[[Tensor, Tensor], Case]] = {
    "gated_mlp": gated_case,
    "rotary": rotary_case,
    "add_norm": add_norm_case,
}
CASES = {**MOMENTS, "segment_moments": segment_case, "blend_rows": blend_case, **FUSED}

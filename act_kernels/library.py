"""The ops under ``torch.library``, so that ``torch.compile`` keeps them whole in its graphs.

A public op calls its twin here while it is being compiled, and the twin calls the public op when the graph runs. Each
twin has a fake implementation, which computes only shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from act_kernels import ops


@torch.library.custom_op("act_kernels::column_moments", mutates_args=("moments",))
def column_moments(x: Tensor, moments: Tensor, mask: Tensor | None) -> None:
    """See :func:`act_kernels.ops.column_moments`."""
    ops.column_moments(x, moments, mask)


@torch.library.custom_op("act_kernels::segment_moments", mutates_args=("moments",))
def segment_moments(x: Tensor, moments: Tensor, offsets: Tensor, mask: Tensor | None) -> None:
    """See :func:`act_kernels.ops.segment_moments`."""
    ops.segment_moments(x, moments, offsets, mask)


@torch.library.custom_op("act_kernels::pair_moments", mutates_args=("moments",))
def pair_moments(
    donor: Tensor, target: Tensor, moments: Tensor, mask: Tensor | None, swapped: Tensor | None = None
) -> None:
    """See :func:`act_kernels.ops.pair_moments`."""
    ops.pair_moments(donor, target, moments, mask, swapped)


@torch.library.custom_op("act_kernels::blend_rows", mutates_args=("targets",))
def blend_rows(
    targets: Sequence[Tensor], donors: Sequence[Tensor], rows: Sequence[Tensor], strength: Sequence[float]
) -> None:
    """See :func:`act_kernels.ops.blend_rows`."""
    ops.blend_rows(targets, donors, rows, strength)


@torch.library.custom_op("act_kernels::gated_mlp", mutates_args=("gate_moments", "up_moments", "product_moments"))
def gated_mlp(
    gate: Tensor,
    up: Tensor,
    activation: str,
    gate_moments: Tensor | None,
    up_moments: Tensor | None,
    product_moments: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """See :func:`act_kernels.ops.gated_mlp`."""
    blocks = {"gate_moments": gate_moments, "up_moments": up_moments, "product_moments": product_moments}
    return ops.gated_mlp(gate, up, activation, mask=mask, **blocks)


@torch.library.custom_op("act_kernels::rotary", mutates_args=("q_moments", "k_moments", "v_moments"))
def rotary(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    round_once: bool,
    v: Tensor | None,
    q_moments: Tensor | None,
    k_moments: Tensor | None,
    v_moments: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`act_kernels.ops.rotary`."""
    return ops.rotary(
        q,
        k,
        cos,
        sin,
        interleaved=interleaved,
        round_once=round_once,
        v=v,
        q_moments=q_moments,
        k_moments=k_moments,
        v_moments=v_moments,
        mask=mask,
    )


@torch.library.custom_op("act_kernels::add_norm", mutates_args=("x_moments", "norm_moments"))
def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    style: str,
    x_moments: Tensor | None,
    norm_moments: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`act_kernels.ops.add_norm`; without a residual, the first output is empty, as it must not be ``x``."""
    blocks = {"x_moments": x_moments, "norm_moments": norm_moments}
    total, norm = ops.add_norm(x, residual, weight, bias, eps=eps, style=style, mask=mask, **blocks)
    return (x.new_empty(0) if residual is None else total), norm


@column_moments.register_fake
def _(x: Tensor, moments: Tensor, mask: Tensor | None) -> None:
    return None


@segment_moments.register_fake
def _(x: Tensor, moments: Tensor, offsets: Tensor, mask: Tensor | None) -> None:
    return None


@pair_moments.register_fake
def _(donor: Tensor, target: Tensor, moments: Tensor, mask: Tensor | None, swapped: Tensor | None = None) -> None:
    return None


@blend_rows.register_fake
def _(targets: Sequence[Tensor], donors: Sequence[Tensor], rows: Sequence[Tensor], strength: Sequence[float]) -> None:
    return None


@gated_mlp.register_fake
def _(gate: Tensor, *_: object) -> Tensor:
    return gate.new_empty(gate.shape)


@rotary.register_fake
def _(q: Tensor, k: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    turned = (x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (q, k))
    return tuple(turned)  # type: ignore[return-value]


@add_norm.register_fake
def _(x: Tensor, residual: Tensor | None, *_: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(0 if residual is None else x.shape), x.new_empty(x.shape)

"""Calls into the compiled extension, shared by its CPU and CUDA halves.

The extension itself reads and checks the dtype, address, shape and strides of tensors; see ``csrc/checks.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Resources = tuple[tuple[Any, ...], object]
"""The last arguments of a call, and an object that must stay alive until the call returns."""


class Calls:
    """The ops that measure, on one half of the extension.

    Args:
        extension: returns the module that has the ops.
        resources: returns the resources of a call, given the name of the op and its inputs.

    Each op takes and returns the same as its public twin in :mod:`act_kernels.ops`, which has checked the arguments.
    """

    def __init__(self, extension: Callable[[], Any], resources: Callable[..., Resources]) -> None:
        self._extension = extension
        self._resources = resources

    def column_moments(self, x: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """See :func:`act_kernels.ops.column_moments`; columns that are not contiguous are copied first."""
        x = _contiguous_columns(x)
        arguments, _keep = self._resources("column_moments", x)
        self._extension().column_moments(x, moments, mask, *arguments)

    def segment_moments(
        self, x: torch.Tensor, moments: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> None:
        """See :func:`act_kernels.ops.segment_moments`; columns that are not contiguous are copied first."""
        x, offsets = _contiguous_columns(x), offsets.to(torch.int64)
        arguments, _keep = self._resources("segment_moments", x, offsets)
        self._extension().segment_moments(x, moments, offsets, mask, *arguments)

    def pair_moments(
        self,
        donor: torch.Tensor,
        target: torch.Tensor,
        moments: torch.Tensor,
        mask: torch.Tensor | None = None,
        swapped: torch.Tensor | None = None,
    ) -> None:
        """See :func:`act_kernels.ops.pair_moments`; columns that are not contiguous are copied first."""
        donor, target = _contiguous_columns(donor), _contiguous_columns(target)
        swapped = None if swapped is None else _contiguous_columns(swapped)
        arguments, _keep = self._resources("pair_moments", donor, swapped)
        self._extension().pair_moments(donor, target, swapped, moments, mask, *arguments)

    def gated_mlp(
        self,
        gate: torch.Tensor,
        up: torch.Tensor,
        activation: str,
        gate_moments: torch.Tensor | None,
        up_moments: torch.Tensor | None,
        product_moments: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See :func:`act_kernels.ops.gated_mlp`; columns that are not contiguous are copied first."""
        gate, up = _contiguous_columns(gate), _contiguous_columns(up)
        product = torch.empty_like(gate, memory_format=torch.contiguous_format)
        arguments, _keep = self._resources("gated_mlp", gate)
        self._extension().gated_mlp(
            gate, up, product, activation, gate_moments, up_moments, product_moments, mask, *arguments
        )
        return product

    def rotary(
        self,
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
        """See :func:`act_kernels.ops.rotary`; heads that do not lie side by side are copied first."""
        batch, _, length, width = q.shape
        q, k = _side_by_side(q), _side_by_side(k)
        v = None if v is None or v_moments is None else _side_by_side(v)
        q_out = q.new_empty((batch, length, q.shape[1], width)).transpose(1, 2)
        k_out = k.new_empty((batch, length, k.shape[1], width)).transpose(1, 2)
        cos, sin = cos.contiguous(), sin.contiguous()
        arguments, _keep = self._resources("rotary", q, k, v)
        measured = (q_moments, k_moments, v_moments)
        self._extension().rotary(q, k, v, q_out, k_out, *measured, cos, sin, interleaved, round_once, mask, *arguments)
        return q_out, k_out

    def add_norm(
        self,
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
        """See :func:`act_kernels.ops.add_norm`; columns that are not contiguous are copied first."""
        values, weight = _contiguous_columns(x), weight.contiguous()
        norm = torch.empty_like(x, memory_format=torch.contiguous_format)
        total = x
        if residual is not None:
            residual, total = _contiguous_columns(residual), torch.empty_like(norm)
        if bias is not None:
            bias = bias.contiguous()
        arguments, _keep = self._resources("add_norm", values)
        outputs = (total, norm, x_moments, norm_moments)
        self._extension().add_norm(values, residual, weight, bias, eps, style, *outputs, mask, *arguments)
        return total, norm


def _side_by_side(x: torch.Tensor) -> torch.Tensor:
    """Heads ``[B, H, L, D]``, copied unless each token's values are neighbours and tokens are evenly spaced."""
    batch, heads, length, width = x.shape
    between_sequences, between_heads, between_tokens, between_values = x.stride()
    neighbours = (width == 1 or between_values == 1) and (heads == 1 or between_heads == width)
    even = batch == 1 or length == 1 or between_sequences == length * between_tokens
    return x if neighbours and even else x.transpose(1, 2).contiguous().transpose(1, 2)


def _contiguous_columns(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()

"""Calls into the compiled extension by pointers, sizes and strides: what its CPU and its CUDA half have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTIVATION_CODES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
_NORM_STYLE_CODES = {"rms": 0, "rms_float": 1, "rms_one_plus": 2, "layer": 3}

Resources = tuple[tuple[int, ...], object]
"""The last arguments of a call, and what must live until it returns."""


class Calls:
    """The ops that measure. ``extension()`` gives the functions; ``resources(op, x, sizes)`` what they run with."""

    def __init__(
        self, extension: Callable[[], Any], resources: Callable[[str, torch.Tensor, tuple[int, ...]], Resources]
    ) -> None:
        self._extension = extension
        self._resources = resources

    def column_moments(self, x: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """See :func:`act_kernels.ops.column_moments`; columns that are not contiguous are copied first."""
        x = _contiguous_columns(x)
        arguments, _keep = self._resources("column_moments", x, tuple(x.shape))
        self._extension().column_moments(
            DTYPE_CODES[x.dtype],
            x.data_ptr(),
            *x.shape,
            x.stride(0),
            _address(mask),
            moments.data_ptr(),
            moments.stride(0),
            *arguments,
        )

    def pair_moments(
        self, donor: torch.Tensor, target: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None
    ) -> None:
        """See :func:`act_kernels.ops.pair_moments`; columns that are not contiguous are copied first."""
        donor, target = _contiguous_columns(donor), _contiguous_columns(target)
        arguments, _keep = self._resources("pair_moments", donor, tuple(donor.shape))
        self._extension().pair_moments(
            DTYPE_CODES[donor.dtype],
            donor.data_ptr(),
            target.data_ptr(),
            *donor.shape,
            donor.stride(0),
            target.stride(0),
            _address(mask),
            moments.data_ptr(),
            moments.stride(0),
            moments.stride(1),
            *arguments,
        )

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
        arguments, _keep = self._resources("gated_mlp", gate, tuple(gate.shape))
        self._extension().gated_mlp(
            DTYPE_CODES[gate.dtype],
            gate.data_ptr(),
            up.data_ptr(),
            product.data_ptr(),
            *gate.shape,
            gate.stride(0),
            up.stride(0),
            _ACTIVATION_CODES[activation],
            *_block(gate_moments),
            *_block(up_moments),
            *_block(product_moments),
            _address(mask),
            *arguments,
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
        q_rows, k_rows = _token_rows(q), _token_rows(k)
        v_rows = None if v is None or v_moments is None else _token_rows(v)
        v_columns, v_stride = (0, 0) if v_rows is None else (v_rows.shape[1], v_rows.stride(0))
        q_out = q.new_empty((batch, length, q.shape[1], width))
        k_out = k.new_empty((batch, length, k.shape[1], width))
        cos, sin = cos.contiguous(), sin.contiguous()
        sizes = (batch * length, q_rows.shape[1], k_rows.shape[1], v_columns)
        arguments, _keep = self._resources("rotary", q, sizes)
        self._extension().rotary(
            DTYPE_CODES[q.dtype],
            q_rows.data_ptr(),
            k_rows.data_ptr(),
            _address(v_rows),
            *sizes,
            q_rows.stride(0),
            k_rows.stride(0),
            v_stride,
            q_out.data_ptr(),
            k_out.data_ptr(),
            *_block(q_moments),
            *_block(k_moments),
            *_block(v_moments),
            width,
            cos.shape[2],
            cos.data_ptr(),
            sin.data_ptr(),
            length,
            cos.shape[0],
            interleaved,
            round_once,
            _address(mask),
            *arguments,
        )
        return q_out.transpose(1, 2), k_out.transpose(1, 2)

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
        arguments, _keep = self._resources("add_norm", x, tuple(x.shape))
        self._extension().add_norm(
            DTYPE_CODES[x.dtype],
            values.data_ptr(),
            _address(residual),
            *x.shape,
            values.stride(0),
            0 if residual is None else residual.stride(0),
            weight.data_ptr(),
            _address(bias),
            eps,
            _NORM_STYLE_CODES[style],
            total.data_ptr(),
            norm.data_ptr(),
            *_block(x_moments),
            *_block(norm_moments),
            _address(mask),
            *arguments,
        )
        return total, norm


def _token_rows(x: torch.Tensor) -> torch.Tensor:
    """``[B, H, L, D]`` as ``[B * L, H * D]``: a view of the projection's memory where that is what it is."""
    return _contiguous_columns(x.transpose(1, 2).flatten(2).flatten(0, 1))


def _address(x: torch.Tensor | None) -> int:
    """0 for what is left out."""
    return 0 if x is None else x.data_ptr()


def _block(moments: torch.Tensor | None) -> tuple[int, int]:
    """Address and stride of a block that may be left out."""
    return (0, 0) if moments is None else (moments.data_ptr(), moments.stride(0))


def _contiguous_columns(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()

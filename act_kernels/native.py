"""The C++ kernels, called with pointers, sizes and strides.

Importing this module never fails: if the extension is missing, :data:`LOAD_ERROR` says why and what to do, and
:mod:`act_kernels.backends` picks another backend.
"""

from __future__ import annotations

import torch

LOAD_ERROR: str | None = None
try:
    from act_kernels import _native
except ImportError as error:
    LOAD_ERROR = (
        f"the native extension is not built for this Python ({error}); "
        "install a C++17 compiler and run: pip install --force-reinstall --no-deps ."
    )

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTIVATION_CODES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
_NORM_STYLE_CODES = {"rms": 0, "rms_float": 1, "rms_one_plus": 2, "layer": 3}


def instruction_set() -> str:
    """The instruction set in use: ``avx512``, ``avx2`` or ``baseline`` (SSE2, NEON)."""
    return _native.instruction_set()


def column_moments(x: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """See :func:`act_kernels.ops.column_moments`; columns that are not contiguous are copied first."""
    x = _contiguous_columns(x)
    rows, columns = x.shape
    _native.column_moments(
        _DTYPE_CODES[x.dtype],
        x.data_ptr(),
        rows,
        columns,
        x.stride(0),
        0 if mask is None else mask.data_ptr(),
        moments.data_ptr(),
        moments.stride(0),
        torch.get_num_threads(),
    )


def pair_moments(
    donor: torch.Tensor, target: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    """See :func:`act_kernels.ops.pair_moments`; columns that are not contiguous are copied first."""
    donor, target = _contiguous_columns(donor), _contiguous_columns(target)
    rows, columns = donor.shape
    _native.pair_moments(
        _DTYPE_CODES[donor.dtype],
        donor.data_ptr(),
        target.data_ptr(),
        rows,
        columns,
        donor.stride(0),
        target.stride(0),
        0 if mask is None else mask.data_ptr(),
        moments.data_ptr(),
        moments.stride(0),
        moments.stride(1),
        torch.get_num_threads(),
    )


def blend_rows(target: torch.Tensor, donor: torch.Tensor, rows: torch.Tensor, strength: float) -> None:
    """See :func:`act_kernels.ops.blend_rows`."""
    rows = rows.contiguous()
    _native.blend_rows(
        _DTYPE_CODES[target.dtype],
        target.data_ptr(),
        donor.data_ptr(),
        rows.data_ptr(),
        len(rows),
        target.shape[1],
        target.stride(0),
        target.stride(1),
        donor.stride(0),
        donor.stride(1),
        strength,
        torch.get_num_threads(),
    )


def gated_mlp(
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
    rows, columns = gate.shape
    _native.gated_mlp(
        _DTYPE_CODES[gate.dtype],
        gate.data_ptr(),
        up.data_ptr(),
        product.data_ptr(),
        rows,
        columns,
        gate.stride(0),
        up.stride(0),
        _ACTIVATION_CODES[activation],
        *_block(gate_moments),
        *_block(up_moments),
        *_block(product_moments),
        0 if mask is None else mask.data_ptr(),
        torch.get_num_threads(),
    )
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
    """See :func:`act_kernels.ops.rotary`; heads that do not lie side by side are copied first."""
    batch, _, length, width = q.shape
    q_rows, k_rows = _token_rows(q), _token_rows(k)
    v_rows = None if v is None or v_moments is None else _token_rows(v)
    q_out = q.new_empty((batch, length, q.shape[1], width))
    k_out = k.new_empty((batch, length, k.shape[1], width))
    cos, sin = cos.contiguous(), sin.contiguous()
    _native.rotary(
        _DTYPE_CODES[q.dtype],
        q_rows.data_ptr(),
        k_rows.data_ptr(),
        0 if v_rows is None else v_rows.data_ptr(),
        batch * length,
        q_rows.shape[1],
        k_rows.shape[1],
        0 if v_rows is None else v_rows.shape[1],
        q_rows.stride(0),
        k_rows.stride(0),
        0 if v_rows is None else v_rows.stride(0),
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
        0 if mask is None else mask.data_ptr(),
        torch.get_num_threads(),
    )
    return q_out.transpose(1, 2), k_out.transpose(1, 2)


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
    """See :func:`act_kernels.ops.add_norm`; columns that are not contiguous are copied first."""
    rows, columns = x.shape
    values, weight = _contiguous_columns(x), weight.contiguous()
    norm = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = x
    if residual is not None:
        residual, total = _contiguous_columns(residual), torch.empty_like(norm)
    if bias is not None:
        bias = bias.contiguous()
    _native.add_norm(
        _DTYPE_CODES[x.dtype],
        values.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        rows,
        columns,
        values.stride(0),
        0 if residual is None else residual.stride(0),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        eps,
        _NORM_STYLE_CODES[style],
        total.data_ptr(),
        norm.data_ptr(),
        *_block(x_moments),
        *_block(norm_moments),
        0 if mask is None else mask.data_ptr(),
        torch.get_num_threads(),
    )
    return total, norm


def _token_rows(x: torch.Tensor) -> torch.Tensor:
    """``[B, H, L, D]`` as ``[B * L, H * D]``: a view of the projection's memory where that is what it is."""
    return _contiguous_columns(x.transpose(1, 2).flatten(2).flatten(0, 1))


def _block(moments: torch.Tensor | None) -> tuple[int, int]:
    """Address and stride of a block that may be left out."""
    return (0, 0) if moments is None else (moments.data_ptr(), moments.stride(0))


def _contiguous_columns(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()

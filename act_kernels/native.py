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


def _contiguous_columns(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()

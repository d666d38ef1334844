"""The ops: one public function each, with argument checks; the work is done by the chosen backend.

Tensors only: no model, no file. Every op is deterministic: the same inputs give the same bits.
"""

from __future__ import annotations

import torch

from act_kernels.backends import implementation
from act_kernels.statistics import PAIR, STATISTICS

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def column_moments(x: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Add the per-channel statistics of the counted rows of ``x`` to ``moments``, in place, in one pass.

    Args:
        x: activations ``[T, C]``, float32, bfloat16 or float16, any strides.
        moments: float64 block ``[7, C]`` (rows: :data:`act_kernels.statistics.STATISTICS`), last stride 1, same device.
        mask: bool ``[T]``; only rows marked True count. None counts all rows.

    NaN and infinite values are left out of every statistic and counted in ``nonfinite``. Values are accumulated in
    float32 over short runs of rows around a shift close to the mean, and merged in float64 by Chan's formula.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, stride or device, naming the argument.
    """
    _check_matrix("x", x)
    _check_moments(moments, (len(STATISTICS), x.shape[1]), x.device)
    mask = _check_mask(mask, x)
    if x.numel():
        implementation("column_moments", x.device)(x, moments, mask)


def pair_moments(
    donor: torch.Tensor, target: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    """Add the statistics of donor, target and donor - target over the counted rows to ``moments``, in place.

    Args:
        donor, target: activations ``[T, C]`` of the two models at one site for the same tokens, one dtype (float32,
            bfloat16 or float16), any strides.
        moments: float64 pair block ``[3, 7, C]`` (donor, target, difference), last stride 1, same device.
        mask: bool ``[T]``; only rows marked True count. None counts all rows.

    The difference is formed in float32 from the values as stored, before any rounding; its ``sum_abs / count`` is the
    paper's score (arXiv 2601.09398, eq. 2). A value counts as non-finite per side; the difference if either is.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, stride or device, naming the argument.
    """
    _check_matrix("donor", donor)
    _check_like("target", target, "donor", donor)
    _check_moments(moments, (len(PAIR), len(STATISTICS), donor.shape[1]), donor.device)
    mask = _check_mask(mask, donor)
    if donor.numel():
        implementation("pair_moments", donor.device)(donor, target, moments, mask)


def blend_rows(target: torch.Tensor, donor: torch.Tensor, rows: torch.Tensor, strength: float) -> None:
    """``target[rows] += strength * (donor[rows] - target[rows])``, in place.

    Args:
        target, donor: matrices ``[R, W]`` of one dtype (float32, bfloat16 or float16) and device, any strides: pass a
            transposed view to blend columns.
        rows: int64 ``[K]``, distinct, each in ``[0, R)``.
        strength: any finite number; 0 changes nothing, 1 copies the donor's bits exactly.

    The blend is computed in float32 and rounded once to the storage dtype.

    Raises:
        TypeError, ValueError, IndexError: an argument of the wrong dtype, shape or device, or a row out of range.
    """
    _check_matrix("target", target)
    _check_like("donor", donor, "target", target)
    if rows.dtype != torch.int64 or rows.dim() != 1 or rows.device != target.device:
        raise TypeError(f"rows must be int64 [K] on {target.device}, got {_describe(rows)}")
    if not strength - strength == 0:
        raise ValueError(f"strength must be a finite number, got {strength}")
    if not rows.numel() or not target.shape[1] or strength == 0:
        return
    low, high = rows.aminmax()
    if low < 0 or high >= target.shape[0]:
        raise IndexError(f"rows must lie in [0, {target.shape[0]}), got {int(low)} to {int(high)}")
    implementation("blend_rows", target.device)(target, donor, rows, float(strength))


def _describe(x: torch.Tensor) -> str:
    return f"{x.dtype} {list(x.shape)} on {x.device}"


def _check_matrix(name: str, x: torch.Tensor) -> None:
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {_describe(x)}")
    if x.dim() != 2:
        raise ValueError(f"{name} must have two dimensions, got {_describe(x)}")


def _check_like(name: str, x: torch.Tensor, model_name: str, model: torch.Tensor) -> None:
    if x.dtype != model.dtype or x.shape != model.shape or x.device != model.device:
        raise ValueError(f"{name} must be like {model_name} ({_describe(model)}), got {_describe(x)}")


def _check_moments(moments: torch.Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if moments.dtype != torch.float64 or moments.shape != shape or moments.device != device:
        raise ValueError(f"moments must be float64 {list(shape)} on {device}, got {_describe(moments)}")
    if shape[-1] > 1 and moments.stride(-1) != 1:
        raise ValueError(f"moments must have stride 1 along channels, got strides {list(moments.stride())}")


def _check_mask(mask: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != x.shape[:1] or mask.device != x.device:
        raise ValueError(f"mask must be bool [{x.shape[0]}] on {x.device}, got {_describe(mask)}")
    return mask.contiguous()

"""The ops: one public function each, which checks its arguments and calls the chosen backend.

They work on tensors only, not on models or files. Every op is deterministic: the same inputs give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from act_kernels.backends import implementation
from act_kernels.rows import Blend, batches, gather_rows
from act_kernels.statistics import PAIR, STATISTICS, SWAPPED_PAIR

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
NORM_STYLES = ("rms", "rms_float", "rms_one_plus", "layer")
GATHERED_AT_ONCE = 2**27  # values of donors on other devices
CHECKED_AT_ONCE = 2**22  # values in float64


def column_moments(x: torch.Tensor, moments: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Add the per-channel statistics of the counted rows of ``x`` to ``moments``, in place, in one pass.

    Args:
        x: activations ``[T, C]``, float32, bfloat16 or float16, any strides.
        moments: float64 block ``[7, C]``, last stride 1, same device. Its rows are ``act_kernels.STATISTICS``: count,
            mean, M2, sum and maximum of absolute values, how many are above 0, how many are not finite.
        mask: bool ``[T]``; only rows marked True count. None counts all rows.

    NaN and infinite values are left out of every statistic and counted in ``nonfinite``. Values are accumulated in
    float32 over short runs of rows around a shift close to the mean, and merged in float64 by Chan's formula. A run
    whose sums show that it was far from its shift, or has a value that outweighs the others, is summed again, in
    float64 if need be. So mean (of the root mean square), variance and mean size are right to 1e-6, in whatever order
    and however distributed the rows are.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, stride or device; the message names it.

    >>> moments = act_kernels.empty_moments(3)
    >>> act_kernels.column_moments(torch.tensor([[1.0, 2.0, -3.0], [3.0, 2.0, -1.0]]), moments)
    >>> dict(zip(act_kernels.STATISTICS, moments[:, 0].tolist()))  # of the first channel
    {'count': 2.0, 'mean': 2.0, 'm2': 2.0, 'sum_abs': 4.0, 'max_abs': 3.0, 'positive': 2.0, 'nonfinite': 0.0}
    """
    if torch.compiler.is_compiling():
        return _library().column_moments(x, moments, mask)
    _check_matrix("x", x)
    _check_moments(moments, (len(STATISTICS), x.shape[1]), x.device)
    mask = _check_mask(mask, x.shape[0], x.device)
    if x.numel():
        implementation("column_moments", x.device)(x, moments, mask)


def segment_moments(
    x: torch.Tensor, moments: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    """Add the statistics of every segment of rows to its own block of ``moments``, in place: all experts at once.

    Args:
        x: activations ``[R, C]``, float32, bfloat16 or float16, any strides, rows sorted by segment.
        moments: float64 ``[7, E, C]``, one block for each of E segments, last stride 1, same device; a view into an
            arena in which the blocks lie anywhere side by side.
        offsets: int32 or int64 ``[E + 1]``, same device: rows ``offsets[e]`` to ``offsets[e + 1]`` are those of segment
            e. They ascend from at least 0 to at most R. Rows outside all segments are not read.
        mask: bool ``[R]``; only rows marked True count. None counts all rows.

    Of each segment the statistics are those of :func:`column_moments`, as exact, and on a CPU bit for bit; a segment
    without rows changes nothing. A GPU reads the offsets itself: no call waits for it, and their values are not
    checked, but rows outside ``x`` are never read.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, stride or device, or, on a CPU, offsets do not
            ascend or leave the rows of ``x``; the message names it.

    >>> moments = torch.zeros(7, 2, 1, dtype=torch.float64)
    >>> rows = torch.tensor([[1.0], [3.0], [5.0]])  # two of the first expert, one of the second
    >>> act_kernels.segment_moments(rows, moments, torch.tensor([0, 2, 3]))
    >>> moments[act_kernels.STATISTICS.index("mean"), :, 0]
    tensor([2., 5.], dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        return _library().segment_moments(x, moments, offsets, mask)
    _check_matrix("x", x)
    offsets = _check_offsets(offsets, x)
    segments = offsets.shape[0] - 1
    _check_moments(moments, (len(STATISTICS), segments, x.shape[1]), x.device)
    if segments > 1 and moments.stride(1) < x.shape[1]:
        raise ValueError(f"moments of segments must not overlap, got strides {list(moments.stride())}")
    mask = _check_mask(mask, x.shape[0], x.device)
    if x.numel() and segments:
        implementation("segment_moments", x.device)(x, moments, offsets, mask)


def pair_moments(
    donor: torch.Tensor,
    target: torch.Tensor,
    moments: torch.Tensor,
    mask: torch.Tensor | None = None,
    swapped: torch.Tensor | None = None,
) -> None:
    """Add the statistics of donor, target and donor - target over the counted rows to ``moments``, in place.

    Args:
        donor, target: activations ``[T, C]`` of the two models at one site for the same tokens, one dtype (float32,
            bfloat16 or float16), any strides.
        moments: float64 pair block ``[3, 7, C]`` (donor, target, difference), last stride 1, same device; with
            ``swapped`` ``[5, 7, C]`` (``act_kernels.SWAPPED_PAIR``).
        mask: bool ``[T]``; only rows marked True count. None counts all rows.
        swapped: ``[T, C]`` like ``donor``, any strides: what the donor's module gives on the target's input. Then the
            statistics of swapped - target, and of that times donor - target, are added too.

    Differences are formed in float32 from the values as stored, before any rounding, and their product is rounded to
    float32 once more; the ``sum_abs / count`` of the difference is the paper's score (arXiv 2601.09398, eq. 2). Each
    block counts its own non-finite values and leaves out no others: a difference is non-finite if either of its values
    is, or if it is too large for float32, and so is the product if either difference is.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, stride or device; the message names it.

    >>> moments = act_kernels.empty_moments(1, 3)
    >>> act_kernels.pair_moments(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]]), moments)
    >>> dict(zip(act_kernels.PAIR, moments[:, act_kernels.STATISTICS.index("sum_abs"), 0].tolist()))
    {'donor': 3.0, 'target': 4.0, 'difference': 3.0}
    """
    if torch.compiler.is_compiling():
        return _library().pair_moments(donor, target, moments, mask, swapped)
    _check_matrix("donor", donor)
    _check_like("target", target, "donor", donor)
    if swapped is not None:
        _check_like("swapped", swapped, "donor", donor)
    blocks = len(PAIR if swapped is None else SWAPPED_PAIR)
    _check_moments(moments, (blocks, len(STATISTICS), donor.shape[1]), donor.device)
    mask = _check_mask(mask, donor.shape[0], donor.device)
    if donor.numel():
        implementation("pair_moments", donor.device)(donor, target, moments, mask, swapped)


def blend_rows(
    targets: Sequence[torch.Tensor],
    donors: Sequence[torch.Tensor],
    rows: Sequence[torch.Tensor],
    strength: float | Sequence[float],
) -> None:
    """``target[rows] += strength * (donor[rows] - target[rows])`` of many matrices, in place, in few launches.

    Args:
        targets: matrices ``[R, W]``, float32, bfloat16 or float16, each on any device, any strides: pass a transposed
            view to blend columns, or a view into a packed tensor to blend those of an expert. On a GPU, all matrices
            of one dtype take one launch.
        donors: a matrix of the same shape for each target. If dtype or device differ, only the given rows are moved,
            through pinned memory, and rounded to the dtype of the target.
        rows: int64 ``[K]`` for each target, distinct, each in ``[0, R)``; copied to the CPU if they are elsewhere.
        strength: a finite number, or one for each target; 0 changes nothing, 1 copies the bits of the donor exactly.

    The blend is computed in float32, where a step may be too large for it, and rounded once to the storage dtype. A
    matrix that is listed twice, or two that share memory, must not share the values that change.

    Raises:
        TypeError, ValueError, IndexError: an argument has the wrong dtype, shape or device, a row is out of range, or
            the lists differ in length. In this case nothing is written.
        OverflowError: a strength beyond 1 or below 0 takes a finite value out of the range of the dtype. Nothing is
            written then.

    >>> target, donor = torch.zeros(3, 2), torch.ones(3, 2)
    >>> act_kernels.blend_rows([target], [donor], [torch.tensor([1])], 0.5)
    >>> target.tolist()
    [[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    """
    strengths = [float(strength)] * len(targets) if isinstance(strength, (int, float)) else [float(s) for s in strength]
    if torch.compiler.is_compiling():
        return _library().blend_rows(targets, donors, rows, strengths)
    lengths = {"targets": len(targets), "donors": len(donors), "rows": len(rows), "strength": len(strengths)}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"targets, donors, rows and strength must be lists of equal length, got {found}")
    groups: dict[tuple[torch.device, torch.dtype], list[Blend]] = {}
    for i, (target, donor, chosen, step) in enumerate(zip(targets, donors, rows, strengths, strict=True)):
        for name, matrix in ((f"targets[{i}]", target), (f"donors[{i}]", donor)):
            _check_matrix(name, matrix)
            if matrix.is_meta:
                raise ValueError(
                    f"{name} must hold values, got {_describe(matrix)}: load the weights of its model first"
                )
        if donor.shape != target.shape:
            raise ValueError(
                f"donors[{i}] must have the shape {list(target.shape)} of its target, got {_describe(donor)}"
            )
        if chosen.dtype != torch.int64 or chosen.dim() != 1 or chosen.is_meta:
            raise TypeError(f"rows[{i}] must be int64 [K], got {_describe(chosen)}")
        if not math.isfinite(step):
            raise ValueError(f"strength must be a finite number, got {step}")
        if not chosen.numel() or not target.shape[1] or step == 0:
            continue
        chosen = chosen.cpu().contiguous()
        low, high = chosen.aminmax()
        if low < 0 or high >= target.shape[0]:
            raise IndexError(f"rows[{i}] must lie in [0, {target.shape[0]}), got {int(low)} to {int(high)}")
        if not 0 <= step <= 1:
            _check_range(i, target, donor, chosen, step)
        groups.setdefault((target.device, target.dtype), []).append(Blend(target, donor, chosen, step))
    for (device, dtype), blends in groups.items():
        run = implementation("blend_rows", device)
        here = [blend for blend in blends if (blend.donor.device, blend.donor.dtype) == (device, dtype)]
        if here:
            run(here)
        elsewhere = [blend for blend in blends if (blend.donor.device, blend.donor.dtype) != (device, dtype)]
        for batch in batches(elsewhere, GATHERED_AT_ONCE):
            gathered = gather_rows(
                [blend.donor for blend in batch], [blend.rows for blend in batch], [device] * len(batch)
            )
            run(
                [replace(blend, donor=new.to(dtype), gathered=True) for blend, new in zip(batch, gathered, strict=True)]
            )


def gated_mlp(
    gate: torch.Tensor,
    up: torch.Tensor,
    activation: str = "silu",
    *,
    gate_moments: torch.Tensor | None = None,
    up_moments: torch.Tensor | None = None,
    product_moments: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """``activation(gate) * up``, rounded as PyTorch does (after the activation, and after the product), and moments.

    Args:
        gate, up: outputs of the two projections ``[T, C]``, one dtype (float32, bfloat16 or float16), any strides: the
            halves of a fused projection are views.
        activation: ``silu``, ``gelu`` (erf), ``gelu_tanh``, ``relu`` or ``relu2`` (``relu(x) ** 2``).
        gate_moments, up_moments, product_moments: float64 blocks ``[7, C]`` to which the statistics of gate, up and
            the product over the counted rows are added, as :func:`column_moments` does; None measures nothing.
        mask: bool ``[T]``; rows that count. The product is computed for all rows.

    Returns:
        The product ``[T, C]``, contiguous.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, stride or device; the message names it.

    >>> gate, up = torch.tensor([[-1.0, 2.0]]), torch.tensor([[3.0, 3.0]])
    >>> moments = act_kernels.empty_moments(2)
    >>> act_kernels.gated_mlp(gate, up, "relu", product_moments=moments).tolist()
    [[0.0, 6.0]]
    >>> moments[act_kernels.STATISTICS.index("mean")]
    tensor([0., 6.], dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        return _library().gated_mlp(gate, up, activation, gate_moments, up_moments, product_moments, mask)
    _check_matrix("gate", gate)
    _check_like("up", up, "gate", gate)
    _check_choice("activation", activation, ACTIVATIONS)
    blocks = {"gate_moments": gate_moments, "up_moments": up_moments, "product_moments": product_moments}
    _check_blocks(blocks, gate.shape[1], gate.device)
    mask = _check_mask(mask, gate.shape[0], gate.device)
    if not gate.numel():
        return gate.new_empty(gate.shape)
    return implementation("gated_mlp", gate.device)(gate, up, activation, *blocks.values(), mask)


def rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool = False,
    round_once: bool = False,
    v: torch.Tensor | None = None,
    q_moments: torch.Tensor | None = None,
    k_moments: torch.Tensor | None = None,
    v_moments: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding ``x * cos + rotate(x) * sin`` of q and k, and the moments of q, k and v before it.

    Args:
        q, k: ``[B, H, L, D]`` and ``[B, G, L, D]``, one dtype (float32, bfloat16 or float16), any strides: usually
            views of projections ``[B, L, H * D]``.
        cos, sin: ``[B or 1, L, R]`` of that dtype, R even and at most D: the first R values of each head rotate, and
            the rest pass unchanged (partial rotary).
        interleaved: values rotate in pairs ``(2i, 2i + 1)``; otherwise ``(i, i + R / 2)``.
        round_once: compute in float32 and round the result only (Cohere); otherwise both products are rounded to the
            dtype before they are added, as PyTorch operators do (Llama and most others).
        v: ``[B, G, L, Dv]`` of any head width, only measured.
        q_moments, k_moments, v_moments: float64 blocks ``[7, heads * width]``, channels in the projection's order
            (head by head), to which the statistics over the counted tokens are added; None measures nothing.
        mask: bool ``[B * L]``; tokens that count.

    Returns:
        Rotated q and k of the same shapes, in memory ordered ``[B, L, H, D]``, like views of projections.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, stride or device; the message names it.

    >>> q = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)  # one head of width 2, at one place
    >>> quarter = torch.full((1, 1, 2), torch.pi / 2)
    >>> turned, _ = act_kernels.rotary(q, q, quarter.cos(), quarter.sin())
    >>> torch.allclose(turned.flatten(), torch.tensor([0.0, 1.0]), atol=1e-6)
    True
    """
    if torch.compiler.is_compiling():
        return _library().rotary(q, k, cos, sin, interleaved, round_once, v, q_moments, k_moments, v_moments, mask)
    _check_heads("q", q, q)
    _check_heads("k", k, q)
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k must have heads as wide as q ({_describe(q)}), got {_describe(k)}")
    if v is not None:
        _check_heads("v", v, q)
    for name, x in (("cos", cos), ("sin", sin)):
        if x.dim() != 3 or x.shape[0] not in (1, q.shape[0]) or x.shape[1] != q.shape[2]:
            raise ValueError(f"{name} must be [{q.shape[0]} or 1, {q.shape[2]}, R], got {_describe(x)}")
        if x.shape[2] % 2 or not 0 < x.shape[2] <= q.shape[3] or x.shape != cos.shape:
            raise ValueError(f"{name} must be of even width up to {q.shape[3]}, like cos, got {_describe(x)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(f"{name} must be {q.dtype} on {q.device} as q is, got {_describe(x)}")
    if v is None and v_moments is not None:
        raise ValueError("v_moments were given without v")
    for name, heads, moments in (("q", q, q_moments), ("k", k, k_moments), ("v", v, v_moments)):
        if heads is not None:
            _check_blocks({f"{name}_moments": moments}, heads.shape[1] * heads.shape[3], q.device)
    mask = _check_mask(mask, q.shape[0] * q.shape[2], q.device)
    if not q.numel() or not k.numel():
        return q.clone(), k.clone()
    run = implementation("rotary", q.device)
    return run(q, k, cos, sin, interleaved, round_once, v, q_moments, k_moments, v_moments, mask)


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    eps: float,
    style: str = "rms",
    x_moments: torch.Tensor | None = None,
    norm_moments: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``total = residual + x`` and the norm of ``total``, with the moments of ``x`` and of the norm.

    Args:
        x: output of a module ``[T, C]``, float32, bfloat16 or float16, any strides.
        residual: ``[T, C]`` like ``x``, any strides; None: the norm of ``x`` itself.
        weight: ``[C]`` of that dtype.
        bias: ``[C]`` of that dtype, for style ``layer`` only.
        eps: added to the mean square, or to the variance.
        style: ``rms``: ``weight * round(total * rsqrt(mean(total**2) + eps))`` (Llama: float32 inside, rounded before
            the weight and after); ``rms_float``: rounded once, after the weight; ``rms_one_plus``: likewise with
            ``1 + weight`` (Gemma); ``layer``: LayerNorm, rounded once.
        x_moments, norm_moments: float64 blocks ``[7, C]`` to which the statistics of ``x`` and of the norm over the
            counted rows are added, as :func:`column_moments` does; None measures nothing.
        mask: bool ``[T]``; rows that count.

    Returns:
        ``(total, norm)``, both ``[T, C]`` and contiguous; without a residual, total is ``x`` itself.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, stride or device; the message names it.

    >>> x, residual = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    >>> total, norm = act_kernels.add_norm(x, residual, torch.ones(2), eps=1e-6)
    >>> total.tolist(), round(norm.square().mean().item(), 3)
    ([[3.0, 4.0]], 1.0)
    """
    if torch.compiler.is_compiling():
        total, norm = _library().add_norm(x, residual, weight, bias, eps, style, x_moments, norm_moments, mask)
        return (x if residual is None else total), norm
    _check_matrix("x", x)
    if residual is not None:
        _check_like("residual", residual, "x", x)
    _check_choice("style", style, NORM_STYLES)
    if bias is not None and style != "layer":
        raise ValueError(f"bias is for style 'layer' only, got one with style {style!r}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and (vector.dtype, vector.shape, vector.device) != (x.dtype, x.shape[1:], x.device):
            raise ValueError(f"{name} must be {x.dtype} [{x.shape[1]}] on {x.device}, got {_describe(vector)}")
    blocks = {"x_moments": x_moments, "norm_moments": norm_moments}
    _check_blocks(blocks, x.shape[1], x.device)
    mask = _check_mask(mask, x.shape[0], x.device)
    if not x.numel():
        return x if residual is None else x.new_empty(x.shape), x.new_empty(x.shape)
    run = implementation("add_norm", x.device)
    return run(x, residual, weight, bias, eps, style, *blocks.values(), mask)


def _library() -> Any:
    """The ops as ``torch.compile`` takes them; registered at import of :mod:`act_kernels`."""
    return torch.ops.act_kernels


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


def _check_moments(moments: torch.Tensor, shape: tuple[int, ...], device: torch.device, name: str = "moments") -> None:
    if moments.dtype != torch.float64 or moments.shape != shape or moments.device != device:
        raise ValueError(f"{name} must be float64 {list(shape)} on {device}, got {_describe(moments)}")
    if shape[-1] > 1 and moments.stride(-1) != 1:
        raise ValueError(f"{name} must have stride 1 along channels, got strides {list(moments.stride())}")


def _check_mask(mask: torch.Tensor | None, rows: int, device: torch.device) -> torch.Tensor | None:
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != (rows,) or mask.device != device:
        raise ValueError(f"mask must be bool [{rows}] on {device}, got {_describe(mask)}")
    return mask.contiguous()


def _check_offsets(offsets: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"offsets must be int32 or int64, got {_describe(offsets)}")
    if offsets.dim() != 1 or not offsets.numel() or offsets.device != x.device:
        raise ValueError(f"offsets must be [segments + 1] on {x.device}, got {_describe(offsets)}")
    if offsets.device.type == "cpu":
        places = offsets.tolist()
        if places[0] < 0 or places[-1] > len(x) or any(begin > end for begin, end in pairwise(places)):
            raise ValueError(f"offsets must ascend from at least 0 to at most {len(x)}, the rows of x, got {places}")
    return offsets.contiguous()


def _check_range(index: int, target: torch.Tensor, donor: torch.Tensor, rows: torch.Tensor, strength: float) -> None:
    """Raise OverflowError if a blend beyond its two ends would leave the range of the target's dtype."""
    if abs(strength) > torch.finfo(torch.float32).max:
        raise OverflowError(f"strength {strength} is out of the range of torch.float32")
    for some in rows.split(max(1, CHECKED_AT_ONCE // target.shape[1])):
        old = target[some.to(target.device)]
        new = donor[some.to(donor.device)].to(old)
        blended = old.double() + strength * (new.double() - old.double())
        if (old.isfinite() & new.isfinite() & ~blended.to(old.dtype).isfinite()).any():
            raise OverflowError(f"strength {strength} takes values of targets[{index}] out of the range of {old.dtype}")


def _check_blocks(blocks: dict[str, torch.Tensor | None], channels: int, device: torch.device) -> None:
    for name, moments in blocks.items():
        if moments is not None:
            _check_moments(moments, (len(STATISTICS), channels), device, name)


def _check_choice(name: str, choice: str, choices: tuple[str, ...]) -> None:
    if choice not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {choice!r}")


def _check_heads(name: str, x: torch.Tensor, q: torch.Tensor) -> None:
    if x.dtype not in FLOAT_DTYPES or x.dtype != q.dtype or x.device != q.device:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, like q on {q.device}, got {_describe(x)}")
    if x.dim() != 4 or (x.shape[0], x.shape[2]) != (q.shape[0], q.shape[-2]):
        raise ValueError(f"{name} must be [B, heads, L, width] with q's B and L, got {_describe(x)}")

"""Trials of a model on a few tokens: it is as it was afterwards, and they are quick where its type is emulated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from act.models.modes import restored

AT_ONCE = 1 << 18  # weights that stay in the cache while they are float32
FEW = 4  # rows for which these are not worth converting


@contextlib.contextmanager
def tried(model: nn.Module) -> Iterator[None]:
    """Try ``model`` on a few tokens over the block: :func:`act.models.modes.restored`, and :class:`QuickLinears`.

    Only outputs within one such block may be compared bit by bit.
    """
    with restored(model), QuickLinears():
        yield


class QuickLinears(TorchFunctionMode):
    """Computes linears of 16-bit weights in float32 where the CPU would emulate their type, several times as slowly.

    Sums are in float32 in both ways, in another order.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the linears; everything else runs as it is."""
        if func is linear and not kwargs and len(args) in (2, 3) and _is_emulated(args[1]) and _is_plain(*args):
            return _in_float32(*args)
        return func(*args, **(kwargs or {}))


def _is_plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether these are matrices of several rows as torch itself stores them, all of one type and on the CPU."""
    given = [one for one in (x, weight, bias) if one is not None]
    return (
        weight.ndim == 2
        and x.numel() > FEW * x.shape[-1]
        and all(one.dtype == weight.dtype and one.device.type == "cpu" and one.layout == torch.strided for one in given)
    )


def _is_emulated(weight: torch.Tensor) -> bool:
    if type(weight) not in (torch.Tensor, nn.Parameter) or weight.dtype not in (torch.bfloat16, torch.float16):
        return False
    if not torch.backends.mkldnn.is_available():
        return False  # nobody says which types this processor has
    half = weight.dtype == torch.float16
    known = torch.ops.mkldnn._is_mkldnn_fp16_supported if half else torch.ops.mkldnn._is_mkldnn_bf16_supported
    return not known()


def _in_float32(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    wide = x.float()
    rows = max(1, AT_ONCE // weight.shape[1])
    result = torch.cat([linear(wide, part.float()) for part in weight.split(rows)], dim=-1)
    return (result if bias is None else result + bias.float()).to(weight.dtype)

"""Is a model of half width slower than in float32 on this CPU? A look of under a second before the work begins."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from act.cli import console

if TYPE_CHECKING:
    import torch
    from torch import nn

SECONDS = 0.3
SMALL = 20_000_000  # parameters, below which nobody waits long


def warn_of_half(model: nn.Module) -> None:
    """Warn if products of the model's matrices are faster in float32 on the CPU where it lies."""
    from torch import nn

    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    if not linears or sum(weight.numel() for weight in linears) < SMALL:
        return
    widest = max(linears, key=lambda weight: weight.numel())
    if widest.device.type == "cpu":
        _warn(widest.dtype, widest.shape[1], widest.shape[0])


@functools.cache  # once for donor and target
def _warn(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    import torch

    from act.profiling.dtype_speed import MATTERS, float32_speed

    if dtype not in (torch.bfloat16, torch.float16):
        return
    times = float32_speed(dtype, inputs, outputs, SECONDS)
    if times > MATTERS:
        console.warn(
            f"products of matrices are {times:.1f} times as fast in float32 as in {str(dtype).removeprefix('torch.')} "
            "on this processor; --dtype float32 is faster, in twice the memory"
        )

"""Is float32 faster than a type of half the size on this processor? Without instructions for it, it is emulated."""

from __future__ import annotations

import functools
import logging
import time

import torch
from torch import nn
from torch.nn.functional import linear

from act.core.errors import option

log = logging.getLogger(__name__)

ROWS = 512
MOST = 2048  # channels of the product that is timed; larger ones take longer and say the same
MATTERS = 1.1
"""A smaller difference is not worth twice the memory."""
LOOK = 0.3  # seconds to look for before a run
_told: set[torch.dtype] = set()


def warn_of_half(model: nn.Module, setting: str | None = None) -> None:
    """Log a warning, once, if products of the model's matrices are faster in float32 on the CPU where it lies.

    Even small models are looked at: how long they will run is not known yet, and the look is short.

    Args:
        model: in memory.
        setting: how the user asks for float32; by default, by the option of commands, or the argument in Python.
    """
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    if not linears:
        return
    widest = max(linears, key=lambda weight: weight.numel())
    if widest.device.type == "cpu" and widest.dtype in (torch.bfloat16, torch.float16):
        asked = setting or option("--dtype float32", "dtype=torch.float32")
        times = _times(widest.dtype, widest.shape[1], widest.shape[0])
        if times > MATTERS and widest.dtype not in _told:
            _told.add(widest.dtype)
            log.warning(
                "products of matrices are %.1f times as fast in float32 as in %s on this processor; load the model in "
                "float32 (%s): faster, in twice the memory",
                times,
                str(widest.dtype).removeprefix("torch."),
                asked,
            )


@functools.cache  # once for donor and target
def _times(dtype: torch.dtype, inputs: int, outputs: int) -> float:
    return float32_speed(dtype, inputs, outputs, LOOK)


def float32_speed(dtype: torch.dtype, inputs: int, outputs: int, seconds: float = 1.0) -> float:
    """How many times as fast a product of matrices is in float32 as in ``dtype``, on the CPU.

    Args:
        dtype: the type of the weights.
        inputs, outputs: width of the linear whose product is timed, in channels.
        seconds: how long to measure; both take turns.
    """
    if dtype == torch.float32:
        return 1.0
    shapes = (ROWS, min(inputs, MOST)), (min(outputs, MOST), min(inputs, MOST))
    both = [[torch.ones(shape, dtype=each) for shape in shapes] for each in (dtype, torch.float32)]
    times: list[list[float]] = [[], []]
    with torch.inference_mode():
        for x, weight in both:
            linear(x, weight)
        end = time.perf_counter() + seconds
        while not times[0] or time.perf_counter() < end:
            for (x, weight), found in zip(both, times, strict=True):
                start = time.perf_counter()
                linear(x, weight)
                found.append(time.perf_counter() - start)
    half, whole = (sorted(found)[len(found) // 2] for found in times)
    return half / whole

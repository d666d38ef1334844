"""Is float32 faster than a type of half the size on this processor? Without instructions for it, it is emulated."""

from __future__ import annotations

import time

import torch
from torch.nn.functional import linear

ROWS = 512
MOST = 2048  # channels of the product that is timed; larger ones take longer and say the same
MATTERS = 1.1
"""A smaller difference is not worth twice the memory."""


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

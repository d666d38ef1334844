"""Triton's interpreter: whether it runs, and its conversions to bfloat16 corrected to those of a GPU.

The interpreter replaces ``triton.jit`` when a kernel is defined, so TRITON_INTERPRET is set before a process starts:
``TRITON_INTERPRET=1 python -m pytest tests/kernels`` runs these tests on interpreted Triton instead of the C++ kernels,
and :mod:`test_triton_interpreted` does so in a process of its own.
"""

from __future__ import annotations

import os

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def convert_bfloat16_as_a_gpu_does(monkeypatch) -> None:
    """The interpreter truncates to bfloat16 and loses values below the normal range; a GPU rounds to nearest even."""
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._convert_float

    def convert(values, source, result, rounding_mode):
        if source == tl.float32 and result == tl.bfloat16:
            return torch.from_numpy(np.array(values)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        if source == tl.bfloat16 and result == tl.float32:
            return values.astype(np.uint32) << 16
        return original(values, source, result, rounding_mode)

    monkeypatch.setattr(interpreter, "_convert_float", convert)

"""Triton's interpreter: whether it runs, and corrections of it.

The interpreter replaces ``triton.jit`` when a kernel is defined, so TRITON_INTERPRET is set before a process starts:
``TRITON_INTERPRET=1 python -m pytest tests/kernels`` runs these tests on interpreted Triton instead of the C++ kernels,
and :mod:`kernels.test_triton_interpreted` does so in a process of its own.
"""

from __future__ import annotations

import os

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def correct_interpreter(monkeypatch) -> None:
    """bfloat16 conversions as on a GPU, and loop bounds that numpy 2.4 accepts."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert, patch_tensor = interpreter._convert_float, interpreter._patch_lang_tensor

    def convert_float(values, source, result, rounding_mode):
        # The original truncates to bfloat16 and loses subnormal values; a GPU rounds to nearest even.
        if source == tl.float32 and result == tl.bfloat16:
            return torch.from_numpy(np.array(values)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        if source == tl.bfloat16 and result == tl.float32:
            return values.astype(np.uint32) << 16
        return convert(values, source, result, rounding_mode)

    def patch_lang_tensor(tensor, *scope):
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())  # Triton 3.6: int() of an array of one dimension

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_lang_tensor)

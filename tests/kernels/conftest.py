"""The backends that a test of the ops runs on."""

from __future__ import annotations

import pytest
from interpreter import INTERPRETED, correct_interpreter
from oracle import ISAS

from act_kernels import native


@pytest.fixture(params=["triton"] if INTERPRETED else [*ISAS, "reference"])
def backend(request, monkeypatch):
    """Runs each test on every instruction set of the native kernels, and on the reference, or on interpreted Triton."""
    if request.param == "triton":
        monkeypatch.setenv("ACT_KERNELS_BACKEND", "triton")
        correct_interpreter(monkeypatch)
    elif request.param == "reference":
        monkeypatch.setenv("ACT_KERNELS_BACKEND", "reference")
    else:
        monkeypatch.setenv("ACT_KERNELS_BACKEND", "native")
        native._native.use_instruction_set(request.param)
    yield request.param
    if ISAS:
        native._native.use_instruction_set(ISAS[0])

"""Every backend that this machine can run, one test after the other."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest
import torch

from act_kernels import backends, native
from kernels.emulated import REASON as NOT_EMULATED
from kernels.emulated import emulate
from kernels.interpreter import INTERPRETED, correct_interpreter
from kernels.on_gpu import run_on_gpu
from kernels.oracle import ISAS

EMULATED = pytest.param("cuda", marks=pytest.mark.skipif(NOT_EMULATED is not None, reason=str(NOT_EMULATED)))
ON_GPU = (
    ["cuda on the GPU", "reference on the GPU", "triton on the GPU"]
    if torch.cuda.is_available() and not INTERPRETED
    else []
)


@pytest.fixture(params=["triton"] if INTERPRETED else [*ISAS, EMULATED, "reference", *ON_GPU])
def backend(request, monkeypatch):
    """Runs each test on every instruction set of the native kernels, on emulated CUDA, on the reference, and on a GPU.

    In a process with TRITON_INTERPRET=1, on interpreted Triton alone.
    """
    name, _, place = request.param.partition(" ")
    monkeypatch.setenv("ACT_KERNELS_BACKEND", "native" if name in ISAS else name)
    if place:
        run_on_gpu(monkeypatch, name)
    elif name == "triton":
        correct_interpreter(monkeypatch)
    elif name == "cuda":
        emulate(monkeypatch)
    elif name in ISAS:
        native._native.use_instruction_set(name)
    yield request.param
    backends._choose.cache_clear()
    if ISAS:
        native._native.use_instruction_set(ISAS[0])


def pytest_collection_modifyitems(config, items):
    """On the interpreter, which is slow, every 40th case of each test; ACT_INTERPRET=all runs all of them."""
    if not INTERPRETED or os.environ.get("ACT_INTERPRET") == "all":
        return
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = {item for held in cases.values() for item in held[::40]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]

"""The choice of a backend for each device, and the reasons against the others.

A backend is a module with one function per op, with the signatures of :mod:`act_kernels.reference`. The first usable
one in :data:`BACKENDS` serves a device: on a CPU, C++ or PyTorch; on a GPU, Triton, CUDA or PyTorch, in this order.
``ACT_KERNELS_BACKEND=<name>`` forces one, and raises if it cannot run.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

ENVIRONMENT_VARIABLE = "ACT_KERNELS_BACKEND"
OLDEST_TRITON = (3, 4)


class BackendError(RuntimeError):
    """The backend that the environment variable names does not exist or cannot run; the message says why."""


@dataclass(frozen=True)
class Backend:
    """One implementation of all ops; ``refusal(device_type)`` is None if it can run there, else the reason why not."""

    name: str
    module: str
    refusal: Callable[[str], str | None]


def _triton_refusal(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton, Linux only)"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != "cuda" and not interpreted:
        return f"triton kernels run on a CUDA device, not on {device_type} (TRITON_INTERPRET=1 interprets them, slowly)"
    return _version_refusal() or (None if interpreted else _jit_refusal())


def _version_refusal() -> str | None:
    try:
        found = importlib.import_module("triton").__version__
    except Exception as error:  # a broken install raises anything, such as OSError for a missing library
        return f"triton does not import ({error}); run: pip install --force-reinstall triton"
    if tuple(int(number) for number in found.split(".")[:2]) >= OLDEST_TRITON:
        return None
    oldest = ".".join(map(str, OLDEST_TRITON))
    return f"triton {found} is too old for these kernels; they need {oldest}, which comes with torch 2.8, or newer"


@functools.cache
def _jit_refusal() -> str | None:
    """Why Triton cannot compile a kernel at its first launch: it needs a C compiler and a writable cache folder."""
    if sys.platform == "win32":
        return "triton compiles its launchers as on Linux; on Windows the CUDA extension is used"
    chosen = os.environ.get("CC")
    if chosen and shutil.which(chosen) is None:
        return f"triton needs a C compiler for its launchers, and CC={chosen} is not one that can be run"
    if not any(shutil.which(compiler) for compiler in (chosen, "gcc", "clang") if compiler):
        return "triton needs a C compiler for its launchers, and found none; install gcc, or set CC"
    headers = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(headers, "Python.h")):
        return f"triton compiles its launchers against Python.h, which is not in {headers}; install python3-dev"
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    cache = os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")
    try:
        os.makedirs(cache, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        return (
            f"triton cannot write its cache {cache} ({error.strerror}); set TRITON_CACHE_DIR to a folder it can write"
        )
    return None


def _native_refusal(device_type: str) -> str | None:
    from act_kernels import native

    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if device_type != "cpu":
        return f"the C++ kernels run on the CPU, not on {device_type}"
    return None


def _cuda_refusal(device_type: str) -> str | None:
    from act_kernels import cuda

    return cuda.refusal(device_type)


BACKENDS = (
    Backend("native", "act_kernels.native", _native_refusal),
    Backend("triton", "act_kernels.triton", _triton_refusal),
    Backend("cuda", "act_kernels.cuda", _cuda_refusal),
    Backend("reference", "act_kernels.reference", lambda device_type: None),
)


@dataclass(frozen=True)
class Choice:
    """The backend of a device type, and why those before it cannot run (not checked if a backend is forced)."""

    backend: Backend
    forced: bool
    refused: dict[str, str]


def choose(device_type: str) -> Choice:
    """The :class:`Choice` for ``"cpu"``, ``"cuda"``, …; raises BackendError if a forced backend cannot run."""
    return _choose(device_type, os.environ.get(ENVIRONMENT_VARIABLE))


@functools.cache
def _choose(device_type: str, forced: str | None) -> Choice:
    if forced:
        by_name = {backend.name: backend for backend in BACKENDS}
        if forced not in by_name:
            near = difflib.get_close_matches(forced, by_name, 1)
            raise BackendError(
                f"{ENVIRONMENT_VARIABLE}={forced} is not a backend; choose one of {', '.join(by_name)}"
                f"{f'; did you mean {near[0]}?' if near else ''}"
            )
        reason = by_name[forced].refusal(device_type)
        if reason is not None:
            raise BackendError(f"{ENVIRONMENT_VARIABLE}={forced} cannot run on {device_type}: {reason}")
        return Choice(by_name[forced], True, {})
    refused = {}
    for backend in BACKENDS:
        reason = backend.refusal(device_type)
        if reason is None and backend.name == "triton" and device_type != "cuda":
            reason = "interpreted triton is for tests; it runs only when forced"
        if reason is not None:
            refused[backend.name] = reason
    backend = next(backend for backend in BACKENDS if backend.name not in refused)
    choice = Choice(backend, False, refused)
    if backend.name == "reference":
        warnings.warn(
            "act_kernels runs its slow PyTorch reference on "
            f"{device_type}: " + "; ".join(f"{name}: {why}" for name, why in refused.items()),
            RuntimeWarning,
            stacklevel=4,
        )
    return choice


def implementation(op: str, device: torch.device) -> Callable[..., Any]:
    """The function that runs ``op`` on ``device``."""
    module = choose(device.type).backend.module
    return getattr(sys.modules.get(module) or importlib.import_module(module), op)

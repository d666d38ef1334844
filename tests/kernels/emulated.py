"""The CUDA kernels compiled as C++ and run on the CPU, block by block; see ``emulator/cuda_runtime.h``.

What this proves: indices, tails, masks, alignment, launch arithmetic and rounding, and that no result depends on the
order in which threads run between barriers. What it cannot: what nvcc makes of it, and how fast that is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path(__file__).parent / "emulator"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
OPTIONS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w", "-Wno-unknown-pragmas"]

REASON: str | None = None
"""Why the kernels cannot be emulated here."""
if COMPILER is None:
    REASON = "no C++ compiler"
elif platform.machine() != "x86_64" or platform.system() != "Linux":
    REASON = "the emulator switches stacks on x86-64 Linux only"
elif importlib.util.find_spec("pybind11") is None:
    REASON = "pybind11 is not installed"


@functools.cache
def module() -> Any:
    """A module like ``act_kernels._native.cuda``, compiled once for these sources."""
    import pybind11

    sources = sorted((ROOT / "csrc" / "cuda").iterdir()) + sorted((ROOT / "csrc").glob("*.h"))
    digest = hashlib.sha256()
    for path in [*sources, *sorted(EMULATOR.iterdir()), Path(__file__)]:
        digest.update(path.read_bytes())
    digest.update(repr((COMPILER, sysconfig.get_config_var("EXT_SUFFIX"), pybind11.__version__)).encode())
    folder = ROOT / "build" / "emulated" / digest.hexdigest()[:16]
    library = folder / f"emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        include = [f"-I{path}" for path in (EMULATOR, pybind11.get_include(), sysconfig.get_paths()["include"])]
        units = [path for path in sources if path.suffix in (".cu", ".cpp")]
        units += [EMULATOR / "emulator.cpp", EMULATOR / "module.cpp"]

        def compile(unit: Path) -> Path:
            result = folder / f"{unit.name}.{os.getpid()}.o"
            definitions = ['-DACT_CUDA="emulated"', '-DACT_CUDA_ARCHITECTURES="emulated"']
            command = [COMPILER, *OPTIONS, *definitions, *include, "-x", "c++", "-c", str(unit), "-o", str(result)]
            subprocess.run(command, check=True)
            return result

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile, units))
        linked = folder / f"{os.getpid()}.so"
        subprocess.run([COMPILER, "-shared", *map(str, objects), "-o", str(linked)], check=True)
        linked.replace(library)
    spec = importlib.util.spec_from_file_location("emulated_cuda", library)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def emulate(monkeypatch) -> Any:
    """Lets the backend ``cuda`` run on CPU tensors; returns the module that it calls."""
    from act_kernels import backends, cuda

    monkeypatch.setattr(cuda, "_cuda", module())
    monkeypatch.setattr(cuda, "_place", lambda device: (0, 0))
    monkeypatch.setattr(cuda, "refusal", lambda device_type: None)
    backends._choose.cache_clear()
    return module()


def reverse(backwards: bool) -> None:
    """The order in which the threads of a block take turns."""
    module().reverse(backwards)


def same_bits_in_any_order(run: Any) -> None:
    """Asserts that ``run()``, a list of tensors, does not depend on the order of threads."""
    results = []
    for backwards in (False, True):
        reverse(backwards)
        results.append(run())
    reverse(False)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))

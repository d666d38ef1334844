"""Which backend serves a device, and the sentences of those that cannot: discovery is replaced, no hardware is needed."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
import types
import warnings

import pytest
import torch

from act_kernels import backends, cuda, native
from act_kernels.backends import BackendError, choose
from kernels.interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreted process forces Triton")


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a working GPU, driver, C compiler, Triton and extension, as far as one looks."""
    state = types.SimpleNamespace(capability=(9, 0), driver="")
    extension = types.SimpleNamespace(toolkit="13.0", architectures="80;90", refusal=lambda device: state.driver)
    monkeypatch.delenv("ACT_KERNELS_BACKEND", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: state.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Imagined GPU")
    monkeypatch.setattr(cuda, "_cuda", extension)
    triton = types.SimpleNamespace(__version__="3.6.0")
    find, load = importlib.util.find_spec, importlib.import_module
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: triton if name == "triton" else find(name))
    monkeypatch.setattr(backends.importlib, "import_module", lambda name: triton if name == "triton" else load(name))
    monkeypatch.setattr(backends, "_jit_refusal", lambda: None)
    state.triton = triton
    backends._choose.cache_clear()
    yield state
    backends._choose.cache_clear()


def refuse(monkeypatch, **reasons: str) -> None:
    """Let backends give these reasons."""
    changed = tuple(
        backends.Backend(one.name, one.module, (lambda why: lambda device_type: why)(reasons[one.name]))
        if one.name in reasons
        else one
        for one in backends.BACKENDS
    )
    monkeypatch.setattr(backends, "BACKENDS", changed)


def test_a_gpu_runs_triton_then_cuda_then_pytorch(gpu, monkeypatch):
    choice = choose("cuda")
    assert choice.backend.name == "triton" and set(choice.refused) == {"native"}
    refuse(monkeypatch, triton="no compiler")
    backends._choose.cache_clear()
    choice = choose("cuda")
    assert choice.backend.name == "cuda" and choice.refused["triton"] == "no compiler"
    refuse(monkeypatch, triton="no compiler", cuda="no driver")
    backends._choose.cache_clear()
    with pytest.warns(RuntimeWarning, match="slow PyTorch reference on cuda: .*triton: no compiler; cuda: no driver"):
        assert choose("cuda").backend.name == "reference"


def test_a_cpu_runs_cpp_then_pytorch(gpu, monkeypatch):
    if native.LOAD_ERROR is None:
        choice = choose("cpu")
        assert choice.backend.name == "native" and set(choice.refused) == {"triton", "cuda"}
        assert "on a CUDA device, not on cpu" in choice.refused["cuda"]
    refuse(monkeypatch, native="not built")
    backends._choose.cache_clear()
    with pytest.warns(RuntimeWarning, match="native: not built"):
        assert choose("cpu").backend.name == "reference"


@pytest.mark.parametrize("name", ["triton", "cuda", "reference"])
def test_a_forced_backend_is_taken(gpu, monkeypatch, name):
    monkeypatch.setenv("ACT_KERNELS_BACKEND", name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice = choose("cuda")
    assert choice.backend.name == name and choice.forced and not choice.refused


def test_a_forced_backend_that_cannot_run_is_refused_and_no_other_taken(gpu, monkeypatch):
    refuse(monkeypatch, cuda="no driver")
    monkeypatch.setenv("ACT_KERNELS_BACKEND", "cuda")
    with pytest.raises(BackendError, match="ACT_KERNELS_BACKEND=cuda cannot run on cuda: no driver"):
        choose("cuda")
    monkeypatch.setenv("ACT_KERNELS_BACKEND", "native")
    with pytest.raises(BackendError, match=r"run on the CPU, not on cuda|extension"):
        choose("cuda")
    monkeypatch.setenv("ACT_KERNELS_BACKEND", "metal")
    with pytest.raises(BackendError, match="metal is not a backend; choose one of native, triton, cuda, reference"):
        choose("cuda")


def test_triton_that_cannot_be_used(gpu, monkeypatch):
    assert backends._triton_refusal("cuda") is None
    gpu.triton.__version__ = "3.2.0"
    assert "triton 3.2.0 is too old" in backends._triton_refusal("cuda")
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in backends._triton_refusal("cuda")


def test_a_triton_that_does_not_import(gpu, monkeypatch):
    def broken(name):
        raise OSError("libtriton.so: undefined symbol")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    assert "triton does not import (libtriton.so: undefined symbol)" in backends._triton_refusal("cuda")


def test_triton_whose_jit_cannot_run(monkeypatch, tmp_path):
    probe = backends._jit_refusal.__wrapped__
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h, which is not in" in probe()
    (tmp_path / "Python.h").touch()
    assert probe() is None and list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "Python.h" / "cache"))  # below a file: also for root
    assert "triton cannot write its cache" in probe() and "set TRITON_CACHE_DIR" in probe()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "CC=no-such-compiler is not one that can be run" in probe()
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "found none; install gcc, or set CC" in probe()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        assert "on Windows the CUDA extension is used" in probe()


def test_an_architecture_that_was_not_built(gpu):
    gpu.driver, gpu.capability = "no kernel image is available for execution on the device", (7, 5)
    reason = cuda.refusal("cuda")
    assert "cuda:0 (Imagined GPU) has compute capability 7.5, but the extension was built for 80;90 and newer" in reason
    assert 'ACT_CUDA_ARCHITECTURES="75" pip install --force-reinstall --no-deps .' in reason


def test_a_driver_that_is_too_old(gpu):
    gpu.driver = "the driver runs CUDA up to 12.2, the extension was built with CUDA 13.0"
    reason = cuda.refusal("cuda")
    assert gpu.driver in reason and "CUDA_HOME" in reason and "pip install" in reason


def test_an_extension_without_cuda_kernels_says_why(monkeypatch):
    monkeypatch.setattr(cuda, "_cuda", None)
    if native.LOAD_ERROR is None:
        monkeypatch.setattr(native._native, "without_cuda", "nvcc was not found on the PATH")
        assert "built without CUDA kernels: nvcc was not found on the PATH; install the CUDA toolkit" in cuda.refusal(
            "cuda"
        )
    monkeypatch.setattr(native, "LOAD_ERROR", "the native extension was not built")
    assert cuda.refusal("cuda") == cuda.build()["missing"] == "the native extension was not built"


def test_an_extension_of_another_python(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    missing = native._load_error(ImportError("no module"))
    assert "the native extension was not built" in missing and "install a C++17 compiler" in missing
    (tmp_path / "_native.cpython-27-imagined.so").touch()
    found = native._load_error(ImportError("no module"))
    assert "was built for another Python (_native.cpython-27-imagined.so)" in found
    assert sysconfig.get_config_var("EXT_SUFFIX") in found and native.REBUILD in found
    (tmp_path / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}").touch()
    assert "does not load (undefined symbol)" in native._load_error(ImportError("undefined symbol"))

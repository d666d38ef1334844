"""Every Triton kernel compiled ahead of time as its op launches it: it compiles, and keeps its values in registers.

No GPU is needed. A stand-in for the driver names an architecture, launches stop after compilation, and tensors are on
device ``meta``, so shapes are those of real models. ``pytest -s`` prints what each kernel uses.
"""

from __future__ import annotations

import re
import subprocess

import pytest
import torch
from interpreter import INTERPRETED

from act_kernels import backends, empty_moments

if INTERPRETED:
    pytest.skip("an interpreted process compiles nothing", allow_module_level=True)
pytestmark = pytest.mark.slow
triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402

from act_kernels import triton as kernels  # noqa: E402
from act_kernels.rows import Blend  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16]  # float16 differs in one conversion
CASES = [  # rows aligned to 16 bytes, not aligned, and a size that Triton makes a constant
    (3584, torch.float32),
    (18944, torch.bfloat16),
    (18943, torch.bfloat16),
    (1, torch.float32),
]
TOKENS = 16384


class Driver:
    """Stands for a GPU of one architecture."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(params=[80, 90], ids=lambda architecture: f"sm_{architecture}")
def compiled(request, monkeypatch):
    """The list of kernels that launches have compiled."""
    kernels = []
    run = triton.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))

    monkeypatch.setattr(triton.JITFunction, "run", compile_only)
    before = dict(vars(triton.runtime.driver))
    triton.runtime.driver.set_active(Driver(request.param))
    yield kernels
    vars(triton.runtime.driver).clear()
    vars(triton.runtime.driver).update(before)


def assert_all_in_registers(compiled: list, tmp_path) -> None:
    """No kernel has a stack frame or local memory, which is where spilled registers go."""
    assert compiled
    for number, kernel in enumerate(compiled):
        cubin = tmp_path / f"{number}.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", report)}
        print(f"\n{kernel.metadata.name} sm_{kernel.metadata.target.arch}: {usage}", end="")
        assert usage["STACK"] == usage["LOCAL"] == 0, f"{kernel.metadata.name} spills registers: {usage}"


def assert_vectors(compiled: list) -> None:
    """No kernel loads 16-bit values one by one, but for weight and bias, and the merge, which reads few."""
    for kernel in compiled:
        single = re.findall(r"ld\.global\S*\.b16", kernel.asm["ptx"])
        assert len(single) <= 2 or kernel.metadata.name == "merge_partials_kernel", f"{kernel.metadata.name}: {single}"


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(("channels", "dtype"), CASES, ids=str)
def test_column_moments(compiled, dtype, channels, tmp_path):
    block = empty_moments(channels, device="meta")
    for mask in (None, meta(TOKENS, dtype=torch.bool)):
        kernels.column_moments(meta(TOKENS, channels, dtype=dtype), block, mask)
    assert_all_in_registers(compiled, tmp_path)


@pytest.mark.parametrize(("channels", "dtype"), CASES, ids=str)
def test_pair_moments(compiled, dtype, channels, tmp_path):
    x = meta(TOKENS, channels, dtype=dtype)
    for mask in (None, meta(TOKENS, dtype=torch.bool)):
        kernels.pair_moments(x, x, empty_moments(channels, 3, device="meta"), mask)
    assert_all_in_registers(compiled, tmp_path)


def blend(target: torch.Tensor) -> Blend:
    return Blend(target, target, torch.arange(700), 0.4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blend_rows(compiled, dtype, tmp_path):
    x = meta(18944, 3584, dtype=dtype)
    kernels.blend_rows([blend(x), blend(x[:3584])])
    assert "ld.global.v4" in compiled[-1].asm["ptx"] and "st.global.v4" in compiled[-1].asm["ptx"]
    kernels.blend_rows([blend(x.t()), blend(x[:, :1]), blend(x)])
    assert len(compiled) == 3
    assert_all_in_registers(compiled, tmp_path)


@pytest.mark.parametrize("compiled", [100], indirect=True, ids=["sm_100"])
def test_blackwell(compiled, tmp_path):
    x, mask = meta(TOKENS, 3584, dtype=torch.bfloat16), meta(TOKENS, dtype=torch.bool)
    kernels.column_moments(x, empty_moments(3584, device="meta"), mask)
    kernels.pair_moments(x, x, empty_moments(3584, 3, device="meta"), mask)
    kernels.blend_rows([blend(x)])
    assert_all_in_registers(compiled, tmp_path)
    assert_vectors(compiled)


def test_a_spill_is_seen(compiled, tmp_path, monkeypatch):
    run = triton.JITFunction.run
    monkeypatch.setattr(triton.JITFunction, "run", lambda *args, **options: run(*args, **{**options, "maxnreg": 40}))
    x = meta(TOKENS, 512, dtype=torch.float32)
    kernels.pair_moments(x, x, empty_moments(512, 3, device="meta"), None)
    with pytest.raises(AssertionError, match="pair_moments_kernel spills registers"):
        assert_all_in_registers(compiled, tmp_path)


@pytest.mark.parametrize(("channels", "dtype"), CASES, ids=str)
def test_gated_mlp(compiled, dtype, channels, tmp_path):
    x = meta(TOKENS, channels, dtype=dtype)
    gate, up, product = empty_moments(channels, 3, device="meta")
    kernels.gated_mlp(x, x, "silu", gate, up, product, None)
    kernels.gated_mlp(x, x, "gelu_tanh", gate, up, product, meta(TOKENS, dtype=torch.bool))
    assert_all_in_registers(compiled, tmp_path)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2"])
def test_gated_mlp_without_moments_or_some(compiled, activation, tmp_path):
    x = meta(TOKENS, 3584, dtype=torch.bfloat16)
    kernels.gated_mlp(x, x, activation, None, None, None, meta(TOKENS, dtype=torch.bool))
    kernels.gated_mlp(x, x, activation, None, None, empty_moments(3584, device="meta"), None)
    assert_all_in_registers(compiled, tmp_path)
    assert_vectors(compiled)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize(("width", "turned"), [(128, 128), (256, 64), (80, 40)], ids=["whole", "partial", "odd"])
def test_rotary(compiled, dtype, interleaved, width, turned, tmp_path):
    heads, key_heads, batch = (28, 4, 8) if width > 80 else (1, 1, TOKENS)
    q = meta(batch, TOKENS // batch, heads * width, dtype=dtype).view(batch, -1, heads, width).transpose(1, 2)
    k = meta(batch, TOKENS // batch, key_heads * width, dtype=dtype).view(batch, -1, key_heads, width).transpose(1, 2)
    cos = meta(1, TOKENS // batch, turned, dtype=dtype)
    mask = meta(TOKENS, dtype=torch.bool)
    blocks = [empty_moments(n * width, device="meta") for n in (heads, key_heads, key_heads)]
    kernels.rotary(q, k, cos, cos, interleaved, False, k, *blocks, mask)
    kernels.rotary(q, k, cos, cos, interleaved, True, None, blocks[0], None, None, None)
    assert_all_in_registers(compiled, tmp_path)
    assert_vectors(compiled)


@pytest.mark.parametrize(("channels", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("style", ["rms", "layer"])
def test_add_norm(compiled, dtype, channels, style, tmp_path):
    x, weight = meta(TOKENS, channels, dtype=dtype), meta(channels, dtype=dtype)
    bias = weight if style == "layer" else None
    blocks = empty_moments(channels, 2, device="meta")
    kernels.add_norm(x, x, weight, bias, 1e-6, style, *blocks, None)
    kernels.add_norm(x, x, weight, bias, 1e-6, style, *blocks, meta(TOKENS, dtype=torch.bool))
    assert_all_in_registers(compiled, tmp_path)


@pytest.mark.parametrize("style", ["rms", "rms_float", "rms_one_plus", "layer"])
def test_add_norm_without_moments_or_residual(compiled, style, tmp_path):
    x, weight = meta(TOKENS, 18944, dtype=torch.bfloat16), meta(18944, dtype=torch.bfloat16)
    block = empty_moments(18944, device="meta")
    kernels.add_norm(x, x, weight, None, 1e-6, style, None, None, None)
    kernels.add_norm(x, None, weight, None, 1e-6, style, None, block, None)
    assert_all_in_registers(compiled, tmp_path)
    assert_vectors(compiled)


def test_arithmetic_is_that_of_pytorch(compiled):
    x = meta(TOKENS, 512, dtype=torch.float32)
    kernels.gated_mlp(x, x, "silu", None, None, None, None)
    assert "div.rn.f32" in compiled[-1].asm["ptx"] and "div.full.f32" not in compiled[-1].asm["ptx"]
    q, cos = x.view(4, -1, 8, 64).transpose(1, 2), meta(1, TOKENS // 4, 64, dtype=torch.float32)
    kernels.rotary(q, q, cos, cos, False, False, None, None, None, None, None)
    assert "mul" in compiled[-1].asm["ptx"] and "fma" not in compiled[-1].asm["ptx"]


def test_old_triton_is_refused(monkeypatch):
    assert backends._triton_refusal("cuda") is None
    monkeypatch.setattr(triton, "__version__", "3.3.1")
    assert "triton 3.3.1 is too old" in backends._triton_refusal("cuda")
    monkeypatch.setattr(triton, "__version__", "3.10.0+git")
    assert backends._triton_refusal("cuda") is None

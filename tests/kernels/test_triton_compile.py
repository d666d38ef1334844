"""Every Triton kernel compiled ahead of time as its op launches it: it compiles, and keeps its values in registers.

No GPU is needed. A stand-in for the driver names an architecture, launches stop after compilation, and tensors are on
device ``meta``, so shapes are those of real models. ``pytest -s`` prints what each kernel uses.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from act_kernels import backends, empty_moments
from kernels.interpreter import INTERPRETED

if INTERPRETED:
    pytest.skip("an interpreted process compiles nothing", allow_module_level=True)
pytestmark = pytest.mark.slow
triton = pytest.importorskip("triton", reason="triton is not installed")
if refusal := backends._version_refusal():
    pytest.skip(refusal, allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402

from act_kernels import triton as kernels  # noqa: E402
from act_kernels.rows import Blend  # noqa: E402
from act_kernels.triton import partials  # noqa: E402

TOKENS = 16384
ARCHITECTURES = (80, 90, 100)
EVERYWHERE = os.environ.get("ACT_COMPILE_ALL") == "1"  # also variations on every architecture: minutes


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


on_one = pytest.mark.parametrize("compiled", [90], indirect=True, ids=["sm_90"])


TRIED = [
    pytest.param(each, marks=[] if each == 90 else pytest.mark.thorough, id=f"sm_{each}") for each in ARCHITECTURES
]


@pytest.fixture(params=TRIED)
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


def column_moments(channels: int, dtype: torch.dtype, masked: bool = True) -> None:
    mask = meta(TOKENS, dtype=torch.bool) if masked else None
    kernels.column_moments(meta(TOKENS, channels, dtype=dtype), empty_moments(channels, device="meta"), mask)


def segment_moments(
    channels: int, dtype: torch.dtype, masked: bool = True, places: torch.dtype = torch.int32, segments: int = 64
) -> None:
    mask, offsets = meta(TOKENS, dtype=torch.bool) if masked else None, meta(segments + 1, dtype=places)
    moments = empty_moments(3 * segments * channels, device="meta").unflatten(1, (segments, -1))[..., :channels]
    kernels.segment_moments(meta(TOKENS, channels, dtype=dtype), moments, offsets, mask)


def pair_moments(channels: int, dtype: torch.dtype, masked: bool = True, swapped: bool = False) -> None:
    x, mask = meta(TOKENS, channels, dtype=dtype), meta(TOKENS, dtype=torch.bool) if masked else None
    moments = empty_moments(channels, 5 if swapped else 3, device="meta")
    kernels.pair_moments(x, x, moments, mask, x if swapped else None)


def blend(target: torch.Tensor) -> Blend:
    return Blend(target, target, torch.arange(700), 0.4)


def blend_rows(dtype: torch.dtype) -> None:
    """Rows of packs in one launch, columns and single values in another."""
    x = meta(18944, 3584, dtype=dtype)
    kernels.blend_rows([blend(x.t()), blend(x[:, :1]), blend(x), blend(x[:3584])])


def gated_mlp(channels: int, dtype: torch.dtype, activation: str, measured: int = 3, masked: bool = True) -> None:
    """With moments of the last ``measured`` of gate, up and product."""
    x, mask = meta(TOKENS, channels, dtype=dtype), meta(TOKENS, dtype=torch.bool) if masked else None
    blocks = [None] * (3 - measured) + [empty_moments(channels, device="meta") for _ in range(measured)]
    kernels.gated_mlp(x, x, activation, *blocks, mask)


def rotary(width: int, turned: int, dtype: torch.dtype, interleaved: bool, measured: bool = True) -> None:
    """Grouped heads with statistics of q, k and v for the counted tokens; or of nothing, rounded once."""
    heads, key_heads, batch = (28, 4, 8) if width > 80 else (1, 1, TOKENS)
    q, k = (meta(batch, TOKENS // batch, n * width, dtype=dtype) for n in (heads, key_heads))
    q, k = (x.view(batch, TOKENS // batch, -1, width).transpose(1, 2) for x in (q, k))
    cos = meta(1, TOKENS // batch, turned, dtype=dtype)
    if measured:
        blocks = [empty_moments(n * width, device="meta") for n in (heads, key_heads, key_heads)]
        kernels.rotary(q, k, cos, cos, interleaved, False, k, *blocks, meta(TOKENS, dtype=torch.bool))
    else:
        kernels.rotary(q, k, cos, cos, interleaved, True, None, None, None, None, None)


def add_norm(
    channels: int, dtype: torch.dtype, style: str, residual: bool = True, measured: bool = True, masked: bool = True
) -> None:
    x, weight = meta(TOKENS, channels, dtype=dtype), meta(channels, dtype=dtype)
    blocks = empty_moments(channels, 2, device="meta") if measured else (None, None)
    mask = meta(TOKENS, dtype=torch.bool) if masked else None
    bias = weight if style == "layer" else None
    kernels.add_norm(x, x if residual else None, weight, bias, 1e-6, style, *blocks, mask)


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

PRINCIPAL = {  # every kernel, with all that it can measure
    "column_moments": lambda: column_moments(18944, BF16),
    "segment_moments": lambda: segment_moments(768, BF16),
    "pair_moments": lambda: pair_moments(18944, BF16),
    "pair_moments swapped": lambda: pair_moments(18944, BF16, swapped=True),
    "blend_rows": lambda: blend_rows(BF16),
    "gated_mlp": lambda: gated_mlp(18944, BF16, "silu"),
    "rotary": lambda: rotary(128, 128, BF16, False),
    "add_norm rms": lambda: add_norm(3584, BF16, "rms"),
    "add_norm layer": lambda: add_norm(3584, BF16, "layer"),
}
VARIATIONS = {  # other types, rows not aligned to 16 bytes, a size that Triton makes a constant, options, no statistics
    "column_moments float32": lambda: column_moments(3584, F32, masked=False),
    "column_moments unaligned": lambda: column_moments(18943, BF16),
    "column_moments one channel": lambda: column_moments(1, F32),
    "column_moments float16": lambda: column_moments(152064, F16),
    "segment_moments float32": lambda: segment_moments(2048, F32, masked=False, places=torch.int64),
    "segment_moments unaligned": lambda: segment_moments(767, BF16),
    "segment_moments of one segment": lambda: segment_moments(1, F32, segments=1),
    "pair_moments float32": lambda: pair_moments(3584, F32, masked=False),
    "pair_moments unaligned": lambda: pair_moments(18943, BF16),
    "pair_moments swapped float32": lambda: pair_moments(3584, F32, masked=False, swapped=True),
    "pair_moments swapped unaligned": lambda: pair_moments(18943, BF16, swapped=True),
    "blend_rows float32": lambda: blend_rows(F32),
    "gated_mlp float32": lambda: gated_mlp(3584, F32, "gelu_tanh", masked=False),
    "gated_mlp unaligned": lambda: gated_mlp(18943, BF16, "gelu"),
    "gated_mlp of the product": lambda: gated_mlp(18944, BF16, "gelu", measured=1),
    "gated_mlp without moments": lambda: gated_mlp(3584, BF16, "relu2", measured=0),
    "rotary interleaved": lambda: rotary(128, 128, F32, True),
    "rotary partial": lambda: rotary(256, 64, F32, False),
    "rotary partial interleaved": lambda: rotary(256, 64, BF16, True),
    "rotary odd": lambda: rotary(80, 40, BF16, False),
    "rotary without moments": lambda: rotary(128, 128, BF16, False, measured=False),
    "add_norm float32": lambda: add_norm(3584, F32, "layer", masked=False),
    "add_norm unaligned": lambda: add_norm(18943, BF16, "rms_float"),
    "add_norm without moments": lambda: add_norm(18944, BF16, "rms_one_plus", measured=False),
    "add_norm without residual": lambda: add_norm(18944, BF16, "rms", residual=False),
}
SPREAD = [
    (name, architecture)
    for number, name in enumerate(VARIATIONS)
    for architecture in (ARCHITECTURES if EVERYWHERE else [ARCHITECTURES[number % len(ARCHITECTURES)]])
]


@pytest.mark.parametrize("name", PRINCIPAL)
def test_every_kernel(compiled, name, tmp_path):
    PRINCIPAL[name]()
    assert_all_in_registers(compiled, tmp_path)
    if name == "blend_rows":
        single, packed = compiled
        assert "ld.global.v4" in packed.asm["ptx"] and "st.global.v4" in packed.asm["ptx"]
        compiled.remove(single)  # its values are where strides put them
    assert_vectors(compiled)


@pytest.mark.parametrize(("name", "compiled"), SPREAD, indirect=["compiled"], ids=str)
def test_variation(compiled, name, tmp_path):
    VARIATIONS[name]()
    assert_all_in_registers(compiled, tmp_path)
    if "unaligned" not in name:
        assert_vectors(compiled)


@on_one
def test_every_kernel_is_among_the_principal_ones(compiled):
    for launch in PRINCIPAL.values():
        launch()
    sources = Path(kernels.__file__).parent.glob("*.py")
    defined = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.M)}
    assert {kernel.metadata.name for kernel in compiled} == defined and len(defined) > 8


@on_one
def test_a_spill_is_seen(compiled, tmp_path, monkeypatch):
    run = triton.JITFunction.run
    monkeypatch.setattr(triton.JITFunction, "run", lambda *args, **options: run(*args, **{**options, "maxnreg": 40}))
    x = meta(TOKENS, 512, dtype=torch.float32)
    kernels.pair_moments(x, x, empty_moments(512, 3, device="meta"), None)
    with pytest.raises(AssertionError, match="pair_moments_kernel spills registers"):
        assert_all_in_registers(compiled, tmp_path)


@on_one
def test_arithmetic_is_that_of_pytorch(compiled):
    x = meta(TOKENS, 512, dtype=torch.float32)
    kernels.gated_mlp(x, x, "silu", None, None, None, None)
    assert "div.rn.f32" in compiled[-1].asm["ptx"] and "div.full.f32" not in compiled[-1].asm["ptx"]
    q, cos = x.view(4, -1, 8, 64).transpose(1, 2), meta(1, TOKENS // 4, 64, dtype=torch.float32)
    kernels.rotary(q, q, cos, cos, False, False, None, None, None, None, None)
    assert "mul" in compiled[-1].asm["ptx"] and "fma" not in compiled[-1].asm["ptx"]


def test_sizes_are_those_of_triton():
    for n in range(1, 3000, 7):
        assert partials.next_power_of_2(n) == triton.next_power_of_2(n)
        assert partials.cdiv(n, 128) == triton.cdiv(n, 128)


def test_old_triton_is_refused(monkeypatch):
    assert backends._triton_refusal("cuda") is None
    monkeypatch.setattr(triton, "__version__", "3.3.1")
    assert "triton 3.3.1 is too old" in backends._triton_refusal("cuda")
    monkeypatch.setattr(triton, "__version__", "3.10.0+git")
    assert backends._triton_refusal("cuda") is None

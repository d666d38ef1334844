"""Cases that concern the CUDA kernels alone: order of threads, long runs, argument checks, and what nvcc makes of them."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

import pytest
import torch

from act_kernels import cuda, empty_moments, native, ops
from kernels import emulated
from kernels.interpreter import INTERPRETED
from kernels.oracle import DTYPES, assert_moments_close, paired, random, truth

REGISTERS = Path(__file__).resolve().parents[2] / "benchmarks" / "registers.py"
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreted process is for Triton")
needs_emulator = pytest.mark.skipif(emulated.REASON is not None, reason=str(emulated.REASON))


@pytest.fixture
def emulator(monkeypatch):
    monkeypatch.setenv("ACT_KERNELS_BACKEND", "cuda")
    module = emulated.emulate(monkeypatch)
    yield module
    module.set_programs(512)
    module.reverse(False)


def every_op(dtype: torch.dtype, channels: int) -> list[torch.Tensor]:
    """Outputs and moments of every op over two runs of rows, some of which do not count or are not finite."""
    rows = 262
    x, y = random(rows, channels, dtype), random(rows, channels, dtype, seed=1)
    x[5, channels // 2], x[200, 0] = float("inf"), float("nan")
    mask = torch.arange(rows) % 5 > 1
    blocks, pair, swapped_pair = empty_moments(channels, 8), empty_moments(channels, 3), empty_moments(channels, 5)
    ops.pair_moments(x, y, pair, mask)
    ops.pair_moments(y, x, swapped_pair, mask, x.flip(0))
    ops.column_moments(y, blocks[7], mask)
    segments = empty_moments(channels, 4)
    ops.segment_moments(x, segments.transpose(0, 1), torch.tensor([0, 3, 3, 180, rows]), mask)
    outputs = [
        ops.gated_mlp(x, y, gate_moments=blocks[0], up_moments=blocks[1], product_moments=blocks[2], mask=mask),
        *ops.add_norm(x, y, y[0].contiguous(), eps=1e-6, x_moments=blocks[3], norm_moments=blocks[4], mask=mask),
        *ops.add_norm(y, x, y[0], y[1], eps=1e-6, style="layer", norm_moments=blocks[6]),
    ]
    q, k = (z.view(2, rows // 2, 2, channels // 2).transpose(1, 2) for z in (x, y))
    turned = channels // 4 * 2
    table = torch.rand(1, rows // 2, turned, generator=torch.Generator().manual_seed(3)).to(dtype)
    outputs += ops.rotary(q, k, table, table, q_moments=blocks[5], v=k, v_moments=blocks[6], mask=mask)
    targets = [y.clone(), y.t().contiguous().t()]
    ops.blend_rows(targets, [x, x], [torch.arange(0, rows, 3)] * 2, 0.4)
    return [*outputs, *targets, blocks, segments, pair, swapped_pair]


@needs_emulator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [64, 300, 142])
def test_no_result_depends_on_the_order_of_threads(emulator, dtype, channels):
    emulated.same_bits_in_any_order(lambda: every_op(dtype, channels))


@needs_emulator
@pytest.mark.parametrize("programs", [1, 3, 512])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_runs_of_full_length_and_more_runs_than_merge_side_by_side(emulator, programs, masked, dtype):
    emulator.set_programs(programs)
    x, y = random(4300, 3, dtype), random(4300, 3, dtype, seed=1)
    x[130, 2], x[4299, 1] = float("inf"), 3e30
    mask = torch.arange(4300) % 7 == 5 if masked else None
    if masked:
        mask[1000:2100] = False  # a run without a counted row, and runs that count only one end
    blocks, pair = empty_moments(3, 2), empty_moments(3, 3)
    ops.column_moments(x, blocks[0], mask)
    ops.gated_mlp(y, y, "relu", product_moments=blocks[1], mask=mask)
    ops.pair_moments(x, y, pair, mask)
    segments = empty_moments(3, 3)
    ops.segment_moments(x, segments.transpose(0, 1), torch.tensor([9, 10, 4250, 4300]), mask)
    for block, span in zip(segments, (slice(9, 10), slice(10, 4250), slice(4250, 4300)), strict=True):
        assert_moments_close(block, truth(x[span], None if mask is None else mask[span]))
    assert_moments_close(blocks[0], truth(x, mask))
    assert_moments_close(blocks[1], truth(y.relu() * y, mask))
    for block, values in zip(pair, paired(x, y), strict=True):
        assert_moments_close(block, truth(values, mask), relative=2e-6)
    alike = [z[:1].expand(4300, 3) for z in (y, y[1:], y[2:])]  # products have more bits than their factors
    for outputs in ((x, y, x.flip(0)), alike):
        swapped_pair = empty_moments(3, 5)
        ops.pair_moments(*outputs[:2], swapped_pair, mask, outputs[2])
        for block, values in zip(swapped_pair, paired(*outputs), strict=True):
            assert_moments_close(block, truth(values, mask), relative=2e-6)


@needs_emulator
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_start_anywhere(emulator, dtype, offset):
    for stride in (64, 65, 68):  # of 16 bytes, of odd ones, of 8
        base = random(140, stride, dtype).flatten()[offset:]
        x = base.as_strided((139, 61), (stride, 1))
        blocks = empty_moments(61, 3)
        product = ops.gated_mlp(x, x, "relu", gate_moments=blocks[0])
        total, _ = ops.add_norm(x, x, x[0].contiguous(), eps=1e-6, x_moments=blocks[1])
        ops.column_moments(x, blocks[2])
        assert torch.equal(product, x.relu() * x) and torch.equal(total, x + x)
        for block in blocks:
            assert_moments_close(block, truth(x))


def modules() -> list:
    built = [] if cuda._cuda is None else [pytest.param(lambda: cuda._cuda, id="built")]
    return [pytest.param(emulated.module, id="emulated", marks=needs_emulator), *built]


def tensor(*shape: int, dtype: torch.dtype = torch.float32, address: int = 64) -> types.SimpleNamespace:
    """What the extension reads of a contiguous tensor, at an address that nothing may touch."""
    strides = torch.empty(shape, device="meta").stride()
    return types.SimpleNamespace(dtype=dtype, data_ptr=lambda: address, shape=shape, stride=lambda: strides)


def block(*leading: int, channels: int = 4) -> types.SimpleNamespace:
    return tensor(*leading, 7, channels, dtype=torch.float64)


X, TABLE, WORKSPACE = tensor(4, 4), tensor(1, 4, 4), tensor(10**6)
PLACE = (0, 0)


def column_moments(m, x=X, moments=None, mask=None, workspace=WORKSPACE, place=PLACE):
    m.column_moments(x, moments or block(), mask, workspace, *place)


def segment_moments(m, moments=None, offsets=None, mask=None, workspace=WORKSPACE):
    offsets = offsets or tensor(3, dtype=torch.int64)
    m.segment_moments(X, moments or tensor(7, 2, 4, dtype=torch.float64), offsets, mask, workspace, *PLACE)


def pair_moments(m, target=X, swapped=None, blocks=3, workspace=WORKSPACE, place=PLACE):
    m.pair_moments(X, target, swapped, block(blocks), None, workspace, *place)


def gated_mlp(m, up=X, activation="silu", product_moments=None):
    m.gated_mlp(X, up, X, activation, None, None, product_moments, None, WORKSPACE, *PLACE)


def rotary(m, cos=TABLE, sin=None):
    heads = tensor(2, 1, 4, 4)  # one head lies side by side whatever the order
    m.rotary(heads, heads, None, heads, heads, None, None, None, cos, sin or cos, False, False, None, WORKSPACE, *PLACE)


def add_norm(m, style="rms", weight=None):
    m.add_norm(X, None, weight or tensor(4), None, 1e-6, style, X, X, None, None, None, WORKSPACE, *PLACE)


BAD = {
    "no such dtype": (lambda m: column_moments(m, tensor(4, 4, dtype=torch.float64)), "x must be float32, bfloat16 or"),
    "null input": (lambda m: column_moments(m, tensor(4, 4, address=0)), "x is a null pointer"),
    "null moments": (
        lambda m: column_moments(m, moments=tensor(7, 4, dtype=torch.float64, address=0)),
        "moments is a null",
    ),
    "no rows": (lambda m: column_moments(m, tensor(0, 4)), "x must be of at least one row and one column"),
    "no matrix": (
        lambda m: column_moments(m, tensor(4, 4, 4)),
        "x must be a matrix or a vector, got float32 .4, 4, 4.",
    ),
    "nothing": (lambda m: column_moments(m, None), "x must be a matrix or a vector, got None"),
    "moments of other channels": (
        lambda m: column_moments(m, moments=block(channels=5)),
        r"moments must be float64 \[7, 4\], got float64 \[7, 5\]",
    ),
    "short mask": (
        lambda m: column_moments(m, mask=tensor(3, dtype=torch.bool)),
        r"mask must be contiguous bool \[1, 4\]",
    ),
    "little workspace": (lambda m: column_moments(m, workspace=tensor(27)), "must hold 28 values, got 27"),
    "no workspace": (lambda m: column_moments(m, workspace=tensor(28, address=0)), "workspace is a null pointer"),
    "negative device": (lambda m: column_moments(m, place=(-1, 0)), "device must be an ordinal"),
    "moments of no segment": (lambda m: segment_moments(m, block()), r"moments must be \[7, E, columns\]"),
    "moments of six statistics": (
        lambda m: segment_moments(m, tensor(6, 2, 4, dtype=torch.float64)),
        r"moments must be float64 \[7, 4\], got float64 \[6, 4\]",
    ),
    "offsets of other segments": (
        lambda m: segment_moments(m, offsets=tensor(2, dtype=torch.int64)),
        r"offsets must be contiguous int64 \[1, 3\]",
    ),
    "offsets of another type": (
        lambda m: segment_moments(m, offsets=tensor(3, dtype=torch.bool)),
        r"offsets must be contiguous int64 \[1, 3\], got bool",
    ),
    "short mask of segments": (
        lambda m: segment_moments(m, mask=tensor(3, dtype=torch.bool)),
        r"mask must be contiguous bool \[1, 4\]",
    ),
    "little workspace for segments": (
        lambda m: segment_moments(m, workspace=tensor(55)),
        "must hold 56 values, got 55",
    ),
    "null target": (
        lambda m: pair_moments(m, target=tensor(4, 4, address=0)),
        "target is a null",
    ),
    "null swapped": (lambda m: pair_moments(m, swapped=tensor(4, 4, address=0), blocks=5), "swapped is a null"),
    "swapped of another shape": (lambda m: pair_moments(m, swapped=tensor(4, 5), blocks=5), "swapped must be float32"),
    "two blocks": (lambda m: pair_moments(m, blocks=2), "moments must be three blocks"),
    "three blocks with swapped": (lambda m: pair_moments(m, swapped=X), "moments must be five blocks"),
    "little workspace for five blocks": (
        lambda m: pair_moments(m, swapped=X, blocks=5, workspace=tensor(139)),
        "must hold 140 values, got 139",
    ),
    "no entries": (
        lambda m: m.blend_rows("float32", tensor(12, dtype=torch.int64), 0, 1, *PLACE),
        "needs entries and tiles, got 0 and 1",
    ),
    "no table": (
        lambda m: m.blend_rows("float32", tensor(12, dtype=torch.int64, address=0), 1, 1, *PLACE),
        "table is a null pointer",
    ),
    "no such activation": (lambda m: gated_mlp(m, activation="tanh"), "activation must be one of silu, .*, got 'tanh'"),
    "another shape": (lambda m: gated_mlp(m, up=tensor(4, 5)), r"up must be float32 \[4, 4\], got float32 \[4, 5\]"),
    "odd rotation": (lambda m: rotary(m, tensor(1, 4, 3)), "of even R"),
    "tables of another length": (lambda m: rotary(m, tensor(2, 3, 4)), "one table of L rows, or one for each sequence"),
    "sin of another width": (lambda m: rotary(m, sin=tensor(1, 4, 2)), r"sin must be contiguous float32 \[4, 4\]"),
    "no such style": (lambda m: add_norm(m, style="batch"), "style must be one of rms, .*, got 'batch'"),
    "short weight": (lambda m: add_norm(m, weight=tensor(3)), r"weight must be contiguous float32 \[1, 4\]"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("module", modules())
def test_launch_code_refuses_wrong_arguments(module, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(module())


@pytest.mark.parametrize("module", modules())
def test_a_failing_launch_names_the_op(module):
    if module() is cuda._cuda and not cuda._cuda.refusal(99):
        pytest.skip("there are a hundred devices")
    with pytest.raises(RuntimeError, match=r"pair_moments on the GPU: .*cudaError"):
        pair_moments(module(), place=(99, 0))


@pytest.fixture(scope="session")
def registers():
    """The module ``benchmarks/registers.py``."""
    spec = importlib.util.spec_from_file_location("registers", REGISTERS)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REGISTERS.parent))
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(registers):
    """Skips where there is no nvcc."""
    if registers.nvcc() is None:
        pytest.skip("nvcc was not found")


def test_the_install_has_the_cuda_kernels(nvcc):
    missing = cuda.build()["missing"]
    if native.LOAD_ERROR or (missing and "ACT_CUDA=0" in missing):
        pytest.skip("built without them")
    assert missing is None
    assert cuda.build()["architectures"]


@pytest.mark.slow
@pytest.mark.parametrize("architectures", [("90",), pytest.param(("80", "90", "100"), marks=pytest.mark.thorough)])
def test_every_kernel_compiles_and_stays_in_registers(registers, nvcc, architectures):
    rows = registers.measure(architectures)
    kernels = {(row["kernel"], row["dtype"]) for row in rows}
    names = {"column_moments", "segment_moments", "pair_moments", "blend_rows", "gated_mlp", "rotary", "add", "norm"}
    names |= {"swapped_pair_moments", "merge_partials", "merge_segments"}
    expected = {(f"{name}_kernel", dtype) for name in names for dtype in ("float32", "bfloat16", "float16")}
    assert kernels == expected | {("row_scale_kernel", "")}
    assert {row["architecture"] for row in rows} == {f"sm_{each}" for each in architectures}
    assert len(rows) == len(architectures) * len(kernels)
    for row in rows:
        assert row["spilled_bytes"] == 0 and 0 < row["registers"] <= 168, row


def test_a_spill_is_seen(registers):
    report = (
        "ptxas info    : Compiling entry function '_ZN3act4cuda44_GLOBAL__N__9ebddf97_11_partials_cu_ce1ff5de21merge_partials"
        "_kernelINS0_8bfloat16EEEvNS0_5PartsEPKhllll' for 'sm_90'\nptxas info    : Function properties for _ZN3act\n"
        "    32 bytes stack frame, 44 bytes spill stores, 60 bytes spill loads\n"
        "ptxas info    : Used 64 registers, used 1 barriers, 32 bytes cumulative stack size, 29184 bytes smem\n"
    )
    assert registers.parse(report) == [
        {
            "kernel": "merge_partials_kernel",
            "dtype": "bfloat16",
            "architecture": "sm_90",
            "registers": 64,
            "spilled_bytes": 104,
            "stack_bytes": 32,
            "shared_bytes": 29184,
        }
    ]

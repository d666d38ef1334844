"""The fused ops: outputs against the stock operators, moments against float64, on every backend."""

from __future__ import annotations

import functools

import pytest
import torch

from act_kernels import empty_moments, native, ops, reference
from kernels.interpreter import INTERPRETED
from kernels.oracle import (
    DTYPES,
    EXACT,
    ISAS,
    WIDE_AND_NARROW,
    assert_moments_close,
    gelu_is_onednn,
    random,
    truth,
    without_onednn,
)

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = [(1, 1), (7, 123), (65, 64), (63, 5), (257, 65), (300, 200), (1030, 33), (64, 3001)]
if INTERPRETED:
    SHAPES = [(1, 1), (63, 5), (140, 130)]
MASKS = ["all", "some"] if INTERPRETED else ["all", "some", "none"]
HEADS = [(2, 4, 2, 9, 16, 16), (1, 3, 1, 65, 64, 64), (3, 2, 2, 5, 80, 32), (1, 1, 1, 1, 2, 2)]
if INTERPRETED:
    HEADS[1] = (1, 2, 1, 9, 64, 64)


def mask_of(kind: str, rows: int) -> torch.Tensor | None:
    return {"all": None, "some": torch.arange(rows) % 3 != 1, "none": torch.zeros(rows, dtype=torch.bool)}[kind]


def assert_close(
    found: torch.Tensor, expected: torch.Tensor, terms: torch.Tensor | float = 0.0, units: int = 1
) -> None:
    """Within float32's rounding at the scale of the row or of cancelling terms, and so many units in the last place."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert torch.equal(found.isnan(), expected.isnan())
    wide, narrow = expected.double().nan_to_num(0, 0, 0), found.double().nan_to_num(0, 0, 0)
    scale = wide.square().mean(-1, keepdim=True).sqrt() + wide.abs() + terms
    unit = 0 if found.dtype == torch.float32 else units * torch.finfo(found.dtype).eps
    smallest = torch.finfo(found.dtype).smallest_normal * unit
    assert ((narrow - wide).abs() <= 8 * torch.finfo(torch.float32).eps * scale + unit * wide.abs() + smallest).all()


def gated_truth(gate, up, activation):
    return reference.gated_mlp(gate, up, activation, None, None, None, None)


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", MASKS)
def test_gated_mlp(shape, dtype, masked):
    gate, up = random(*shape, dtype), random(*shape, dtype, seed=1)
    mask = mask_of(masked, shape[0])
    blocks = [empty_moments(shape[1]) for _ in range(3)]
    names = ("gate_moments", "up_moments", "product_moments")
    product = ops.gated_mlp(gate, up, mask=mask, **dict(zip(names, blocks, strict=True)))
    assert_close(product, gated_truth(gate, up, "silu"))
    for block, values in zip(blocks, (gate, up, product), strict=True):
        assert_moments_close(block, truth(values, mask))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activations(activation, dtype):
    gate = torch.linspace(-30, 30, 4000).to(dtype).reshape(40, 100)
    up = random(40, 100, dtype)
    terms = (gate.double() * up.double()).abs()
    assert_close(ops.gated_mlp(gate, up, activation), gated_truth(gate, up, activation), terms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activations_are_bit_equal_for_every_16_bit_value(activation, dtype, backend):
    if backend not in EXACT:
        pytest.skip("PyTorch computes exp otherwise than this instruction set: within one unit, see test_activations")
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    every = every[every.isfinite()]
    gate = every[: len(every) // 64 * 64].reshape(-1, 64)
    # PyTorch's gelu of one float16 value is not that of the same value in float32.
    odd = activation == "gelu" and dtype == torch.float16
    for up in (torch.ones_like(gate), torch.full_like(gate, -0.7)):
        with without_onednn():
            assert (ops.gated_mlp(gate, up, activation) != gated_truth(gate, up, activation)).sum() <= odd


@functools.cache
def float32_gates() -> torch.Tensor:
    """Values of every size, both tails closely, and subnormal ones."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(2**17, generator=generator) * torch.logspace(-3, 1.5, 2**17)
    smallest = torch.arange(-(2**11), 2**11, dtype=torch.int32).mul(2**11 + 1).view(torch.float32)
    large = torch.logspace(-38, 38, 2**12)
    tail = torch.linspace(-110, -80, 2**14)  # where the exponential becomes infinite
    gates = torch.cat([tail, large, -large, smallest[smallest.isfinite()], torch.linspace(-13, 13, 2**17), spread])
    return gates[: len(gates) // 256 * 256].reshape(-1, 256)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_activations_are_bit_equal_in_float32(activation, backend):
    if backend not in EXACT:
        pytest.skip("PyTorch computes exp otherwise than this instruction set: see the next test")
    if activation == "gelu" and backend != "reference" and gelu_is_onednn():
        pytest.skip("PyTorch leaves gelu to oneDNN on this CPU: see the next test")
    gate = float32_gates()
    up = random(*gate.shape, torch.float32)
    assert torch.equal(ops.gated_mlp(gate, up, activation), gated_truth(gate, up, activation))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_float32_activations_are_near_the_exact_ones(activation):
    """Within eight roundings of the gate itself: in the negative tail, PyTorch's own formulas are no nearer either."""
    gate = float32_gates()[::8] if INTERPRETED else float32_gates()
    found = ops.gated_mlp(gate, torch.ones_like(gate), activation).double()
    exact = reference.ACTIVATIONS[activation](gate.double())
    assert ((found - exact).abs() <= 8 * 2**-24 * gate.double().abs() + torch.finfo(torch.float32).tiny).all()


@pytest.mark.parametrize("mean", [0, 1, 100])
def test_layer_norm_is_near_the_exact_one(mean):
    """Within eight roundings of a row, times its mean over its deviation, which subtracting the mean takes."""
    x, weight, bias = (random(rows, 300, torch.float32, seed) for rows, seed in ((40, 0), (1, 1), (1, 2)))
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) + mean
    found = ops.add_norm(x, None, weight[0], bias[0], eps=1e-5, style="layer")[1]
    exact = reference.add_norm(x.double(), None, weight[0].double(), bias[0].double(), 1e-5, "layer", None, None, None)[
        1
    ]
    scale = exact.square().mean(1, keepdim=True).sqrt() + exact.abs()
    assert ((found - exact).abs() <= 8 * 2**-24 * (1 + mean) * scale).all()


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW[-1:] if INTERPRETED else DTYPES, ids=str)
def test_gated_mlp_with_nonfinite_values(dtype):
    gate, up = random(90, 70, dtype), random(90, 70, dtype, seed=1)
    gate[3, 4], gate[50, 69], up[7, 4], up[60, :] = float("nan"), float("-inf"), float("inf"), float("nan")
    blocks = {name: empty_moments(70) for name in ("gate_moments", "up_moments", "product_moments")}
    product = ops.gated_mlp(gate, up, **blocks)
    assert_close(product, gated_truth(gate, up, "silu"))
    for block, values in zip(blocks.values(), (gate, up, product), strict=True):
        assert_moments_close(block, truth(values))


def test_gated_mlp_takes_halves_of_one_projection():
    both = random(100, 130, torch.bfloat16)
    gate, up = both.chunk(2, dim=-1)
    block = empty_moments(130)
    product = ops.gated_mlp(gate, up, gate_moments=block[:, :65], up_moments=block[:, 65:])
    assert_close(product, gated_truth(gate, up, "silu"))
    assert_moments_close(block, truth(both))
    assert_close(ops.gated_mlp(gate.t().contiguous().t(), up), product)


def heads(batch, count, length, width, dtype, seed=0):
    """As a model has them: a view of its projection ``[B, L, H * D]``."""
    flat = random(batch * length, count * width, dtype, seed)
    return flat.view(batch, length, count, width).transpose(1, 2)


def rotary_truth(q, k, cos, sin, interleaved, round_once):
    return reference.rotary(q, k, cos, sin, interleaved, round_once, None, None, None, None, None)


def angles(batch, length, turned, dtype):
    angle = torch.randn(batch, length, turned // 2, generator=torch.Generator().manual_seed(5)).repeat(1, 1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("round_once", [False, True])
@pytest.mark.parametrize("sizes", HEADS)
def test_rotary(sizes, interleaved, round_once, dtype):
    batch, q_heads, k_heads, length, width, turned = sizes
    q, k, v = (heads(batch, n, length, width, dtype, seed) for seed, n in enumerate((q_heads, k_heads, k_heads)))
    cos, sin = angles(batch if batch > 1 else 1, length, turned, dtype)
    mask = torch.arange(batch * length) % 4 != 2
    blocks = [empty_moments(x.shape[1] * width) for x in (q, k, v)]
    names = ("q_moments", "k_moments", "v_moments")
    options = {"interleaved": interleaved, "round_once": round_once, "mask": mask, "v": v}
    found = ops.rotary(q, k, cos, sin, **options, **dict(zip(names, blocks, strict=True)))
    for one, other in zip(found, rotary_truth(q, k, cos, sin, interleaved, round_once), strict=True):
        assert torch.equal(one, other) and one.transpose(1, 2).is_contiguous()
    for block, x in zip(blocks, (q, k, v), strict=True):
        assert_moments_close(block, truth(x.transpose(1, 2).flatten(2).flatten(0, 1), mask))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary_of_parts_of_a_fused_projection_without_moments(dtype):
    fused = random(2 * 7, 5 * 16, dtype).view(2, 7, 5, 16).transpose(1, 2)
    q, k = fused[:, :3], fused[:, 3:4]
    cos, sin = angles(1, 7, 16, dtype)
    for one, other in zip(ops.rotary(q, k, cos, sin), rotary_truth(q, k, cos, sin, False, False), strict=True):
        assert torch.equal(one, other)
    scattered = q.contiguous().transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(ops.rotary(scattered, k, cos, sin)[0], rotary_truth(q, k, cos, sin, False, False)[0])


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", MASKS[-1:] if INTERPRETED else MASKS)
@pytest.mark.parametrize("style", ops.NORM_STYLES)
def test_add_norm(shape, dtype, masked, style):
    x, residual = random(*shape, dtype), random(*shape, dtype, seed=1)
    weight = random(1, shape[1], dtype, seed=2)[0]
    bias = random(1, shape[1], dtype, seed=3)[0] if style == "layer" else None
    mask = mask_of(masked, shape[0])
    blocks = [empty_moments(shape[1]) for _ in range(2)]
    options = {"eps": 1e-5, "style": style, "mask": mask, "x_moments": blocks[0], "norm_moments": blocks[1]}
    total, norm = ops.add_norm(x, residual, weight, bias, **options)
    expected_total, expected = reference.add_norm(x, residual, weight, bias, 1e-5, style, None, None, None)
    assert torch.equal(total, expected_total)
    if style != "layer" or shape[1] > 1:  # one channel minus its own mean leaves nothing but rounding
        # Style rms rounds twice: one unit of the inner rounding, times the weight, can be two of the outer.
        assert_close(norm, expected, units=2 if style == "rms" else 1)
    for block, values in zip(blocks, (x, norm), strict=True):
        assert_moments_close(block, truth(values, mask))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["rms", "rms_float", "rms_one_plus"])
def test_rms_norms_are_bit_equal_at_every_width(style, dtype, backend):
    if backend not in ("reference", *ISAS):
        pytest.skip("a GPU sums a row in another order: within one unit, see test_add_norm")
    for width in [*range(1, 140), 511, 513, 1000, 4095, 9001]:
        x, residual = random(3, width, dtype), random(3, width, dtype, seed=1)
        weight = random(1, width, dtype, seed=2)[0]
        found = ops.add_norm(x, residual, weight, eps=1e-5, style=style)
        expected = reference.add_norm(x, residual, weight, None, 1e-5, style, None, None, None)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), width


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_without_a_residual(dtype):
    x, weight = random(70, 96, dtype), random(1, 96, dtype, seed=2)[0]
    total, norm = ops.add_norm(x, None, weight, eps=1e-6)
    assert total is x
    assert_close(norm, reference.add_norm(x, None, weight, None, 1e-6, "rms", None, None, None)[1], units=2)
    wide = random(70, 192, dtype)[:, ::2]
    expected = reference.add_norm(wide, x, weight, None, 1e-6, "rms", None, None, None)
    found = ops.add_norm(wide, x, weight, eps=1e-6)
    assert torch.equal(found[0], expected[0])
    assert_close(found[1], expected[1], units=2)


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW[-1:] if INTERPRETED else DTYPES, ids=str)
def test_add_norm_with_nonfinite_rows(dtype):
    x, residual = random(40, 70, dtype), random(40, 70, dtype, seed=1)
    x[3, 4], residual[20, 5] = float("nan"), float("inf")
    weight = random(1, 70, dtype, seed=2)[0]
    blocks = {"x_moments": empty_moments(70), "norm_moments": empty_moments(70)}
    _, norm = ops.add_norm(x, residual, weight, eps=1e-6, **blocks)
    assert_close(norm, reference.add_norm(x, residual, weight, None, 1e-6, "rms", None, None, None)[1], units=2)
    for block, values in zip(blocks.values(), (x, norm), strict=True):
        assert_moments_close(block, truth(values))


def test_huge_mean_with_tiny_spread():
    x = torch.randn(130 if INTERPRETED else 3000, 37, generator=torch.Generator().manual_seed(3)) + 1e4
    blocks = [empty_moments(37) for _ in range(3)]
    for rows in (x[:1], x[1:100], x[100:]):
        ops.gated_mlp(rows, rows, gate_moments=blocks[0])
        ops.add_norm(rows, rows, torch.ones(37), eps=1e-6, x_moments=blocks[1])
        q = rows[None, :, None].transpose(1, 2)[..., :36]
        ops.rotary(q, q, torch.ones(1, len(rows), 36), torch.zeros(1, len(rows), 36), q_moments=blocks[2][:, :36])
    for block, values in zip(blocks, (x, x, x[:, :36]), strict=True):
        block, expected = block[:, : values.shape[1]], truth(values)
        assert ((block[2] - expected[2]).abs() <= 1e-6 * expected[2]).all()
        assert ((block[1] - expected[1]).abs() <= 1e-6 * (expected[2] / len(x)).sqrt() + 1e-5).all()


def every_op(dtype):
    """Outputs and moments of each fused op on one input."""
    rows, channels = 700, 192
    x, y = random(rows, channels, dtype), random(rows, channels, dtype, seed=1)
    x[5, 7] = float("inf")
    mask = torch.arange(rows) % 5 != 0
    blocks = [empty_moments(channels) for _ in range(7)]
    outputs = [
        ops.gated_mlp(x, y, gate_moments=blocks[0], up_moments=blocks[1], product_moments=blocks[2], mask=mask),
        *ops.add_norm(x, y, y[0].contiguous(), eps=1e-6, x_moments=blocks[3], norm_moments=blocks[4], mask=mask),
    ]
    q, k = (z.view(2, rows // 2, 4, channels // 4).transpose(1, 2) for z in (x, y))
    cos, sin = angles(1, rows // 2, channels // 4, dtype)
    outputs += ops.rotary(q, k, cos, sin, q_moments=blocks[5], k_moments=blocks[6], mask=mask)
    return [*outputs, *blocks]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has one thread")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_again_and_on_any_number_of_threads(dtype):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = every_op(dtype)
        again = every_op(dtype)
        torch.set_num_threads(3)
        many = every_op(dtype)
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(one, again, many, strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)) and torch.equal(a.nan_to_num(7), c.nan_to_num(7))


def test_outputs_are_written_whole(monkeypatch):
    """Every output is allocated full of NaN, and nothing outside the moments' channels is touched."""

    def poisoned(allocate):
        return lambda *args, **options: allocate(*args, **options).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda self, *a, **k: self.new_full(a if isinstance(a[0], int) else a[0], torch.nan, **k),
    )
    x, y = random(67, 71, torch.float32), random(67, 71, torch.float32, seed=1)
    arena = torch.full((7, 75), -5.0, dtype=torch.float64)
    arena[:, 2:73] = 0
    assert ops.gated_mlp(x, y, gate_moments=arena[:, 2:73]).isfinite().all()
    assert all(output.isfinite().all() for output in ops.add_norm(x, y, y[0].contiguous(), eps=1e-6))
    assert (arena[:, :2] == -5).all() and (arena[:, 73:] == -5).all()
    q = random(66, 72, torch.float32).view(2, 33, 3, 24).transpose(1, 2)
    assert all(out.isfinite().all() for out in ops.rotary(q, q, *angles(1, 33, 8, torch.float32)))


def test_zero_rows():
    empty = torch.empty(0, 5)
    block = empty_moments(5)
    assert ops.gated_mlp(empty, empty, gate_moments=block).shape == (0, 5)
    assert [out.shape for out in ops.add_norm(empty, empty, torch.ones(5), eps=1e-6)] == [(0, 5)] * 2
    q = torch.empty(2, 3, 0, 4)
    turned = ops.rotary(q, q, torch.empty(1, 0, 4), torch.empty(1, 0, 4))
    assert [out.shape for out in turned] == [(2, 3, 0, 4)] * 2
    assert not block.any()


X = torch.zeros(4, 6)
Q = torch.zeros(2, 3, 4, 8)
ANGLE = torch.zeros(1, 4, 8)
BAD = {
    "up is another shape": (lambda: ops.gated_mlp(X, X[:3]), "up must be like gate"),
    "gate is an integer": (lambda: ops.gated_mlp(X.int(), X), "gate must be float32, bfloat16 or float16, got"),
    "no such activation": (lambda: ops.gated_mlp(X, X, "tanh"), "activation must be one of silu, gelu"),
    "short moments": (lambda: ops.gated_mlp(X, X, up_moments=empty_moments(5)), "up_moments must be float64"),
    "short mask": (lambda: ops.gated_mlp(X, X, mask=torch.ones(3, dtype=torch.bool)), r"mask must be bool \[4\]"),
    "q of three dimensions": (lambda: ops.rotary(Q[0], Q[0], ANGLE, ANGLE), r"q must be \[B, heads, L, width\]"),
    "k of another width": (lambda: ops.rotary(Q, Q[..., :4], ANGLE, ANGLE), "k must have heads as wide as q"),
    "cos of another length": (lambda: ops.rotary(Q, Q, ANGLE[:, :3], ANGLE), r"cos must be \[2 or 1, 4, R\]"),
    "sin too wide": (lambda: ops.rotary(Q, Q, ANGLE, torch.zeros(1, 4, 10)), "sin must be of even width up to 8"),
    "cos of another dtype": (lambda: ops.rotary(Q, Q, ANGLE.half(), ANGLE.half()), "cos must be torch.float32"),
    "v moments without v": (lambda: ops.rotary(Q, Q, ANGLE, ANGLE, v_moments=empty_moments(24)), "given without v"),
    "residual of another dtype": (
        lambda: ops.add_norm(X, X.half(), X[0], eps=1e-6),
        "residual must be like x",
    ),
    "weight too long": (lambda: ops.add_norm(X, X, torch.ones(7), eps=1e-6), r"weight must be torch.float32 \[6\]"),
    "bias of an RMS norm": (lambda: ops.add_norm(X, X, X[0], X[0], eps=1e-6), "bias is for style 'layer' only"),
    "no such style": (lambda: ops.add_norm(X, X, X[0], eps=1e-6, style="batch"), "style must be one of rms"),
    "strided moments": (
        lambda: ops.add_norm(X, X, X[0], eps=1e-6, x_moments=empty_moments(12)[:, ::2]),
        "x_moments must have stride 1 along channels",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_the_instruction_sets_agree():
    if len(ISAS) < 2:
        pytest.skip("this processor runs one instruction set only")
    found = []
    for isa in ISAS:
        native._native.use_instruction_set(isa)
        found.append(native.add_norm(X + 1, X, X[0] + 1, None, 1e-6, "rms", None, None, None)[1])
    assert all(torch.equal(found[0], other) for other in found)

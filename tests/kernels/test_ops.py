"""Every op on every CPU backend and instruction set, against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from act_kernels import empty_moments, merge_moments, ops, reference
from act_kernels.statistics import COUNT, M2, MEAN, NONFINITE
from kernels.interpreter import INTERPRETED
from kernels.oracle import DTYPES, ISAS, WIDE_AND_NARROW, assert_moments_close, paired, random, truth

SHAPES = [(0, 5), (1, 1), (1, 64), (7, 123), (63, 5), (257, 65), (500, 512), (1030, 33), (64, 3001)]
if INTERPRETED:
    SHAPES = [(0, 5), (1, 1), (7, 123), (257, 65), (33, 520)]
PAIRS = [(1, 1), (63, 5), (140, 130)] if INTERPRETED else [(1, 1), (63, 5), (300, 200), (70, 1100)]

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", ["all", "some", "none"])
def test_column_moments(shape, dtype, masked):
    x = random(*shape, dtype)
    mask = {"all": None, "some": torch.arange(shape[0]) % 3 != 1, "none": torch.zeros(shape[0], dtype=torch.bool)}
    block = empty_moments(shape[1])
    ops.column_moments(x, block, mask[masked])
    assert_moments_close(block, truth(x, mask[masked]))


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW, ids=str)
@pytest.mark.parametrize("shape", PAIRS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("blocks", [3, 5])
def test_pair_moments(shape, dtype, masked, blocks):
    """In two calls; rows that do not count hold NaN."""
    donor = random(*shape, dtype)
    target = (donor.float() + 0.01 * random(*shape, torch.float32, seed=1)).to(dtype)
    swapped = (target.float() + 0.02 * random(*shape, torch.float32, seed=2)).to(dtype) if blocks == 5 else None
    outputs = [x for x in (donor, target, swapped) if x is not None]
    mask = torch.arange(shape[0]) % 4 != 0 if masked else None
    if masked:
        for x in outputs:
            x[~mask] = torch.nan
    pair, middle = empty_moments(shape[1], blocks), shape[0] // 2
    for some in (slice(middle), slice(middle, None)):
        d, t, *s = (x[some] for x in outputs)
        ops.pair_moments(d, t, pair, None if mask is None else mask[some], *s)
    for block, values in zip(pair, paired(*outputs), strict=True):
        assert_moments_close(block, truth(values, mask), relative=2e-6)


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW[-1:] if INTERPRETED else DTYPES, ids=str)
def test_nonfinite_values_of_a_pair_are_counted_and_left_out(dtype):
    rows = 60 if INTERPRETED else 300
    x = random(rows, 70, dtype)
    x[5, 3], x[rows // 2, 3], x[0, 10], x[-1, 69] = float("nan"), float("inf"), float("-inf"), float("nan")
    x[:, 20] = float("nan")
    donor, target, swapped = x, random(rows, 70, dtype, seed=2), random(rows, 70, dtype, seed=3)
    target[7, 10], target[8, 10], donor[8, 10], swapped[9, 10] = (float("nan"), *[float("inf")] * 3)
    swapped[10, 11], donor[10, 11] = float("inf"), target[10, 11]  # inf * 0
    pair, swapped_pair = empty_moments(70, 3), empty_moments(70, 5)
    ops.pair_moments(donor, target, pair)
    ops.pair_moments(donor, target, swapped_pair, swapped=swapped)
    measured = (*paired(donor, target), *paired(donor, target, swapped))
    for block, values in zip((*pair, *swapped_pair), measured, strict=True):
        assert_moments_close(block, truth(values), relative=2e-6)
    assert pair[0, NONFINITE, 3] == 2 and pair[0, COUNT, 20] == 0 and pair[2, NONFINITE, 20] == rows
    assert swapped_pair[:, NONFINITE, 10].tolist() == [2, 2, 3, 3, 4]
    assert swapped_pair[:, NONFINITE, 11].tolist() == [0, 0, 0, 1, 1]
    assert swapped_pair.isfinite().all()


@pytest.mark.parametrize(
    "values",
    [[3e38, -3e38, 1e30, 2.0], [1e-25, -2e-25, 3e-25, 0.0], [3e38] * 4, [-0.0, 0.0, -0.0, 0.0]],
    ids=["overflowing squares", "vanishing squares", "overflowing sum", "signed zeros"],
)
def test_extreme_values(values):
    x = torch.tensor(values).repeat(100)[:, None].repeat(1, 40)
    block = empty_moments(40)
    ops.column_moments(x, block)
    assert_moments_close(block, truth(x))


@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_huge_mean_with_tiny_spread(ratio):
    sizes = [1, 99, 200] if INTERPRETED else [1, 999, 3000, 1000]
    x = torch.randn(sum(sizes), 37, generator=torch.Generator().manual_seed(3)) + ratio
    block = empty_moments(37)
    for rows in x.split(sizes):
        ops.column_moments(rows, block)
    expected = truth(x)
    assert ((block[MEAN] - expected[MEAN]).abs() <= 1e-6 * (expected[M2] / len(x)).sqrt() + 1e-9 * ratio).all()
    assert ((block[M2] - expected[M2]).abs() <= 1e-6 * expected[M2]).all()


def test_a_nan_in_the_first_rows_does_not_spoil_a_huge_mean():
    x = torch.randn(300 if INTERPRETED else 3000, 40, generator=torch.Generator().manual_seed(6)) + 1e4
    x[3, 7], x[0, 9], x[:50, 11] = float("nan"), float("inf"), float("nan")
    block = empty_moments(40)
    ops.column_moments(x, block)
    expected = truth(x)
    assert ((block[M2] - expected[M2]).abs() <= 1e-6 * expected[M2]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", ["transposed", "every second column", "row slice", "broadcast rows"])
def test_views(view, dtype):
    base = random(96, 96, dtype)
    x = {
        "transposed": base.t(),
        "every second column": base[:, ::2],
        "row slice": base[3::5, 7:90],
        "broadcast rows": base[:1].expand(50, 96),
    }[view]
    block = empty_moments(x.shape[1])
    ops.column_moments(x, block)
    assert_moments_close(block, truth(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_of_a_pair(dtype):
    base = random(96, 96, dtype)
    donor, target, swapped = base.t()[:40, :50], base[::2, 2:52][:40], base[:40, ::2][:, -1:].expand(40, 50)
    pair = empty_moments(50, 5)
    ops.pair_moments(donor, target, pair, swapped=swapped)
    for block, values in zip(pair, paired(donor, target, swapped), strict=True):
        assert_moments_close(block, truth(values))


@pytest.mark.parametrize("blocks", [3, 5])
def test_only_the_given_channels_of_the_arena_of_a_pair_are_written(blocks, monkeypatch):
    """Also where memory to work in is full of NaN."""
    if not INTERPRETED:  # the interpreter allocates integers in the same way
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    arena = torch.full((blocks, 7, 300), -7.0, dtype=torch.float64)
    arena[:, :, 100:141] = 0
    outputs = [random(90, 41, torch.bfloat16, seed) for seed in range(5, 7 + (blocks == 5))]
    ops.pair_moments(*outputs[:2], arena[:, :, 100:141], None, *outputs[2:])
    for block, values in zip(arena[:, :, 100:141], paired(*outputs), strict=True):
        assert_moments_close(block, truth(values))
    assert (arena[:, :, :100] == -7).all() and (arena[:, :, 141:] == -7).all()


def test_a_pair_without_rows_or_channels_changes_nothing():
    for rows, channels in ((0, 5), (5, 0)):
        x, pair = torch.ones(rows, channels), torch.full((5, 7, channels), 3.0, dtype=torch.float64)
        ops.pair_moments(x, x, pair, swapped=x)
        assert (pair == 3).all()


def test_a_swapped_output_leaves_the_blocks_of_a_pair_as_they_are(backend):
    """Bit for bit on a CPU; a GPU cuts the rows into other runs."""
    donor, target, swapped = (random(300, 70, torch.bfloat16, seed) for seed in range(3))
    pair, swapped_pair = empty_moments(70, 3), empty_moments(70, 5)
    ops.pair_moments(donor, target, pair)
    ops.pair_moments(donor, target, swapped_pair, swapped=swapped)
    if backend in ("reference", *ISAS):
        assert torch.equal(pair, swapped_pair[:3])
    torch.testing.assert_close(pair, swapped_pair[:3], rtol=1e-5, atol=1e-4)


def test_a_compiled_graph_keeps_a_swapped_pair_whole(backend):
    if backend != (ISAS or ["reference"])[0]:
        pytest.skip("the same on every backend")
    donor, target, swapped = (random(9, 5, torch.float32, seed) for seed in range(3))
    found, expected = empty_moments(5, 5), empty_moments(5, 5)
    compiled = torch.compile(lambda *given: ops.pair_moments(*given), backend="aot_eager", fullgraph=True)
    compiled(donor, target, found, None, swapped)
    ops.pair_moments(donor, target, expected, None, swapped)
    assert found.any() and torch.equal(found, expected)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has one thread")
def test_same_bits_for_any_number_of_threads():
    x = random(2000, 700, torch.bfloat16)
    blocks = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        blocks.append(empty_moments(x.shape[1]))
        ops.column_moments(x, blocks[-1])
    torch.set_num_threads(threads)
    assert all(torch.equal(blocks[0], block) for block in blocks)


def test_merging_is_exact_in_any_order():
    sizes = [1, 150, 0, 99, 50] if INTERPRETED else [1, 700, 0, 2000, 299]
    x = random(sum(sizes), 50, torch.float32)
    parts = [empty_moments(50) for _ in range(5)]
    for rows, part in zip(x.split(sizes), parts, strict=True):
        ops.column_moments(rows, part)
    merged = []
    for order in ([0, 1, 2, 3, 4], [4, 2, 3, 0, 1]):
        merged.append(empty_moments(50))
        for index in order:
            merge_moments(merged[-1], parts[index])
    assert_moments_close(merged[0], truth(x))
    torch.testing.assert_close(merged[0], merged[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strength", [0.4, 1.0, 0.0, 1.7, 0.999, -0.5])
def test_blend_rows(dtype, strength):
    target, donor = random(60, 37, dtype), random(60, 37, dtype, seed=6)
    rows = torch.tensor([0, 59, 7, 30])
    expected = target.double()
    expected[rows] += strength * (donor[rows].double() - expected[rows])
    before = target.clone()
    ops.blend_rows([target], [donor], [rows], strength)
    untouched = torch.ones(60, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(target[untouched], before[untouched])
    if strength in (0.0, 1.0):
        assert torch.equal(target.double(), expected)
    else:
        inputs = (before.double().abs() + donor.double().abs()) * max(1, abs(strength))
        tolerance = torch.finfo(dtype).eps * expected.abs() + torch.finfo(torch.float32).eps * inputs
        assert ((target.double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blend_columns_through_a_transposed_view(dtype):
    target, donor = random(40, 25, dtype), random(40, 25, dtype, seed=7)
    expected = target.clone()
    expected[:, [3, 24]] = donor[:, [3, 24]]
    ops.blend_rows([target.t()], [donor.t()], [torch.tensor([3, 24])], 1.0)
    assert torch.equal(target, expected)


def test_strength_one_copies_nan_and_infinity_bit_for_bit():
    donor = torch.tensor([[float("nan"), float("inf"), 1.0], [-0.0, 2.0, 3.0]], dtype=torch.bfloat16)
    target = torch.full((2, 3), float("inf"), dtype=torch.bfloat16)
    ops.blend_rows([target], [donor], [torch.tensor([0, 1])], 1.0)
    assert torch.equal(target.view(torch.int16), donor.view(torch.int16))


def test_every_float16_and_bfloat16_value_survives_the_round_trip():
    side = 64 if INTERPRETED else 256  # of all values, or of every sixteenth
    patterns = torch.arange(-32768, 32768, 65536 // side**2, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        donor = patterns.view(dtype).reshape(side, side)
        target = torch.zeros_like(donor)
        ops.blend_rows([target], [donor], [torch.arange(side)], 0.5)
        expected = (donor.double() * 0.5).to(dtype)
        finite = donor.isfinite()
        assert torch.equal(target[finite], expected[finite])
        block = empty_moments(side)
        ops.column_moments(donor, block)
        assert_moments_close(block, truth(donor))


def swapped_pair(swapped, blocks):
    ops.pair_moments(torch.zeros(3, 4), torch.zeros(3, 4), empty_moments(4, blocks), None, swapped)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.column_moments(torch.zeros(3, 4).double(), empty_moments(4)), "x must be float32, bfloat16"),
        (lambda: ops.column_moments(torch.zeros(2, 3, 4), empty_moments(4)), "x must have two dimensions"),
        (lambda: ops.column_moments(torch.zeros(3, 4), empty_moments(5)), r"moments must be float64 \[7, 4\]"),
        (lambda: ops.column_moments(torch.zeros(3, 4), empty_moments(8)[:, ::2]), "stride 1 along channels"),
        (lambda: ops.column_moments(torch.zeros(3, 4), empty_moments(4), torch.ones(3)), r"mask must be bool \[3\]"),
        (lambda: ops.pair_moments(torch.zeros(3, 4), torch.zeros(3, 5), empty_moments(4, 3)), "target must be like"),
        (lambda: swapped_pair(torch.zeros(3, 5), 5), "swapped must be like donor"),
        (lambda: swapped_pair(torch.zeros(3, 4).half(), 5), "swapped must be like donor"),
        (lambda: swapped_pair(torch.zeros(3, 4), 3), r"moments must be float64 \[5, 7, 4\]"),
        (lambda: swapped_pair(None, 5), r"moments must be float64 \[3, 7, 4\]"),
        (
            lambda: ops.blend_rows([torch.zeros(3, 4)], [torch.zeros(3, 4)], [torch.tensor([3])], 0.5),
            r"lie in \[0, 3\)",
        ),
        (
            lambda: ops.blend_rows([torch.zeros(3, 4)], [torch.zeros(3, 4)], [torch.tensor([1.0])], 0.5),
            r"rows\[0\] must be int64",
        ),
        (lambda: ops.blend_rows([torch.zeros(3, 4)], [torch.zeros(3, 4)], [torch.tensor([1])], float("nan")), "finite"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()


def test_the_reference_agrees_with_the_textbook():
    x = random(9000, 8, torch.float32)
    block = empty_moments(8)
    reference.column_moments(x, block)
    torch.testing.assert_close(block, truth(x), rtol=1e-12, atol=1e-9)

"""Statistics of segments of rows: those of ``column_moments`` on the rows of each, on every backend."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch

from act_kernels import empty_moments, ops
from act_kernels.statistics import COUNT, M2, MEAN, NONFINITE
from kernels.interpreter import INTERPRETED
from kernels.oracle import DTYPES, ISAS, WIDE_AND_NARROW, assert_moments_close, random, truth
from kernels.orders import CHANNELS, ORDERS, errors

pytestmark = pytest.mark.usefixtures("backend")

SIZES = {
    "one": [1],
    "uneven": [0, 300, 1, 0, 0, 7, 131, 2],
    "all in one": [0, 0, 420, 0],
    "many": [number % 5 for number in range(300)],
    "none": [0, 0, 0],
}
if INTERPRETED:
    SIZES |= {"uneven": [0, 150, 1, 0, 0, 7], "all in one": [0, 0, 40, 0], "many": SIZES["many"][:8]}
MASKS = ["all", "some"] if INTERPRETED else ["all", "some", "none"]
POISON = -7.0


def offsets_of(sizes: list[int], before: int = 0, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(list(accumulate(sizes, initial=before)), dtype=dtype)


def segment_blocks(segments: int, channels: int) -> torch.Tensor:
    """Zeroed ``[7, E, C]``."""
    return empty_moments(segments * channels).unflatten(1, (segments, channels))


def assert_segments_close(moments, x, offsets, mask=None) -> None:
    for block, (begin, end) in zip(moments.unbind(1), pairwise(offsets.tolist()), strict=True):
        assert_moments_close(block, truth(x[begin:end], None if mask is None else mask[begin:end]))


def one_by_one(moments, x, offsets, mask=None) -> None:
    """What the op must do, by ``column_moments``."""
    for block, (begin, end) in zip(moments.unbind(1), pairwise(offsets.tolist()), strict=True):
        ops.column_moments(x[begin:end], block, None if mask is None else mask[begin:end])


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW[:2], ids=str)
@pytest.mark.parametrize("channels", [70] if INTERPRETED else [1, 70, 257])
@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("sizes", SIZES)
def test_segments(sizes, masked, channels, dtype):
    """Rows before, after and between segments are infinite: none is read."""
    offsets = offsets_of(SIZES[sizes], before=3)
    rows = int(offsets[-1]) + 9
    x = random(rows, channels, dtype)
    x[:3], x[-9:] = torch.inf, torch.nan
    counted = {"all": None, "some": torch.arange(rows) % 3 != 1, "none": torch.zeros(rows, dtype=torch.bool)}[masked]
    moments = segment_blocks(len(offsets) - 1, channels)
    ops.segment_moments(x, moments, offsets, counted)
    assert_segments_close(moments, x, offsets, counted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_same_bits_as_segment_by_segment(dtype, masked, backend):
    """Also where a value is not finite, rows are summed again, or a block holds earlier rows."""
    if backend not in ("reference", *ISAS):
        pytest.skip("a GPU cuts a whole matrix into runs of another length")
    sizes = [0, 129, 1, 700, 40, 0, 260]
    x = random(sum(sizes), 213, dtype)
    x[140, 7], x[5], x[400:430, 20:40], x[:, 50] = torch.inf, torch.nan, 6e4, 3.5
    mask = torch.arange(len(x)) % 4 != 1 if masked else None
    found, expected = segment_blocks(7, 213), segment_blocks(7, 213)
    for shift in (0, 20):
        offsets = offsets_of(sizes)
        offsets[1:-1] += shift  # so that the first segment is empty at first only
        ops.segment_moments(x, found, offsets, mask)
        one_by_one(expected, x, offsets, mask)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW, ids=str)
def test_only_the_blocks_of_segments_are_written(dtype):
    """The blocks of experts lie far apart in an arena; where a segment is empty, its block keeps its bits."""
    segments, channels, apart, first = 4, 33, 120, 17
    arena = torch.full((7, first + segments * apart), POISON, dtype=torch.float64)
    moments = arena[:, first:].unflatten(1, (segments, apart))[..., :channels]
    moments[:, :3] = 0
    x, offsets = random(90, channels, dtype), offsets_of([40, 0, 50, 0], dtype=torch.int64)
    ops.segment_moments(x, moments, offsets)
    assert_segments_close(moments[:, :3], x, offsets[:-1])
    assert not moments[:, 1].any() and (moments[:, 3] == POISON).all()
    for segment in range(segments):
        block = arena[:, first + segment * apart :]
        assert (block[:, channels:apart] == POISON).all()
    assert (arena[:, :first] == POISON).all()


def test_blocks_may_lie_one_after_the_other():
    x, offsets = random(50, 12, torch.float32), offsets_of([20, 30])
    moments = empty_moments(12, 2).transpose(0, 1)
    ops.segment_moments(x, moments, offsets)
    assert_segments_close(moments, x, offsets)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", ["transposed", "even columns", "odd columns", "row slice", "row by row"])
def test_views(view, dtype):
    base = random(97, 97, dtype)
    x = {
        "transposed": base.t(),
        "even columns": base[:, ::2],
        "odd columns": base[:, 1::2],
        "row slice": base[3:90:2, 7:90],
        "row by row": base[:1].expand(50, 97),
    }[view]
    offsets = offsets_of([9, 0, len(x) - 11], before=2)
    moments = segment_blocks(3, x.shape[1])
    ops.segment_moments(x, moments, offsets)
    assert_segments_close(moments, x, offsets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_order_of_rows_is_exact(dtype):
    names = ["many outliers first", "Cauchy"] if INTERPRETED else list(ORDERS)
    rows = 140 if INTERPRETED else 700
    x = torch.cat([ORDERS[name](rows).expand(rows, CHANNELS) for name in names]).to(dtype)
    offsets = offsets_of([rows] * len(names))
    moments = segment_blocks(len(names), CHANNELS)
    ops.segment_moments(x, moments, offsets)
    for name, block, values in zip(names, moments.unbind(1), x.split(rows), strict=True):
        assert max(errors(block, values).values()) <= 1e-6, name


def test_huge_mean_with_tiny_spread():
    sizes = [1, 99, 60] if INTERPRETED else [1, 999, 3000, 1000]
    x = torch.randn(sum(sizes), 37, generator=torch.Generator().manual_seed(3)) + 1e4
    moments = segment_blocks(len(sizes), 37)
    ops.segment_moments(x, moments, offsets_of(sizes))
    for block, rows in zip(moments.unbind(1), x.split(sizes), strict=True):
        expected = truth(rows)
        assert ((block[M2] - expected[M2]).abs() <= 1e-6 * expected[M2]).all()
        assert ((block[MEAN] - expected[MEAN]).abs() <= 1e-6 * (expected[M2] / len(rows)).sqrt() + 1e-5).all()


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW[-1:] if INTERPRETED else DTYPES, ids=str)
def test_what_is_not_finite_is_counted_in_its_segment_alone(dtype):
    x, offsets = random(300, 70, dtype), offsets_of([150, 100, 50])
    x[5, 3], x[149, 3], x[150, 10], x[299, 69] = torch.nan, torch.inf, -torch.inf, torch.nan
    x[150:250, 20] = torch.nan
    moments = segment_blocks(3, 70)
    ops.segment_moments(x, moments, offsets)
    assert_segments_close(moments, x, offsets)
    assert moments[NONFINITE, :, 3].tolist() == [2, 0, 0] and moments[COUNT, 1, 20] == 0
    assert moments.isfinite().all()


def test_calls_in_a_row_merge():
    x = random(400, 40, torch.float32)
    moments = segment_blocks(2, 40)
    ops.segment_moments(x[:150], moments, offsets_of([100, 50]))
    ops.segment_moments(x[150:], moments, offsets_of([7, 243], dtype=torch.int64))
    first, second = torch.cat([x[:100], x[150:157]]), torch.cat([x[100:150], x[157:]])
    assert_moments_close(moments[:, 0], truth(first))
    assert_moments_close(moments[:, 1], truth(second))


@pytest.mark.parametrize("dtype", WIDE_AND_NARROW, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_same_bits_again_and_on_any_number_of_threads(dtype, masked):
    sizes, channels = ([0, 60, 1, 20], 40) if INTERPRETED else ([0, 1500, 1, 20, 333, 0], 300)
    x, offsets = random(sum(sizes), channels, dtype), offsets_of(sizes)
    x[7, 5] = torch.nan
    mask = torch.arange(len(x)) % 3 != 1 if masked else None
    threads, found = torch.get_num_threads(), []
    for count in (1, 1) if INTERPRETED else (1, 2, 3, 1):
        torch.set_num_threads(count)
        found.append(segment_blocks(len(sizes), channels))
        ops.segment_moments(x, found[-1], offsets, mask)
    torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_compiled_graph_keeps_the_op_whole(backend):
    if backend != (ISAS or ["reference"])[0]:
        pytest.skip("the same on every backend")
    x, offsets = random(9, 5, torch.float32), offsets_of([3, 5], before=1)
    found, expected = segment_blocks(2, 5), segment_blocks(2, 5)
    compiled = torch.compile(lambda *given: ops.segment_moments(*given), backend="aot_eager", fullgraph=True)
    compiled(x, found, offsets)
    ops.segment_moments(x, expected, offsets)
    assert found.any() and torch.equal(found, expected)


def test_no_rows_no_channels_and_no_segments():
    moments = segment_blocks(2, 5)
    ops.segment_moments(torch.empty(0, 5), moments, torch.zeros(3, dtype=torch.int32))
    ops.segment_moments(torch.empty(4, 0), torch.empty(7, 2, 0, dtype=torch.float64), offsets_of([1, 3]))
    ops.segment_moments(torch.ones(4, 5), torch.empty(7, 0, 5, dtype=torch.float64), torch.tensor([4]))
    assert not moments.any()


X, BLOCKS, OFFSETS = torch.zeros(4, 6), segment_blocks(2, 6), offsets_of([1, 3])
BAD = {
    "x of doubles": ({"x": X.double()}, "x must be float32, bfloat16 or float16"),
    "x of three dimensions": ({"x": X[None]}, "x must have two dimensions"),
    "moments of one segment": ({"moments": empty_moments(6)}, r"moments must be float64 \[7, 2, 6\]"),
    "moments of other channels": ({"moments": segment_blocks(2, 5)}, r"moments must be float64 \[7, 2, 6\]"),
    "strided moments": ({"moments": segment_blocks(2, 12)[..., ::2]}, "moments must have stride 1 along channels"),
    "one block for all": (
        {"moments": empty_moments(6)[:, None].expand(7, 2, 6)},
        r"moments of segments must not overlap, got strides \[6, 0, 1\]",
    ),
    "offsets of floats": ({"offsets": OFFSETS.float()}, "offsets must be int32 or int64, got torch.float32"),
    "offsets of two dimensions": ({"offsets": OFFSETS[None]}, r"offsets must be \[segments \+ 1\] on cpu"),
    "no offsets": ({"offsets": OFFSETS[:0]}, r"offsets must be \[segments \+ 1\] on cpu"),
    "short mask": ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must be bool \[4\]"),
}
BAD_ON_A_CPU = {
    "negative offset": ([-1, 1, 4], r"ascend from at least 0 to at most 4, the rows of x, got \[-1, 1, 4\]"),
    "offset past the end": ([0, 1, 5], r"ascend from at least 0 to at most 4, the rows of x, got \[0, 1, 5\]"),
    "offsets that descend": ([0, 3, 2], r"ascend from at least 0 to at most 4, the rows of x, got \[0, 3, 2\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    arguments, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message):
        ops.segment_moments(**{"x": X, "moments": BLOCKS, "offsets": OFFSETS, **arguments})


@pytest.mark.parametrize("name", BAD_ON_A_CPU)
def test_bad_offsets_are_refused_on_a_cpu(name, backend):
    if backend.endswith("on the GPU"):
        pytest.skip("the host does not see them")
    places, message = BAD_ON_A_CPU[name]
    with pytest.raises(ValueError, match=message):
        ops.segment_moments(X, BLOCKS, torch.tensor(places))


@pytest.mark.parametrize("places", [[-50, 10, 40], [0, 90, 2**31 - 1], [30, 10, 35], [40, 40, -1]], ids=str)
def test_no_kernel_of_a_gpu_follows_bad_offsets_out_of_the_rows(places, backend, monkeypatch):
    if backend in ("reference", *ISAS) or backend.startswith("reference"):
        pytest.skip("checked on the host, or sliced")
    monkeypatch.setattr(ops, "_check_offsets", lambda offsets, x: offsets)
    whole = torch.full((60, 12), torch.nan)
    whole[10:50] = 1
    moments = segment_blocks(2, 12)
    ops.segment_moments(whole[10:50], moments, torch.tensor(places))
    assert not moments[NONFINITE].any()

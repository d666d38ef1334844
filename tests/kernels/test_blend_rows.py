"""Rows of many matrices in one call: shapes, strides, dtypes, donors elsewhere, and what is refused."""

from __future__ import annotations

import pytest
import torch

from act_kernels import gather_rows, ops
from act_kernels import rows as rows_module
from kernels.interpreter import INTERPRETED
from kernels.oracle import DTYPES, random

pytestmark = pytest.mark.usefixtures("backend")


def matrices(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Weights as models have them: aligned, not aligned, a bias, embedding columns, experts, a tensor of several tiles."""
    experts = random(3 * 20, 24, dtype, seed).view(3, 20, 24)
    return [
        random(40, 64, dtype, seed + 1),
        random(33, 37, dtype, seed + 2),
        random(50, 1, dtype, seed + 3),
        random(70, 48, dtype, seed + 4).t(),
        experts[1],
        experts[2].t(),
        random(60, 56, dtype, seed + 5)[:, 4:21],
        random(9 if INTERPRETED else 90, 1024, dtype, seed + 6),
    ]


def chosen(matrix: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(matrix))[:: 3 if len(matrix) > 10 else 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strength", [0.4, 1.0, 1.3])
def test_many_matrices_in_one_call(dtype, strength):
    targets, donors = matrices(dtype, 0), matrices(dtype, 100)
    rows = [chosen(target) for target in targets]
    expected = [target.double() for target in targets]
    whole = [target._base.clone() if target._base is not None else None for target in targets]
    for wide, donor, index in zip(expected, donors, rows, strict=True):
        wide[index] += strength * (donor.double()[index] - wide[index])
    befores = [target.clone() for target in targets]
    ops.blend_rows(targets, donors, rows, strength)
    for target, before, donor, wide, index in zip(targets, befores, donors, expected, rows, strict=True):
        if strength == 1:
            assert torch.equal(target.double(), wide)
        else:
            inputs = (before.double().abs() + donor.double().abs()) * max(1, strength)
            tolerance = torch.finfo(dtype).eps * wide.abs() + torch.finfo(torch.float32).eps * inputs
            assert ((target.double() - wide).abs() <= tolerance).all()
        untouched = torch.ones(len(target), dtype=torch.bool).index_fill(0, index, False)
        assert torch.equal(target.double()[untouched], wide[untouched])
    cut = 6  # a view of some columns: those beside it are as they were
    assert torch.equal(targets[cut]._base[:, :4], whole[cut][:, :4])
    assert torch.equal(targets[cut]._base[:, 21:], whole[cut][:, 21:])


def test_a_strength_for_each_and_matrices_of_several_dtypes():
    targets = [random(20, 16, dtype) for dtype in DTYPES]
    donors = [random(20, 16, dtype, seed=1) for dtype in DTYPES]
    rows = torch.tensor([3, 0, 19])
    before = [target.clone() for target in targets]
    ops.blend_rows(targets, donors, [rows] * 3, [0.0, 1.0, 0.25])
    assert torch.equal(targets[0], before[0])
    assert torch.equal(targets[1][rows], donors[1][rows])
    expected = before[2].double() + 0.25 * (donors[2].double() - before[2].double())
    assert ((targets[2].double() - expected)[rows].abs() <= 2e-3 * expected[rows].abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_donor_of_another_dtype_is_rounded_first(dtype):
    target, donor = random(30, 24, dtype), random(30, 24, torch.float32, seed=1)
    rows = torch.tensor([29, 4])
    ops.blend_rows([target, target.t()], [donor, donor.t()], [rows, rows[:0]], 1.0)
    assert torch.equal(target[rows], donor[rows].to(dtype))


def test_rows_gathered_for_another_device(monkeypatch):
    staged = []

    def pinned(rows, matrix):
        staged.append(torch.empty((rows, matrix.shape[1]), dtype=matrix.dtype))
        return staged[-1]

    monkeypatch.setattr(rows_module, "_pinned", pinned)
    sources = matrices(torch.bfloat16, 0)
    index = [chosen(source) for source in sources]
    elsewhere = [torch.device("cpu", 0)] * len(sources)  # another device than "cpu", as far as one can tell
    for found, source, rows in zip(gather_rows(sources, index, elsewhere), sources, index, strict=True):
        assert torch.equal(found, source[rows])
    assert len(staged) == len(sources)
    for found, source, rows in zip(
        gather_rows(sources, index, [source.device for source in sources]), sources, index, strict=True
    ):
        assert torch.equal(found, source[rows])
    assert len(staged) == len(sources)


def test_rows_of_donors_elsewhere_come_in_batches(monkeypatch):
    monkeypatch.setattr(ops, "GATHERED_AT_ONCE", 100)
    gathered = []
    gather = ops.gather_rows
    monkeypatch.setattr(ops, "gather_rows", lambda *lists: gathered.append(len(lists[0])) or gather(*lists))
    targets = [random(10, 16, torch.bfloat16, seed) for seed in range(5)]
    donors = [random(10, 16, torch.float16, seed + 9) for seed in range(5)]
    rows = [torch.tensor([1, 2, 7])] * 4 + [torch.arange(10)]
    ops.blend_rows(targets, donors, rows, 1.0)
    assert gathered == [2, 2, 1]
    for target, donor, index in zip(targets, donors, rows, strict=True):
        assert torch.equal(target[index], donor[index].to(torch.bfloat16))


def test_compiled_graphs_keep_it(backend):
    if backend not in ("avx2", "baseline", "reference"):
        pytest.skip("one backend is enough")
    target, donor, rows = random(8, 6, torch.float32), random(8, 6, torch.float32, seed=1), torch.tensor([2, 5])

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(target, donor, rows):
        ops.blend_rows([target], [donor], [rows], 1.0)
        return target + 0

    assert torch.equal(compiled(target, donor, rows)[rows], donor[rows])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_that_overflows_float32_is_taken_all_the_same(dtype, transposed):
    def matrix(*values: float) -> torch.Tensor:
        x = torch.tensor(values, dtype=dtype).repeat(3, 11)
        return x.t() if transposed else x

    for strength in (0.25, 0.5, 0.9, 2.0, 1e38):
        donor, target = matrix(3e38, -3e38, 5.0), matrix(-3e38, 3e38, 1.0)
        if strength > 1:  # a step of nothing, and one of float32's smallest
            donor, target = matrix(3e38, 2e-38, 5.0), matrix(3e38, 1e-38, 5.0)
        expected = target.double() + strength * (donor.double() - target.double())
        ops.blend_rows([target], [donor], [torch.arange(len(target))], strength)
        scale = expected.abs() + 1e31 * (strength <= 1)
        assert target.isfinite().all() and ((target.double() - expected).abs() <= torch.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize(
    ("dtype", "strength"),
    [(torch.float16, 2e5), (torch.bfloat16, 1e39), (torch.float32, 1e300), (torch.float32, -1e39)],
)
def test_a_strength_that_leaves_the_range_of_the_dtype_is_refused(dtype, strength):
    targets, donors = [random(8, 6, dtype), random(8, 6, dtype, 1)], [random(8, 6, dtype, 2), random(8, 6, dtype, 3)]
    donors[1][3, 4] = torch.nan  # stays what it is
    before = [target.clone() for target in targets]
    with pytest.raises(OverflowError, match=r"strength .* out of the range of torch"):
        ops.blend_rows(targets, donors, [torch.tensor([2, 3])] * 2, [0.5, strength])
    assert all(torch.equal(target, old) for target, old in zip(targets, before, strict=True))


X, ROWS = torch.zeros(4, 6), torch.tensor([1])
BAD = {
    "lists of other lengths": (lambda: ops.blend_rows([X], [X, X], [ROWS], 0.5), "targets 1, donors 2, rows 1"),
    "strengths of another length": (lambda: ops.blend_rows([X], [X], [ROWS], [0.5, 1]), "strength 2"),
    "donor of another shape": (
        lambda: ops.blend_rows([X, X], [X, X[:3]], [ROWS] * 2, 0.5),
        r"donors\[1\] must have the shape",
    ),
    "no values": (lambda: ops.blend_rows([X.to("meta")], [X], [ROWS], 0.5), r"targets\[0\] must hold values, got"),
    "donor without values": (lambda: ops.blend_rows([X], [X.to("meta")], [ROWS], 0.5), r"donors\[0\] must hold values"),
    "an integer matrix": (lambda: ops.blend_rows([X.int()], [X.int()], [ROWS], 0.5), r"targets\[0\] must be float32"),
    "a negative row": (lambda: ops.blend_rows([X], [X], [-ROWS], 0.5), r"rows\[0\] must lie in \[0, 4\), got -1"),
    "an infinite strength": (lambda: ops.blend_rows([X], [X], [ROWS], float("inf")), "finite number, got inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()

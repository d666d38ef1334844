"""Cases that concern the Triton kernels alone: how rows are cut into runs, read again and merged. Interpreted only."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise

import pytest
import torch

from act_kernels import empty_moments, ops
from kernels.interpreter import INTERPRETED
from kernels.oracle import assert_moments_close, paired, random, truth

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(not INTERPRETED, reason="runs in a process started with TRITON_INTERPRET=1"),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rows", "dtype"), [(300, torch.float32), (1100, torch.bfloat16)])
def test_runs_of_full_length(rows, dtype, masked, monkeypatch):
    from act_kernels.triton import partials

    x = random(rows, 3, dtype)
    mask = torch.arange(rows) % 7 == 5 if masked else None
    if masked:
        mask[100:200] = False
    monkeypatch.setattr(partials, "PROGRAMS", 1)
    assert partials.plan_runs(rows, 1, dtype) == (256 if dtype == torch.float32 else 1024, 2)
    block = empty_moments(3)
    ops.column_moments(x, block, mask)
    assert_moments_close(block, truth(x, mask))


def test_long_runs_of_products_that_are_alike(monkeypatch):
    """They have more bits than their factors, so that their float32 sums round."""
    from act_kernels.triton import partials

    monkeypatch.setattr(partials, "PROGRAMS", 1)
    outputs = [random(1, 3, torch.bfloat16, seed).expand(600, 3) for seed in range(3)]
    pair = empty_moments(3, 5)
    ops.pair_moments(*outputs[:2], pair, swapped=outputs[2])
    for block, values in zip(pair, paired(*outputs), strict=True):
        assert_moments_close(block, truth(values))


def test_more_runs_than_a_merge_tile():
    x = random(4300, 3, torch.float32)
    mask = torch.arange(4300) % 7 == 5
    mask[1000:2100] = False  # runs without a counted row, and runs that count only one end
    block = empty_moments(3)
    ops.column_moments(x, block, mask)
    assert_moments_close(block, truth(x, mask))


@pytest.mark.parametrize("masked", [False, True])
def test_segments_of_many_runs_looked_for_in_steps(masked, monkeypatch):
    module = import_module("act_kernels.triton.segment_moments")  # the package has the function under this name
    monkeypatch.setattr(module, "SOUGHT", 4)
    monkeypatch.setattr(module, "MERGED", 2)
    offsets = torch.tensor([5, 6, 700, 700, 700, 701, 703, 703, 1000])
    x = random(1000, 3, torch.float32)
    x[200, 1] = float("inf")
    mask = torch.arange(1000) % 7 == 5 if masked else None
    segments = empty_moments(3, 8)
    ops.segment_moments(x, segments.transpose(0, 1), offsets, mask)
    for block, (begin, end) in zip(segments, pairwise(offsets.tolist()), strict=True):
        assert_moments_close(block, truth(x[begin:end], None if mask is None else mask[begin:end]))


def test_rows_that_do_not_count_are_never_measured():
    x = random(400, 20, torch.bfloat16)
    mask = torch.arange(400) % 3 == 0
    x[~mask] = float("nan")
    target = random(400, 20, torch.bfloat16, seed=1)
    for pair in (empty_moments(20, 3), empty_moments(20, 5)):
        ops.pair_moments(x, target, pair, mask, x if len(pair) == 5 else None)
        assert_moments_close(pair[0], truth(x, mask))
        assert pair.isfinite().all() and (pair[:, -1] == 0).all()


def test_a_run_read_again_counts_each_value_once():
    x = random(700, 40, torch.float32)
    x[130, 7], x[600, 7], x[300, 8] = float("inf"), float("nan"), 3e30
    mask = torch.arange(700) % 5 != 2
    block = empty_moments(40)
    for rows, counted in zip(x.split([300, 400]), mask.split([300, 400]), strict=True):
        ops.column_moments(rows, block, counted)
    assert_moments_close(block, truth(x, mask))


def test_repeating_a_launch_gives_the_same_bits():
    donor, target = random(200, 130, torch.float16), random(200, 130, torch.float16, seed=1)
    first, second = empty_moments(130, 3), empty_moments(130, 3)
    for pair in (first, second):
        ops.pair_moments(donor, target, pair)
        ops.pair_moments(target, donor, pair)
    assert torch.equal(first, second)


def test_fused_ops_never_measure_rows_that_do_not_count():
    x, y = random(90, 40, torch.bfloat16), random(90, 40, torch.bfloat16, seed=1)
    mask = torch.arange(90) % 3 == 0
    x[~mask] = float("inf")
    blocks = empty_moments(40, 7)
    product = ops.gated_mlp(x, y, gate_moments=blocks[0], up_moments=blocks[1], product_moments=blocks[2], mask=mask)
    weight = torch.ones(40, dtype=x.dtype)
    norm = ops.add_norm(x, y, weight, eps=1e-6, x_moments=blocks[3], norm_moments=blocks[4], mask=mask)[1]
    q, k = (z.view(2, 45, 2, 20).transpose(1, 2) for z in (x, y))
    table = torch.ones(1, 45, 12, dtype=x.dtype)
    ops.rotary(q, k, table, table, q_moments=blocks[5], k_moments=blocks[6], mask=mask)
    for block, values in zip(blocks, (x, y, product, x, norm, x, y), strict=True):
        assert_moments_close(block, truth(values, mask))
    assert (blocks[:, -1] == 0).all()


@pytest.mark.parametrize("style", ["rms", "layer"])
def test_norm_of_wide_rows_in_many_short_runs(style, monkeypatch):
    from act_kernels.triton import partials

    monkeypatch.setattr(partials, "MIN_RUN", 32)
    for rows, channels in ((3, 1300), (70, 300)):
        x, residual = random(rows, channels, torch.float32) + 100, random(rows, channels, torch.float32, seed=1)
        weight = random(1, channels, torch.float32, seed=2)[0]
        blocks = empty_moments(channels, 2)
        _, norm = ops.add_norm(x, residual, weight, eps=1e-5, style=style, x_moments=blocks[0], norm_moments=blocks[1])
        total = (residual + x).double()
        center = total.mean(1, keepdim=True) if style == "layer" else 0
        expected = (total - center) / ((total - center).square().mean(1, keepdim=True) + 1e-5).sqrt() * weight
        assert ((norm - expected).abs() <= 4e-7 * expected.abs()).all()
        for block, values in zip(blocks, (x, norm), strict=True):
            assert_moments_close(block, truth(values))

"""Cases that concern the Triton kernels alone: how rows are cut into runs, read again and merged. Interpreted only."""

from __future__ import annotations

import pytest
import torch
from interpreter import INTERPRETED
from oracle import assert_moments_close, random, truth

from act_kernels import empty_moments, ops

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(not INTERPRETED, reason="runs in a process started with TRITON_INTERPRET=1"),
]


@pytest.mark.parametrize("masked", [False, True])
def test_runs_of_full_length_and_more_runs_than_a_merge_tile(masked, monkeypatch):
    from act_kernels.triton import partials

    x = random(4300, 3, torch.float32)
    mask = torch.arange(4300) % 7 == 5 if masked else None
    if masked:
        mask[1000:2100] = False  # a run without a counted row, and runs that count only one end
    blocks = []
    for programs in (1, 3, 512):  # runs of 1024 rows, of 1024 by the cap on the last column of programs, of 128
        monkeypatch.setattr(partials, "PROGRAMS", programs)
        blocks.append(empty_moments(3))
        ops.column_moments(x, blocks[-1], mask)
        assert_moments_close(blocks[-1], truth(x, mask))


def test_rows_that_do_not_count_are_never_measured():
    x = random(400, 20, torch.bfloat16)
    mask = torch.arange(400) % 3 == 0
    x[~mask] = float("nan")
    pair = empty_moments(20, 3)
    ops.pair_moments(x, random(400, 20, torch.bfloat16, seed=1), pair, mask)
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
    donor, target = random(500, 130, torch.float16), random(500, 130, torch.float16, seed=1)
    first, second = empty_moments(130, 3), empty_moments(130, 3)
    for pair in (first, second):
        ops.pair_moments(donor, target, pair)
        ops.pair_moments(target, donor, pair)
    assert torch.equal(first, second)

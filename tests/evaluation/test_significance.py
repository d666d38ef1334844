"""Paired tests against values worked out by hand and against their meaning."""

from __future__ import annotations

import math

import pytest
import torch

from act.evaluation.comparison import Comparison, too_few
from act.evaluation.significance import (
    Difference,
    fewest_signs,
    finite,
    least_p,
    mcnemar,
    mean_and_error,
    ratio_and_error,
    sign_flip,
)


def test_mcnemar_counts_only_records_that_changed():
    before = torch.tensor([True] * 50 + [False] * 3 + [True] + [False] * 46)
    after = torch.tensor([True] * 53 + [False] + [False] * 46)
    test = mcnemar(before, after)
    assert test.difference == pytest.approx(0.02)
    assert test.p == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(before, before).p == 1
    assert mcnemar(~torch.ones(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)).p == 2 / 2**20


def test_few_signs_bound_p():
    for signs in range(1, 8):
        every = torch.ones(signs)
        assert sign_flip(every).p == mcnemar(every < 0, every > 0).p == least_p(signs)
    assert [fewest_signs(below) for below in (0.05, 0.01)] == [6, 8]


def test_it_is_said_where_there_are_too_few_records_to_tell():
    def said(gained, lost, records, nll=None):
        match = None if nll else Difference(0.1, 0.1, 1.0)
        return too_few(Comparison("a", "b", "c", nll, match, gained, lost), records, 0.05)

    assert said(2, 1, 4) == "too few records to tell: with 4, p cannot fall below 0.125; at least 6 are needed"
    assert said(2, 1, 50).startswith(
        "too few answers won or lost to tell: with 3, p cannot fall below 0.25; at least 6"
    )
    assert said(5, 1, 50) is said(0, 0, 50) is said(0, 0, 6, Difference(0.1, 0.1, 0.2)) is None
    assert "with 5, p cannot fall below 0.0625" in said(0, 0, 5, Difference(0.1, 0.1, 0.2))


def test_sign_flip_of_few_is_exact():
    assert sign_flip(torch.ones(5)).p == 2 / 32
    assert sign_flip(torch.tensor([1.0, -1.0])).p == 1
    assert sign_flip(torch.tensor([3.0, 1.0])).p == 2 / 4


@pytest.mark.parametrize("count", [3, 40])
def test_sign_flip_of_what_is_no_number_is_none(count):
    for bad in (math.nan, math.inf):
        assert math.isnan(sign_flip(torch.tensor([bad] + [1.0] * count)).p)
    assert finite(math.inf) is None and finite(0.5) == 0.5


def test_sign_flip_of_many():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(300, generator=generator)
    noise -= noise.mean()
    assert sign_flip(noise).p > 0.9
    shifted = sign_flip(noise + 0.12)
    assert shifted.p == pytest.approx(math.erfc(0.12 / shifted.standard_error / math.sqrt(2)), abs=0.02)
    assert sign_flip(noise + 1).p == pytest.approx(1e-4, rel=0.01)


def test_errors_of_means_and_ratios():
    assert mean_and_error(torch.tensor([1.0, 3.0])) == (2, 1)
    assert math.isnan(mean_and_error(torch.tensor([1.0]))[1]) and finite(math.nan) is None
    sums, counts = torch.tensor([2.0, 6.0]), torch.tensor([1, 3])
    assert ratio_and_error(sums, counts) == (2, 0)
    ratio, error = ratio_and_error(torch.tensor([1.0, 3.0]), torch.tensor([1, 1]))
    assert (ratio, error) == pytest.approx(mean_and_error(torch.tensor([1.0, 3.0])))

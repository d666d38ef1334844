from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act.core.errors import ActError
from act.ranking import selection
from act.ranking.selection import Amount, best, parse_amount

SCORES = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=40
)


@given(SCORES, st.data())
def test_best_is_the_front_of_a_stable_sort(values, data):
    scores = torch.tensor(values, dtype=torch.float64)
    scored = int((~scores.isnan()).sum())
    count = data.draw(st.integers(0, scored))
    order = sorted((i for i, v in enumerate(values) if not math.isnan(v)), key=lambda i: -values[i])
    assert best(scores, count).tolist() == sorted(order[:count])


@pytest.mark.parametrize("kind", ["distinct", "ties", "periodic", "rising", "missing"])
@pytest.mark.parametrize("count", [1, 700, 9_000])
def test_of_many_scores_the_best_are_found_among_a_few(kind, count, monkeypatch):
    monkeypatch.setattr(selection, "_SAMPLE", 1000)
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, generator=g, dtype=torch.float64)
    if kind == "ties":
        scores = (scores * 50).round()
    elif kind == "periodic":  # a sample of every so many sees none of the highest, or nothing else
        scores[::20] += 10 if count < 5_000 else -10
    elif kind == "rising":
        scores = scores.sort().values
    elif kind == "missing":
        scores[torch.randperm(20_000, generator=g)[:10_000]] = math.nan
    order = scores.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)
    assert torch.equal(best(scores, count), order[:count].sort().values)


@given(SCORES, st.floats(0.01, 1))
def test_a_share_takes_that_share_of_what_has_a_score(values, share):
    scores = torch.tensor(values, dtype=torch.float64)
    scored = int((~scores.isnan()).sum())
    taken = Amount(top=share).of(scores, None, "channels")
    assert len(taken) == (max(1, round(share * scored)) if scored else 0)
    assert not scores[taken].isnan().any()


def test_units_fill_a_budget_of_channels():
    scores, sizes = torch.tensor([5.0, 4, 3, 2, 1]).double(), torch.tensor([4, 4, 1, 1, 10])
    assert Amount(top=0.4).of(scores, sizes, "units").tolist() == [0, 1]
    assert Amount(top=0.5).of(scores, sizes, "units").tolist() == [0, 1, 2, 3]
    assert Amount(top=0.01).of(scores, sizes, "units").tolist() == [0]
    assert Amount(count=3).of(scores, sizes, "units").tolist() == [0, 1, 2]


def test_mass_takes_the_fewest_that_hold_it():
    scores = torch.tensor([1.0, -7, 6, math.nan, 3]).double()
    assert Amount(mass=0.6).of(scores, None, "channels").tolist() == [2]
    assert Amount(mass=0.61).of(scores, None, "channels").tolist() == [2, 4]
    assert Amount(mass=1.0).of(scores, None, "channels").tolist() == [0, 2, 4]
    assert Amount(mass=0.5).of(-scores.abs(), None, "channels").tolist() == []


def test_more_than_there_is_is_refused():
    with pytest.raises(ActError, match="3 were requested, but only 2 channels have a score"):
        Amount(count=3).of(torch.tensor([1.0, math.nan, 2]).double(), None, "channels")


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ((0.1, 3, None), "one of top, count and mass"),
        ((None, None, None), "one of top, count and mass"),
        ((None, 0, None), "count is 0; expected a whole number"),
        ((None, None, "120%"), "mass is 120%; expected a share of the positive scores"),
    ],
)
def test_amounts_that_make_no_sense_are_refused(given_, match):
    with pytest.raises(ActError, match=match):
        parse_amount(*given_)

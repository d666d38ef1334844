"""How the laboratory mixes and judges models: mixes against their definitions, the frontier, exams."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act.editing.transfer import transfer
from act.lab.evaluate import Exam, exact_match
from act.lab.frontier import Point, area, best_keeping, frontier, relative
from act.lab.language import NEW_SKILLS, examples
from act.lab.mixing import dare, interpolated, put, task_arithmetic, ties, transferred, weights
from act.lab.models import CHECKPOINTS, load
from act.lab.train import tune
from act.models.channels import ChannelSpace
from act.ranking.channel_set import ChannelSet

SHARE = st.floats(0, 1)
POINTS = st.lists(st.builds(Point, SHARE, SHARE), max_size=6)


@pytest.fixture(scope="module")
def models():
    (donor, tokenizer), (target, _) = load(CHECKPOINTS / "base"), load(CHECKPOINTS / "target")
    return donor, target, tokenizer


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


def test_one_donor_and_strength_is_a_transfer(models):
    donor, target, _ = models
    space = ChannelSpace.from_model(target)
    index = torch.randperm(len(space), generator=torch.Generator().manual_seed(0))[:300]
    strength = torch.zeros(len(space))
    strength[index] = 0.4
    mixed = transferred(weights(target), [weights(donor)], [strength], space)
    patch = transfer(donor, target, ChannelSet(space, index, torch.zeros(300)), 0.4)
    expected = weights(target)
    patch.revert(target)
    assert_same(mixed, expected, rtol=1e-5, atol=1e-7)


def test_donors_that_want_the_same_channels_are_averaged(models):
    donor, target, _ = models
    space = ChannelSpace.from_model(target)
    everywhere, nowhere = torch.ones(len(space)), torch.zeros(len(space))
    mine, theirs = weights(target), weights(donor)
    assert_same(transferred(mine, [theirs, mine], [everywhere, everywhere], space), interpolated(mine, [theirs], 0.5))
    assert_same(transferred(mine, [theirs, mine], [everywhere, nowhere], space), theirs)


def test_merges_of_one_specialist_give_it_back(models):
    base, one = weights(models[0]), weights(models[1])
    for merged in (task_arithmetic(base, [one], 1.0), ties(base, [one], 1.0, 1.0), dare(base, [one], 1.0, 1.0, 0)):
        assert_same(merged, one, rtol=1e-5, atol=1e-6)
    assert_same(task_arithmetic(base, [one], 0.7), interpolated(one, [base], 0.3), rtol=1e-4, atol=1e-6)


def test_ties_trims_elects_and_averages():
    base = {"w": torch.zeros(4)}
    specialists = [{"w": torch.tensor([4.0, 3.0, 1.0, 0.1])}, {"w": torch.tensor([2.0, -1.0, 5.0, 0.2])}]
    assert ties(base, specialists, 0.5, 1.0)["w"].tolist() == [3.0, 3.0, 5.0, 0.0]


def test_dare_keeps_the_density_and_its_expectation():
    base, one = {"w": torch.zeros(100_000)}, {"w": torch.ones(100_000)}
    mixed = dare(base, [one], 0.25, 1.0, seed=0)["w"]
    assert set(mixed.unique().tolist()) == {0.0, 4.0}
    assert mixed.mean().item() == pytest.approx(1.0, abs=0.03)


@given(POINTS, st.builds(Point, SHARE, SHARE))
def test_area_is_within_the_square_and_grows_with_points(points, more):
    assert 0 <= area(points) <= area([*points, more]) <= 1 + 1e-9
    assert area([*points, more]) >= more.forgotten * more.retained - 1e-9


@given(POINTS)
def test_the_frontier_has_the_area_of_all_points(points):
    tried = dict(enumerate(points))
    chosen = frontier(tried)
    assert area([tried[setting] for setting in chosen]) == pytest.approx(area(points))
    assert [tried[setting].forgotten for setting in chosen] == sorted(tried[setting].forgotten for setting in chosen)


def test_the_best_setting_keeps_enough():
    tried = {"timid": Point(0.1, 1.0), "good": Point(0.5, 0.96), "rash": Point(0.9, 0.5)}
    assert best_keeping(tried, Point(0.0, 1.0)) == "good"
    assert best_keeping(tried, Point(0.0, 1.0), share=0.4) == "rash"
    assert best_keeping({"rash": tried["rash"]}, Point(0.0, 1.0)) is None
    assert relative(Point(0.6, 0.45), Point(0.2, 0.9), Point(1.0, 0.0)) == pytest.approx((0.5, 0.5))


def test_an_exam_is_exact_match_and_a_tune_leaves_its_model_alone(models):
    _, target, tokenizer = models
    records = examples("English", NEW_SKILLS, 40, split="test")
    before = weights(target)
    score = Exam(tokenizer, records, token_budget=96)(target)
    assert score == exact_match(target, tokenizer, records) > 0.8
    tuned = tune(target, tokenizer, examples("German", ("copy",), 8), steps=3, rate=1e-3, seed=0)
    assert_same(weights(target), before, rtol=0, atol=0)
    assert any(not torch.equal(before[name], value) for name, value in weights(tuned).items())
    put(before, tuned)
    assert_same(weights(tuned), before, rtol=0, atol=0)

"""Sweeps: every setting is what it names, and is taken back; the frontier is what no other setting beats."""

from __future__ import annotations

import pytest
import torch
from support import random_batches, state, tiny_model

import act
from act.evaluation.sweep import Setting, Sweep


@pytest.fixture(scope="module")
def models():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    return donor, target, act.profile_pair(donor, target, random_batches())


def closeness(goal):
    """Minus the distance of a model's weights to those of another."""
    held = state(goal)
    return lambda model: -sum((value - held[name]).norm().item() for name, value in state(model).items())


def test_a_sweep_by_attribution_takes_a_cost(models, tokenizer):
    donor, target, _ = models
    corpus = act.Corpus.from_records([{"prompt": "a b", "completion": " c d"}, {"text": "a b c"}], tokenizer)
    found = act.attribute(donor, target, corpus)
    judge = closeness(donor)
    sets = {}
    for cost in ("none", "distance"):
        result = act.sweep(
            donor,
            target,
            found,
            lambda model: {"near": judge(model)},
            tops=[0.3],
            strengths=[1],
            score="attribution",
            cost=cost,
        )
        sets[cost] = result.rows[1].figures["near"]
    assert sets["none"] > sets["distance"]  # which spends less distance for as many channels


def test_every_setting_is_the_transfer_it_names_and_is_taken_back(models):
    donor, target, profile = models
    before = state(target)
    near_donor, near_target = closeness(donor), closeness(target)
    seen = []

    def judge(model):
        seen.append(state(model))
        return {"ability": near_donor(model), "kept": near_target(model)}

    told = []
    result = act.sweep(donor, target, profile, judge, tops=["5%", 0.5], strengths=[1.0, 0.4], report=told.append)
    assert all(torch.equal(value, before[name]) for name, value in state(target).items())
    assert [(row.top, row.strength) for row in result.rows] == [(0, 0), (0.05, 0.4), (0.05, 1), (0.5, 0.4), (0.5, 1)]
    assert list(result.rows) == told
    for row, held in zip(result.rows[1:], seen[1:], strict=True):
        channels = act.rank(profile, top=row.top)
        patch = act.transfer(donor, target, channels, row.strength)
        assert row.channels == len(channels) and all(torch.equal(state(target)[name], held[name]) for name in held)
        patch.revert(target)
    # Nearer to the donor is farther from the target, so no setting beats another.
    assert {(row.top, row.strength) for row in result.frontier} == {(row.top, row.strength) for row in result.rows}
    assert result.frontier[0] is result.rows[0]
    alone = act.sweep(
        donor, target, profile, lambda model: {"ability": near_donor(model)}, tops=[0.5], strengths=[0.4, 1]
    )
    assert [(row.top, row.strength) for row in alone.frontier] == [(0.5, 1.0)]


def test_the_frontier_leaves_out_what_is_beaten():
    rows = [
        Setting(0.1 * i, 1.0, i, {"a": a, "b": b}) for i, (a, b) in enumerate([(0, 9), (5, 5), (4, 5), (9, 0), (5, 5)])
    ]
    found = Sweep(tuple(rows))
    assert [row.channels for row in found.frontier] == [0, 1, 4, 3]
    assert repr(found) == "<Sweep: 5 settings, 4 on the frontier; top 0.3 at strength 1 gives a 9, b 0>"
    assert found._repr_html_().count("<tr>") == 6 and found._repr_html_().count("<td>*</td>") == 4


def test_the_target_is_its_own_again_after_an_exception(models):
    donor, target, profile = models
    before = state(target)
    calls = []

    def judge(model):
        calls.append(model)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"a": 1.0}

    with pytest.raises(KeyboardInterrupt):
        act.sweep(donor, target, profile, judge, tops=[0.3], strengths=[0.4, 1.0])
    assert all(torch.equal(value, before[name]) for name, value in state(target).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tops": ["0%"]}, "top is 0%"),
        ({"tops": []}, "at least one share"),
        ({"strengths": [-1.0]}, "strength is -1.0"),
        ({"evaluate": lambda model: {}}, "one or more"),
        ({"evaluate": lambda model: {"a": float("nan")}}, "figure a is nan"),
        ({"evaluate": lambda model: {"a": float("-inf")}}, "figure a is -inf"),
    ],
)
def test_bad_input_is_refused(models, options, message):
    donor, target, profile = models
    judge = options.pop("evaluate", lambda model: {"a": 1.0})
    with pytest.raises(act.ActError, match=message):
        act.sweep(donor, target, profile, judge, **options)

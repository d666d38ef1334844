"""What scores and sets say of abilities, against plain computations."""

from __future__ import annotations

import itertools
import math

import pytest
import tiny_families
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import random_batches, tiny_model

import act
from act.core.errors import ActError
from act.ranking.analysis import (
    ablated,
    concentration,
    necessity,
    overlap,
    overlaps,
    score_held,
    shares_by,
    top_channels,
)
from act.ranking.channel_set import ChannelSet

SETS = st.sets(st.integers(0, 19), min_size=1)


@given(SETS, SETS)
def test_overlap_counts_what_both_hold(one, other):
    found = overlap(torch.tensor(sorted(one)), torch.tensor(sorted(other)), 20)
    assert found.both == len(one & other) and found.jaccard == len(one & other) / len(one | other)
    assert found.coefficient == len(one & other) / min(len(one), len(other))
    assert found.jaccard_low <= found.jaccard + 1e-12 and found.jaccard <= found.jaccard_high + 1e-12
    assert found.chance_low <= found.chance_high and 0 < found.p_value <= 1


def test_chance_is_that_of_random_sets():
    """All sets of three among seven, counted one by one."""
    fixed = {0, 1, 2, 3}
    shared = [len(fixed & set(drawn)) for drawn in itertools.combinations(range(7), 3)]
    found = overlap(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 6]), 7)
    assert found.p_value == pytest.approx(sum(hits >= 2 for hits in shared) / len(shared))
    assert found.chance == pytest.approx((12 / 7) / (7 - 12 / 7))
    same = overlap(torch.arange(500), torch.arange(500), 10_000)
    assert same.p_value < 1e-100 and same.jaccard == 1 and same.jaccard_low > 0.98
    assert 0.01 < same.chance_low < same.chance < same.chance_high < 0.05


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(ActError, match="expected 1 to 3"):
        overlap(torch.arange(0), torch.arange(3), 3)


def test_overlaps_draw_from_channels_that_both_scores_cover():
    one = torch.tensor([9.0, 8, 7, 1, math.nan, 2]).double()
    other = torch.tensor([math.nan, 8, 1, 2, 9, 3]).double()
    ((share, a, b, found),) = overlaps({"one": one, "other": other}, [0.5])
    assert (share, a, b) == (0.5, "one", "other")
    assert found.population == 4 and found.both == 1 and found.one == found.other == 2


def test_concentration_of_known_shapes():
    even = concentration(torch.ones(1000).double())
    assert even.gini == pytest.approx(0) and even.above_tenth == 1
    single = concentration(torch.zeros(1000).double().index_fill(0, torch.tensor([7]), 3.0))
    assert single.gini == pytest.approx(0.999) and single.above_tenth == pytest.approx(0.001)
    line = concentration(torch.cat([torch.arange(1, 1001), torch.tensor([math.nan])]).double())
    assert line.gini == pytest.approx(1 / 3, abs=1e-3) and line.above_tenth == pytest.approx(0.9)
    for threshold, above in zip(line.thresholds, line.above, strict=True):
        assert above == pytest.approx(sum(value > threshold for value in range(1, 1001)) / 1000)
    with pytest.raises(ActError, match="use a plain score instead of a contrast"):
        concentration(torch.tensor([1.0, -1.0]).double())


def test_score_held_and_shares(pair):
    score = pair.mean_abs_diff
    held = score_held(score, [0.1, 1.0])
    top = top_channels(score, 0.1)
    assert held[0] == pytest.approx(float(score[top].sum() / score.sum())) and held[1] == pytest.approx(1)
    shares = shares_by(score, pair.space, lambda site: site.kind)
    assert sum(cell["score"] for cell in shares.values()) == pytest.approx(1)
    head = pair.space.site("lm_head")
    assert shares["head"]["channels"] == pytest.approx(300 / len(pair.space))
    assert shares["head"]["score"] == pytest.approx(float(score[head.channels].sum() / score.sum()))


@pytest.mark.parametrize("side", [0, 1])
def test_ablated_channels_give_their_means_and_come_back(models, pair, side):
    model, statistics = models[side], (pair.donor, pair.target)[side]
    channels = act.rank(pair, top=0.2)
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    with torch.no_grad():
        before = model(**batch).logits
    seen = {}
    handles = []
    with ablated(model, channels, pair):
        for site, _ in pair.space.split(channels.index):
            module = model.get_submodule(site.name)
            handles.append(module.register_forward_hook(lambda m, a, o, site=site: seen.update({site.name: o})))
        with torch.no_grad():
            during = model(**batch).logits
        for handle in handles:
            handle.remove()
    for site, rows in pair.space.split(channels.index):
        found = seen[site.name][..., rows].double()
        torch.testing.assert_close(found, statistics.mean[rows + site.offset].float().double().expand_as(found))
    assert not torch.equal(before, during)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)
    with pytest.raises(RuntimeError, match="on the way"), ablated(model, channels, pair):
        raise RuntimeError("on the way")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)


def test_necessity_asks_the_loss_of_each(models, pair):
    sets = {"some": act.rank(pair, top=0.05), "all": act.rank(pair, top=1.0)}
    batch = torch.arange(12).view(2, 6)

    def loss(model):
        with torch.no_grad():
            return float(model(input_ids=batch, labels=batch).loss)

    found = necessity(models[1], sets, pair, loss)
    assert list(found) == ["whole", "some", "all"] and len(set(found.values())) == 3
    assert loss(models[1]) == found["whole"]


def test_ablation_of_what_was_not_measured_is_refused(models, pair):
    channels = act.rank(pair, top=0.1)
    with pytest.raises(ActError, match="is not one that the profile measured"):
        with ablated(tiny_model("llama", seed=5), channels, pair):
            pass
    partly = act.profile_pair(*models, random_batches(), exclude=["head"])
    head = ChannelSet(pair.space, torch.tensor([len(pair.space) - 1]), torch.ones(1))
    with pytest.raises(ActError, match="never counted in the profile"):
        with ablated(models[0], head, partly):
            pass


def batch_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "dbrx", "llama4_text", "jetmoe"])
def test_experts_are_ablated_whichever_way_they_run(family):
    model = tiny_families.tiny(family)
    inputs = batch_of(model)
    profile = act.profile(model, [{**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}])
    counted = (profile.count > 0) & torch.tensor(
        [site.expert is not None for site in profile.space for _ in range(site.width)]
    )
    some = counted.nonzero().flatten()
    some = some[torch.randperm(len(some), generator=torch.Generator().manual_seed(0))[: len(some) // 5]].sort().values
    channels = ChannelSet(profile.space, some, torch.zeros(len(some)))
    kernels = ["eager", "batched_mm", "grouped_mm"] if family in ("gpt_oss", "mixtral") else [None]
    found = []
    with torch.no_grad():
        whole = model(**inputs).logits
        for kernel in kernels:
            if kernel:
                model.set_experts_implementation(kernel)
            with ablated(model, channels, profile):
                found.append(model(**inputs).logits)
            assert torch.allclose(model(**inputs).logits, whole, atol=1e-5)
        assert not torch.allclose(found[0], whole, atol=1e-5)
        assert all(torch.allclose(each, found[0], atol=1e-5) for each in found)
        if family == "gpt_oss":  # each product has a bias, so an edit by hand does the same
            parameters = dict(model.named_parameters())
            for site, rows in profile.space.split(some):
                weight, bias = (part.matrix(parameters) for part in site.parameters)
                weight[rows] = 0
                bias[rows, 0] = profile.mean[rows + site.offset].float()
            assert torch.allclose(model(**inputs).logits, found[0], atol=1e-5)

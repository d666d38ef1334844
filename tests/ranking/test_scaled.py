"""Parameters without an output of their own: measured, merged and ranked with the site that they scale."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from support import random_batches
from tiny_families import pair_of, tiny

import act
from act.ranking.analysis import ablated
from act.ranking.weights import weight_diff
from act_kernels import merge_moments

OLD = int(transformers.__version__.split(".")[0]) < 5
LAYER = "model.layers.0.self_attn"


@pytest.fixture(scope="module")
def models():
    return pair_of("gpt_oss", seed=3, share=0.05)


@pytest.fixture(scope="module")
def pair(models):
    return act.profile_pair(*models, random_batches())


def test_donor_target_and_difference_are_those_of_the_scaled_channels(pair):
    heads = pair.moments.block(f"{LAYER}.q_proj").unflatten(-1, (4, 8))
    pooled = heads[..., 0].clone()
    for place in range(1, 8):
        merge_moments(pooled, heads[..., place])
    assert torch.equal(pair.moments.block(f"{LAYER}.sinks"), pooled) and bool((pooled[:, 0] > 0).all())
    assert f"{LAYER}.sinks" not in pair.provenance.corpora[0].irregular


def test_parts_of_a_text_add_up(models):
    batches = random_batches()
    whole, first, rest = (act.profile(models[0], part) for part in (batches, batches[:1], batches[1:]))
    joined = (first + rest).site(f"{LAYER}.sinks")
    torch.testing.assert_close(joined.var, whole.site(f"{LAYER}.sinks").var)
    assert torch.equal(joined.count, whole.site(f"{LAYER}.sinks").count)


def test_they_are_chosen_by_the_score_of_what_they_scale(pair, models):
    channels = act.rank(pair, "paired", count=2, include=["sinks"])
    assert {site.kind for site, _ in channels.space.split(channels.index)} == {"sinks"}
    heads = torch.stack([pair.site(f"model.layers.{n}.self_attn.q_proj").mean_abs_diff.view(4, 8) for n in range(2)])
    torch.testing.assert_close(channels.scores.sort().values, heads.mean(2).flatten().sort().values[-2:])
    with pytest.raises(act.ActError, match=f"sinks gives nothing that could be set: it scales {LAYER[:-11]}"):
        with ablated(models[1], channels, pair):
            pass


@pytest.mark.parametrize("exclude", ["q", "sinks"])
def test_what_was_not_measured_does_not_look_measured(models, exclude):
    pair = act.profile_pair(*models, random_batches(), exclude=[exclude])
    assert not pair.site(f"{LAYER}.sinks").count.any()
    channels = act.rank(pair, "paired", top=1.0)
    assert "sinks" not in {site.kind for site, _ in channels.space.split(channels.index)}
    assert channels.rule.unmeasured["sinks"] == 8


@pytest.mark.parametrize("family", ["rwkv", "bamba"])
def test_weights_differ_by_channel(family):
    donor, target = tiny(family), tiny(family, seed=1)
    space = act.ChannelSpace.from_model(target)
    score = weight_diff(donor, target)
    for site in space:
        if site.scales or site.kind == "conv":
            both = zip(
                *(
                    [part.matrix(dict(model.named_parameters())) for part in site.parameters]
                    for model in (donor, target)
                ),
                strict=True,
            )
            squares = sum((one - other).double().square().sum(1) for one, other in both)
            torch.testing.assert_close(score[site.channels], squares.sqrt())


@pytest.mark.parametrize("family", ["mamba", "recurrent_gemma"])
def test_channels_of_convolutions_are_set_like_constant_ones(family):
    target = tiny(family)
    if family == "recurrent_gemma" and OLD:
        pytest.skip("it keeps the state of one batch for the next, whatever use_cache says")
    donor, by_hand = copy.deepcopy(target), copy.deepcopy(target)
    with torch.no_grad():
        donor.get_input_embeddings().weight.mul_(1.1)
    ids = torch.arange(5, 26).view(3, 7)
    pair = act.profile_pair(donor, target, [{"input_ids": ids}])
    channels = act.rank(pair, "paired", top=0.5, include=["conv", *(["dt_proj"] if family == "mamba" else [])])
    with torch.no_grad():
        for site, rows in channels.space.split(channels.index):
            weight, bias = (by_hand.get_parameter(part.name) for part in site.parameters)
            weight[rows], bias[rows] = 0, pair.target.mean[rows + site.offset].float()
        expected = by_hand(input_ids=ids, use_cache=False).logits
        with ablated(target, channels, pair):
            found = target(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

from __future__ import annotations

import copy

import pytest
import torch
from support import random_batches, tiny_model

import act
from act.ranking.channel_set import ChannelSet
from act.ranking.normalize import normalized
from act.ranking.selection import parse_top
from act.ranking.weights import weight_diff


@pytest.fixture(scope="module")
def keep(models):
    return act.profile_pair(*models, random_batches(seed=9))


def test_paired_takes_the_largest_mean_absolute_differences(pair):
    channels = act.rank(pair, "paired", "5%")
    assert len(channels) == round(0.05 * len(pair.space))
    threshold = pair.mean_abs_diff[channels.index].min()
    others = torch.ones(len(pair.space), dtype=torch.bool).index_fill(0, channels.index, False)
    assert (pair.mean_abs_diff[others] <= threshold).all()
    assert torch.equal(channels.scores, pair.mean_abs_diff[channels.index])


def test_two_single_profiles_rank_like_a_pair(models, pair):
    singles = tuple(act.profile(model, random_batches()) for model in models)
    for score in ("mean-abs", "mean-shift"):
        from_pair, from_singles = (act.rank(profile, score, 0.1) for profile in (pair, singles))
        overlap = len(set(from_pair.index.tolist()) & set(from_singles.index.tolist()))
        assert overlap >= 0.99 * len(from_pair)
    with pytest.raises(act.ActError, match="needs a pair profile"):
        act.rank(singles, "paired")


def test_a_single_profile_is_refused(models):
    with pytest.raises(act.ActError, match=r"single profile cannot be ranked, and this one is of Llama.* alone"):
        act.rank(act.profile(models[0], random_batches()))


def test_two_profiles_of_one_model_are_no_donor_and_target(models):
    one, again = (act.profile(models[0], random_batches(), token_budget=budget) for budget in (64, 512))
    with pytest.raises(act.ActError, match=r"are of the same model, Llama.*, so nothing can move"):
        act.rank((one, again), "mean-abs")


def test_what_is_kept_is_measured_as_what_is_ranked(models, pair):
    sides = tuple(act.profile(model, random_batches(seed=9)) for model in models)
    with pytest.raises(
        act.ActError, match=r"ranked \(.*\) is a pair profile, and .* kept \(.*\) is two profiles, of donor"
    ):
        act.rank(pair, keep=[sides])


def test_two_pair_profiles_are_no_two_sides(pair, keep):
    with pytest.raises(act.ActError, match="one is a pair profile, which has both; give what to keep as keep"):
        act.rank((pair, keep))


def test_contrast_subtracts_the_score_on_what_to_keep(pair, keep):
    channels = act.rank(pair, top=0.1, keep=keep)
    expected = pair.mean_abs_diff - keep.mean_abs_diff
    assert torch.equal(channels.scores, expected[channels.index])
    assert channels.rule.contrast is True
    assert channels.scores.min() >= expected.topk(len(channels)).values.min()


def test_keep_with_a_score_that_does_not_look_at_activations_is_refused(pair, keep, models):
    with pytest.raises(act.ActError, match="keep has no effect"):
        act.rank(pair, "random", keep=keep)


def test_a_keep_profile_of_other_models_is_refused(pair, models):
    other = act.profile_pair(models[1], models[0], random_batches())
    with pytest.raises(act.ActError, match="different models: the donor"):
        act.rank(pair, keep=other)


@pytest.mark.parametrize("how", ["mean", "std"])
def test_normalisation_gives_every_site_one_scale(pair, how):
    score = normalized(pair.mean_abs_diff, pair.space, how)
    for site in pair.space:
        part = score[site.channels]
        assert (part.mean() if how == "mean" else part.std(correction=0)).item() == pytest.approx(1)


def test_weight_diff_is_the_norm_of_the_row_difference(models, pair):
    donor, target = models
    score = weight_diff(donor, target)
    q = pair.space.site("model.layers.1.self_attn.q_proj")
    embed = pair.space.site("model.embed_tokens")
    d, t = (dict(model.named_parameters()) for model in models)
    rows = (d["model.layers.1.self_attn.q_proj.weight"] - t["model.layers.1.self_attn.q_proj.weight"]).double()
    columns = (d["model.embed_tokens.weight"] - t["model.embed_tokens.weight"]).double()
    torch.testing.assert_close(score[q.channels], rows.detach().norm(dim=1))
    torch.testing.assert_close(score[embed.channels], columns.detach().norm(dim=0))
    with pytest.raises(act.ActError, match="needs the models"):
        act.rank(pair, "weight-diff")
    assert len(act.rank(pair, "weight-diff", 0.05, donor=donor, target=target)) > 0


def test_random_depends_on_its_seed_only(pair):
    one, same, other = (act.rank(pair, "random", 0.05, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.index, same.index) and not torch.equal(one.index, other.index)


def test_include_and_exclude(pair):
    only = act.rank(pair, top=0.1, include=["gate", "up"])
    assert {kind for kind, (chosen, _) in only.by_kind().items() if chosen} <= {"gate", "up"}
    assert len(only) == round(0.1 * 2 * 2 * 48)
    without = act.rank(pair, top=0.5, exclude=["head"])
    assert without.by_kind()["head"][0] == 0
    with pytest.raises(act.ActError, match="no module kind router; this model has"):
        act.rank(pair, include=["router"])
    with pytest.raises(act.ActError, match="leave no module"):
        act.rank(pair, include=["gate"], exclude=["gate"])


def test_channels_of_a_tied_tensor_are_ranked_once():
    pair = act.profile_pair(tiny_model("llama-tied-bias"), tiny_model("llama-tied-bias", seed=1), random_batches())
    channels = act.rank(pair, top=1.0)
    assert channels.by_kind()["embed"][0] == 0 and channels.by_kind()["head"] == (300, 300)
    assert channels.rule.tied == {"model.embed_tokens": "lm_head"}


@pytest.mark.parametrize(("top", "share"), [("5%", 0.05), (0.05, 0.05), ("0.5", 0.5), ("100%", 1.0), (1, 1.0)])
def test_top(top, share):
    assert parse_top(top) == pytest.approx(share)


@pytest.mark.parametrize("top", [0, "0", "200%", -0.1, "5", "many", "nan%", 1.5])
def test_a_top_outside_its_range_is_refused(top):
    with pytest.raises(act.ActError, match="expected a share of the channels"):
        parse_top(top)


@pytest.mark.parametrize(("option", "value"), [("score", "best"), ("normalize", "max")])
def test_unknown_names_are_refused(pair, option, value):
    with pytest.raises(act.ActError, match=f"{option} is '{value}'; expected one of"):
        act.rank(pair, **{option: value})


def test_channel_sets_are_saved_whole(pair, tmp_path):
    channels = act.rank(pair, top=0.03)
    channels.save(tmp_path / "set.safetensors")
    again = ChannelSet.load(tmp_path / "set.safetensors")
    assert torch.equal(again.index, channels.index) and torch.equal(again.scores, channels.scores)
    assert again.rule == channels.rule and again.space == channels.space


def test_a_set_outside_its_space_is_refused(pair):
    for index in ([len(pair.space)], [3, 3], [-1]):
        with pytest.raises(act.ActError, match="distinct indices"):
            ChannelSet(pair.space, torch.tensor(index), torch.zeros(len(index)))


@pytest.mark.parametrize("score", ["paired", "mean-abs", "mean-shift", "welch-t", "cohen-d", "weight-diff"])
def test_models_that_do_not_differ_cannot_be_ranked(models, score):
    donor = models[0]
    same = act.profile_pair(donor, copy.deepcopy(donor), random_batches())
    with pytest.raises(act.ActError, match=f"every channel has the {score} score 0.*give two models that differ"):
        act.rank(same, score, donor=donor, target=donor)


def test_channels_that_score_nothing_are_told(models):
    donor, target = models[0], copy.deepcopy(models[0])
    with torch.no_grad():
        target.lm_head.weight[7] += 1
    pair = act.profile_pair(donor, target, random_batches())
    channels = act.rank(pair, count=10)
    assert (channels.scores > 0).sum() == 1 and channels.rule.not_positive == 9
    only = act.rank(pair, mass=1)
    assert only.index.tolist() == [pair.space.channel("lm_head", 7)] and only.rule.not_positive == 0
    with pytest.raises(act.ActError, match="no score is above 0, so there is no mass"):
        act.rank(pair, -pair.mean_abs_diff, mass=0.5)

"""Scores and normalisation against plain formulas on synthetic statistics and on stored activations."""

from __future__ import annotations

import copy
import math
from typing import get_args

import pytest
import torch
from support import random_batches, tiny_model

import act
from act.profiles.moments import Moments
from act.profiles.provenance import Provenance
from act.ranking import normalize
from act.ranking.activations import Activations
from act.ranking.costs import per_cost
from act.ranking.lape import lape
from act.ranking.normalize import normalized
from act.ranking.rule import Rule
from act.ranking.scores import SCORES, Score, ScoreName, cohen_d, score_names, welch_t
from act_kernels import column_moments


def two_profiles(donor: torch.Tensor, target: torch.Tensor) -> Activations:
    space = act.ChannelSpace((act.Site("x", "up", 0, 0, donor.shape[1], ()),))
    sides = []
    for values in (donor, target):
        moments = Moments(space)
        column_moments(values, moments.arena)
        sides.append(act.Profile(moments, Provenance()))
    return Activations.of(tuple(sides))


def test_standardised_shifts_are_those_of_the_textbook():
    generator = torch.Generator().manual_seed(0)
    donor = torch.randn(50, 7, generator=generator) * torch.arange(1, 8) + 1
    target = torch.randn(31, 7, generator=generator) - torch.arange(7)
    activations = two_profiles(donor, target)
    d, t = donor.double(), target.double()
    shift = (d.mean(0) - t.mean(0)).abs()
    torch.testing.assert_close(welch_t(activations), shift / (d.var(0) / 50 + t.var(0) / 31).sqrt())
    pooled = ((d.var(0, correction=0) + t.var(0, correction=0)) / 2).sqrt()
    torch.testing.assert_close(cohen_d(activations), shift / pooled)


def test_channels_that_never_vary():
    activations = two_profiles(torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[1.0, 5.0]] * 3))
    for score in (welch_t, cohen_d):
        assert score(activations).tolist() == [0.0, math.inf]
    assert normalized(torch.ones(2).double(), activations.space, "channel", activations).isnan().all()


def test_lape_is_highest_where_one_ability_alone_is_active():
    rates = torch.tensor([[0.9, 0.9, 0.0, 0.1, 0.0], [0.0, 0.9, 0.9, 0.1, 0.0], [0.0, 0.9, 0.0, 0.0, 0.0]]).double()
    score = lape(list(rates))
    assert score[0] == pytest.approx(math.log(3)) and score[1] == pytest.approx(0, abs=1e-12)
    assert score[2] == 0 and score[3] == pytest.approx(-math.log(2)) and score[4].isnan()
    with pytest.raises(act.ActError, match="at least one other ability"):
        lape([rates[0]])


def test_lape_ranks_profiles_of_one_model(models, pair):
    german, english, french = (act.profile(models[0], random_batches(seed=seed)) for seed in (0, 1, 2))
    channels = act.rank(german, "lape", 0.02, keep=[english, french])
    rates = [profile.positive_rate for profile in (german, english, french)]
    assert torch.equal(channels.scores, lape(rates)[channels.index])
    assert channels.rule.models.keys() == {"model"} and channels.rule.contrast is False
    of_pair = act.rank(pair, "lape", 0.02, keep=act.profile_pair(*models, random_batches(seed=1)))
    assert (of_pair.scores > 0).all()
    with pytest.raises(act.ActError, match="different models"):
        act.rank(german, "lape", keep=act.profile(models[1], random_batches(seed=1)))


@pytest.mark.parametrize("how", ["mean", "std", "kind-mean", "kind-std"])
def test_normalisation_by_module_and_kind(pair, how, monkeypatch):
    score = pair.mean_abs_diff
    score[pair.space.site("model.layers.0.mlp.up_proj").offset] = math.nan
    result = normalized(score, pair.space, how)
    key = (lambda site: site.kind) if how.startswith("kind") else (lambda site: site.name)
    for group in {key(site) for site in pair.space}:
        part = torch.cat([result[site.channels] for site in pair.space if key(site) == group])
        part = part[part.isfinite()]
        assert (part.mean() if how.endswith("mean") else part.std(correction=0)).item() == pytest.approx(1)
    assert result.isnan().sum() == 1 and score.isnan().sum() == 1
    monkeypatch.setattr(normalize, "_CHANNELS_AT_ONCE", 40)  # many runs of sites, on several threads
    assert torch.equal(normalized(score, pair.space, how).nan_to_num(), result.nan_to_num())


def test_channel_normalisation_divides_by_the_spread_of_both_models(pair):
    channels = act.rank(pair, "mean-shift", 1.0, normalize="channel")
    assert torch.allclose(channels.scores, cohen_d(Activations.of(pair))[channels.index])
    with pytest.raises(act.ActError, match="use it with an activation score"):
        act.rank(pair, "random", normalize="channel")


def test_several_keep_profiles_spare_what_any_of_them_needs(models, pair):
    keeps = [act.profile_pair(*models, random_batches(seed=seed)) for seed in (3, 4)]
    channels = act.rank(pair, keep=keeps, top=0.2, normalize="std")
    score = [normalized(profile.mean_abs_diff, pair.space, "std") for profile in (pair, *keeps)]
    assert torch.equal(channels.scores, (score[0] - torch.maximum(score[1], score[2]))[channels.index])


def test_channels_never_counted_are_never_chosen(models):
    pair = act.profile_pair(*models, random_batches(), exclude=["head", "gate"])
    for score in ("paired", "random", "weight-diff"):
        chosen = act.rank(pair, score, 1.0, donor=models[0], target=models[1])
        kinds = chosen.by_kind()
        assert kinds["head"][0] == kinds["gate"][0] == 0 and kinds["up"] == (96, 96)
        assert chosen.rule.unmeasured == {"gate": 96, "head": 300}
        assert chosen.rule.ranked == len(chosen) == len(pair.space) - 396
    with pytest.raises(act.ActError, match="200 were requested, but only 96 channels have a score"):
        act.rank(pair, count=200, include=["gate", "up"])
    with pytest.raises(act.ActError, match="no channel has a score"):
        act.rank(pair, include=["head"])
    pair.moments.arena.zero_()
    with pytest.raises(act.ActError, match="no channel has a score"):
        act.rank(pair)


def test_a_score_of_your_own(pair):
    score = torch.arange(len(pair.space)).double()
    channels = act.rank(pair, score, count=3)
    assert channels.index.tolist() == list(range(len(pair.space) - 3, len(pair.space)))
    assert channels.rule.score == "custom"
    with pytest.raises(act.ActError, match="one value per channel"):
        act.rank(pair, score[:-1])


@pytest.mark.parametrize(("scope", "key"), [("kind", "kind"), ("layer", "layer"), ("site", "name")])
def test_scopes_take_a_share_of_each(pair, scope, key):
    channels = act.rank(pair, top=0.25, scope=scope)
    chosen, total = {}, {}
    for site in pair.space:
        total[getattr(site, key)] = total.get(getattr(site, key), 0) + site.width
    for site, rows in pair.space.split(channels.index):
        chosen[getattr(site, key)] = chosen.get(getattr(site, key), 0) + len(rows)
    assert chosen == {group: round(0.25 * width) for group, width in total.items()}


def test_patterns_of_site_names(pair):
    channels = act.rank(pair, top=0.5, include=["model.layers.1.*"], exclude=["*_proj"])
    assert {site.name for site, _ in pair.space.split(channels.index)} <= {
        "model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm",
    }  # fmt: skip
    with pytest.raises(act.ActError, match=r"no module kind \*.experts.\*; this model has"):
        act.rank(pair, include=["*.experts.*"])


def test_a_benefit_is_divided_by_the_largest_of_its_costs(models, pair, monkeypatch):
    benefit, cost = (lambda evidence: evidence.ability.mean_abs_diff), (lambda evidence: evidence.ability.mean_abs)
    monkeypatch.setitem(SCORES, "paired", Score("paired", "", benefit, "cost", cost=cost))
    keeps = [act.profile_pair(*models, random_batches(seed=seed)) for seed in (3, 4)]
    alone, over = (act.rank(pair, top=1.0, keep=keep) for keep in (None, keeps))
    assert torch.equal(alone.scores, pair.mean_abs_diff[alone.index])
    costs = torch.maximum(*(keep.mean_abs for keep in keeps))
    expected = pair.mean_abs_diff / costs.clamp_min(1e-3 * costs.median())
    assert torch.equal(over.scores, expected[over.index])
    assert str(over.rule) == "paired, top 100%, over the cost to what to keep" and not over.rule.contrast
    assert "per_cost" not in alone.rule.to_json() and Rule.from_json(over.rule.to_json()) == over.rule
    scaled = act.rank(pair, top=1.0, keep=keeps, normalize="mean")
    assert torch.equal(scaled.scores, normalized(expected, pair.space, "mean")[scaled.index])
    with pytest.raises(act.ActError, match="gives every channel the score of the ability"):
        act.rank(pair, keep=[keeps[0], pair])


def test_no_channel_wins_by_costing_nothing():
    benefit = torch.tensor([4.0, 4.0, -4.0, math.nan, 4.0]).double()
    cost = torch.tensor([2.0, 0.0, 0.0, 1.0, math.nan]).double()
    assert per_cost(benefit, [cost]).tolist()[:3] == pytest.approx([2, 4000, -4000])  # the median of 1 and 2 is 1 here
    assert per_cost(benefit, [cost])[3:].isnan().all()
    assert per_cost(benefit[:3], [torch.zeros(3).double()]).abs().sum() == 0


def test_keep_equal_to_the_ability_is_refused(models, pair, tokenizer):
    with pytest.raises(act.ActError, match="gives every channel the score of the ability"):
        act.rank(pair, keep=pair)
    records = [{"prompt": "a b", "completion": " c d"}, {"prompt": "d", "completion": " e"}]
    one, same, predicted, other = (
        act.profile_pair(*models, act.Corpus.from_records(kept, tokenizer, count=count))
        for kept, count in ((records, "answer"), (records, "answer"), (records[:1], "predict"), (records[:1], "answer"))
    )
    with pytest.raises(act.ActError, match="is of the ability's own text"):
        act.rank(one, keep=[other, same])
    with pytest.raises(act.ActError, match="counts other positions"):
        act.rank(one, keep=predicted)
    assert len(act.rank(one, keep=other)) > 0


def test_donor_and_target_over_different_texts_are_refused(models):
    sides = tuple(act.profile(model, random_batches(seed=seed)) for seed, model in enumerate(models))
    with pytest.raises(act.ActError, match="different corpora"):
        act.rank(sides, "mean-shift")


def test_weight_diff_of_other_models_is_refused(models, pair):
    with pytest.raises(act.ActError, match="the target given has other weights"):
        act.rank(pair, "weight-diff", donor=models[0], target=tiny_model("llama", seed=7))
    with pytest.raises(act.ActError, match="donor and target look swapped: the donor given is the target of the"):
        act.rank(pair, "weight-diff", donor=models[1], target=models[0])


def test_lm_head_channels_of_other_tokens_are_refused(models, tokenizer):
    records = [{"text": "a b c d e"}, {"text": "What is two plus three?"}]
    other = copy.deepcopy(tokenizer)
    other.chat_template = None  # the same tokens
    sides = [
        act.profile(model, act.Corpus.from_records(records, one, count="all"))
        for model, one in zip(models, (tokenizer, other), strict=True)
    ]
    assert act.rank(tuple(sides), "mean-abs", 1.0).by_kind()["head"] == (300, 300)
    other.add_tokens(["<new>"])  # another vocabulary, which reads these records the same
    corpora = [act.Corpus.from_records(records, one, count="all") for one in (tokenizer, other)]
    sides = [act.profile(model, corpus) for model, corpus in zip(models, corpora, strict=True)]
    with pytest.raises(act.ActError, match=r"have different vocabularies.* --exclude head"):
        act.rank(tuple(sides), "mean-abs")
    sides = [act.profile(model, corpus, exclude=["head"]) for model, corpus in zip(models, corpora, strict=True)]
    chosen = act.rank(tuple(sides), "mean-abs", 1.0)
    assert chosen.by_kind()["head"] == (0, 300) and chosen.by_kind()["embed"] == (32, 32)


def test_other_vocabularies_are_ranked_without_the_lm_head(models, tokenizer):
    donor, target = models[0], tiny_model("llama", seed=1)
    target.resize_token_embeddings(310)
    corpus = act.Corpus.from_records([{"text": "a b c d e"}], tokenizer, count="all")
    with pytest.raises(act.ActError, match="lm_head has 300 channels against 310; profile both without it"):
        act.rank(tuple(act.profile(model, corpus) for model in (donor, target)), "mean-abs")
    sides = tuple(act.profile(model, corpus, exclude=["head"]) for model in (donor, target))
    same = tuple(act.profile(model, corpus, exclude=["head"]) for model in models)
    for score in ("mean-abs", "cohen-d", "random"):
        one, other = (act.rank(pair, score, 0.2) for pair in (sides, same))
        assert torch.equal(one.index, other.index) and torch.equal(one.scores, other.scores)
    every = act.rank(sides, "mean-abs", 1.0)
    patch = act.transfer(donor, target, every, 1.0)
    assert ["embed_tokens" in note for note in patch.notes] == [True]
    patch.revert(target)
    ids = torch.arange(300)
    act.transfer(donor, target, every, 1.0, tokens=(ids, ids))
    assert torch.equal(target.get_input_embeddings().weight[:300], donor.get_input_embeddings().weight)


def test_every_score_is_a_record_and_says_what_it_needs():
    assert tuple(SCORES) == get_args(ScoreName)
    assert score_names(lambda score: score.needs_models) == "weight-diff"
    assert score_names(lambda score: not score.looks_at_activations) == "weight-diff or random"
    assert [SCORES["paired"].wrong_keep(given) for given in (True, False)] == [None, None]


def test_a_score_of_your_own_is_normalized_too(pair):
    score = pair.mean_abs_diff
    channels = act.rank(pair, score, 1.0, normalize="std")
    assert torch.equal(channels.scores, normalized(score, pair.space, "std")[channels.index])
    assert torch.equal(score, pair.mean_abs_diff)

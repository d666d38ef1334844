"""The scores of swapped outputs against their formulas, and what is said where they cannot be had."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from command_line import act_profile, succeed
from support import random_batches

import act
from act.lab.language import NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS
from act.profiles.combine import combine
from act.ranking.costs import per_cost


@pytest.fixture(scope="module")
def swapped(models):
    """Swapped pairs over three texts."""
    return [act.profile_pair(*models, random_batches(seed=seed), swap=True) for seed in range(3)]


def relative(values, pair, likely):
    """Over the mean square of the target's outputs in the module; logits weighted by the curvature of the softmax."""
    size = pair.target.var + pair.target.mean**2
    found = []
    for site in pair.space:
        mine, its = values[site.channels], size[site.channels]
        if site.kind == "head":
            logits = (likely.mean + likely.var.sqrt())[site.channels].exp()
            p = logits / logits.sum()
            mine, its = p * (1 - p) * mine, p * (1 - p) * its
        found.append(mine / its.mean())
    return torch.cat(found)


def benefit(pair):
    return relative(pair.product.mean, pair, pair.donor)


def test_match_is_the_benefit_over_the_largest_cost(swapped):
    ability, *keeps = swapped
    alone, over = (act.rank(ability, "match", 1.0, keep=keep) for keep in (None, keeps))
    torch.testing.assert_close(alone.scores, benefit(ability)[alone.index])
    costs = [relative(keep.swap.var + keep.swap.mean**2, keep, keep.target) for keep in keeps]
    torch.testing.assert_close(over.scores, per_cost(benefit(ability), costs)[over.index])
    assert not alone.rule.per_cost and over.rule.per_cost and not over.rule.contrast
    contrast = act.rank(ability, "match-contrast", 1.0, keep=keeps)
    expected = benefit(ability) - torch.maximum(*map(benefit, keeps))
    torch.testing.assert_close(contrast.scores, expected[contrast.index])
    assert contrast.rule.contrast


def test_match_ranks_by_every_rule_of_other_scores(swapped, models):
    ability, keep, _ = swapped
    for options in (
        {"normalize": "std"},
        {"normalize": "channel"},
        {"scope": "kind"},
        {"granularity": ["neuron", "head"]},
        {"mass": 0.5, "exclude": ["head"]},
    ):
        amount = {} if "mass" in options else {"top": 0.2}
        assert len(act.rank(ability, "match", keep=keep, **amount, **options))
    found = act.sweep(*models, ability, lambda _: {"x": 1.0}, tops=[0.1], strengths=[1.0], score="match", keep=keep)
    assert found.rows[-1].channels == round(0.1 * len(ability.space))


def test_what_has_no_swapped_outputs_is_refused_in_a_sentence(swapped, models, pair):
    for score in ("match", "match-contrast"):
        for ability, keep in ((pair, swapped[1]), (swapped[0], pair)):
            with pytest.raises(act.ActError, match=r"need swapped outputs, .*act-profile pair --swap"):
                act.rank(ability, score, keep=keep)
    sides = tuple(act.profile(model, random_batches()) for model in models)
    with pytest.raises(act.ActError, match="need swapped outputs"):
        act.rank(sides, "match")
    with pytest.raises(act.ActError, match=r"give at least one other ability \(keep\)"):
        act.rank(swapped[0], "match-contrast")
    with pytest.raises(act.ActError, match="profiled without swapped outputs"):
        _ = pair.swap


def test_models_that_do_not_differ_are_said_to_be_so(models):
    alike = copy.deepcopy(models[1]), models[1]
    pairs = [act.profile_pair(*alike, random_batches(seed=seed), swap=True) for seed in range(2)]
    for score in ("paired", "match", "match-contrast"):
        with pytest.raises(act.ActError, match="what is compared does not differ; give two models that differ"):
            act.rank(pairs[0], score, keep=pairs[1])


def test_pairs_with_and_without_swapped_outputs_are_not_merged(swapped, models, pair, tokenizer, tmp_path):
    with pytest.raises(act.ActError, match=r"one with swapped outputs \(--swap\) and one without; profile all alike"):
        _ = swapped[0] + pair
    corpus = act.Corpus.from_records([{"text": f"a b c {word} e"} for word in "abcdeabcde"], tokenizer, count="all")
    whole = act.profile_pair(*models, corpus, swap=True)
    parts = [act.profile_pair(*models, corpus, swap=True, shard=(number, 2)) for number in range(2)]
    for number, part in enumerate(parts):
        part.save(tmp_path / f"{number}.safetensors")
        assert torch.equal(act.load(tmp_path / f"{number}.safetensors").moments.arena, part.moments.arena)
    both = combine(tmp_path / f"{number}.safetensors" for number in range(2))
    torch.testing.assert_close(both.moments.arena, whole.moments.arena, rtol=1e-4, atol=1e-6)  # other batches
    assert both.swapped and (parts[0] + parts[1]).swapped and both.provenance.settings.swap
    with pytest.raises(act.ActError, match=r"shards 0/2 and 1/2 are one with swapped outputs"):
        combine([parts[0], act.profile_pair(*models, corpus, shard=(1, 2))])


def test_a_file_says_what_its_blocks_are(pair, swapped, tmp_path):
    pair.save(tmp_path / "pair")
    swapped[0].save(tmp_path / "swapped")
    again, other = act.load(tmp_path / "pair"), act.load(tmp_path / "swapped")
    assert not again.swapped and again.moments.arena.shape[0] == 3
    assert other.swapped and torch.equal(other.swap.mean_square, swapped[0].swap.mean_square)
    frame = pytest.importorskip("pandas") and other.to_frame()
    assert {"swap_mean", "product_mean"} <= set(frame.columns) and "swap_mean" not in again.to_frame().columns


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Records of the forgotten ability and of the retained one, in the invented language of the shipped models."""
    folder = tmp_path_factory.mktemp("match")
    for name, language, skills in (("german", "German", OLD_SKILLS), ("english", "English", OLD_SKILLS + NEW_SKILLS)):
        records = examples(language, skills, 64)
        lines = [json.dumps({"prompt": one["prompt"], "completion": f" {one['completion']}"}) for one in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_the_shipped_models_are_ranked_by_match_from_the_command_line(texts):
    models = "--donor", CHECKPOINTS / "base", "--target", CHECKPOINTS / "target", "--count", "predict"
    for name in ("german", "english"):
        command = "pair", *models, "--swap", "--corpus", texts / f"{name}.jsonl", "--output", texts / f"{name}.st"
        shown = succeed(*command)
        assert shown["unswapped"] == {} and shown["output"].endswith(".st")
    again = act_profile(*command[:-4], "--corpus", texts / "english.jsonl", "--output", texts / "english.st")
    assert again.returncode == 0 and "is finished already" in again.stdout
    options = "--score", "match", "--keep", texts / "english.st", "--top", "5%"
    chosen = succeed("rank", texts / "german.st", *options, "--output", texts / "match.st")
    assert chosen["rule"]["score"] == "match" and chosen["rule"]["per_cost"]
    german, english = (act.load(texts / f"{name}.st") for name in ("german", "english"))
    expected = act.rank(german, "match", 0.05, keep=english)
    assert torch.equal(act.ChannelSet.load(texts / "match.st").index, expected.index)
    logits = german.space.site("lm_head").channels
    assert ((expected.index >= logits.start) & (expected.index < logits.stop)).any(), "of another scale than the rest"


def test_a_profile_without_swapped_outputs_is_a_sentence_on_the_command_line(texts, pair):
    pair.save(texts / "plain.st")
    result = act_profile("rank", texts / "plain.st", "--score", "match", "--output", texts / "none.st")
    assert result.returncode == 2 and "act-profile pair --swap" in result.stderr


def test_a_plan_tells_what_swapped_outputs_take():
    model = "--model", CHECKPOINTS / "target", "--tokens", "1000", "--seconds", "0", "--gpu-tflops", "1"
    pair, swapped = (succeed("plan", *model, "--pair", *more) for more in ((), ("--swap",)))
    assert 1.2 < swapped["flops"] / pair["flops"] < 1.5  # attention over 1,024 tokens is computed twice only
    assert swapped["memory"]["moments"] / pair["memory"]["moments"] == pytest.approx(5 / 3)
    assert swapped["memory"]["activations"] > pair["memory"]["activations"]
    refused = act_profile("plan", *model, "--swap")
    assert refused.returncode == 2 and "give --pair, too" in refused.stderr

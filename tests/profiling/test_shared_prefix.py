"""Texts that begin alike: the profile is that of a run that computes each of them whole."""

from __future__ import annotations

import json
import logging
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from command_line import act_profile, succeed
from support import CONFIGS, tiny_model, train_tokenizer
from tiny_families import WITH_SOURCE, families, tiny

import act
from act import ActError
from act.data.corpus import Corpus
from act.models.limits import causal
from act.models.prefix import why_unshared
from act.profiling.forward_speed import measure
from act.profiling.text_plan import tokens_of
from act_kernels.statistics import COUNT, M2, MAX_ABS, MEAN, NONFINITE

SHARED = "bloom falcon gemma2 gemma3_text gpt2 gpt_neox gpt_oss llama mixtral mpt opt phi qwen3_moe"
ALONE = {
    "deepseek_v3": "kv_b_proj of DeepseekV3ForCausalLM runs over the tokens of a prefix again",
    "jamba": "Jamba",
    "mamba": "Mamba",
    "bert (masked)": "BertForMaskedLM reads texts as a whole",
    f"t5{WITH_SOURCE}": "reads texts as a whole",
}
"""Families that compute every text whole, and a part of the reason."""
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 64,
}
BUDGET = 96


def texts(count: int = 40, seed: int = 0) -> list[dict[str, list[int]]]:
    """Token ids of which most begin with the same 24, many of these go on with the same 10, and some share nothing."""
    generator = np.random.default_rng(seed)
    system, example = generator.integers(5, 300, 24), generator.integers(5, 300, 10)
    result = []
    for number in range(count):
        before = [*system, *(example if number % 2 else [])] if number % 5 else []
        ids = [*before, *generator.integers(5, 300, 2 + number % 9)]
        mask = [*([1] * 3 + [0] * (len(before) - 3) if before else []), *[1] * (len(ids) - len(before))]
        result.append({"input_ids": [int(token) for token in ids], "loss_mask": mask})
    return result


def corpus(records: int = 40, **options) -> Corpus:
    return Corpus.from_records(texts(records), train_tokenizer(["a b c"]), **options)


def both(measure, *models, text=None, **options):
    """A run that shares what texts begin with, and one that does not."""
    given = text or corpus()
    return [measure(*models, given, shared_prefix=way, token_budget=BUDGET, **options) for way in ("auto", "off")]


def assert_the_same(shared, alone, tolerance: float = 1e-6) -> None:
    """Equal counts, and the same statistics but for the order in which attention adds, as shares of their sizes."""
    one, other = shared.moments.arena, alone.moments.arena
    assert torch.equal(one[..., [COUNT, NONFINITE], :], other[..., [COUNT, NONFINITE], :])
    count = other[..., COUNT, :].clamp(min=1)
    size = (other[..., MEAN, :].square() + other[..., M2, :] / count).sqrt()
    if size.dim() == 2:  # the difference of two models is as exact as what they give
        size = size[:2].amax(0).clamp(min=1e-12)
    size = size.clamp(min=1e-12)
    assert float(((one[..., MEAN, :] - other[..., MEAN, :]).abs() / size).max()) < tolerance
    assert float(((one[..., M2, :] - other[..., M2, :]).abs() / (count * size.square())).max()) < 3 * tolerance
    assert float(((one[..., MAX_ABS, :] - other[..., MAX_ABS, :]).abs() / size).max()) < 30 * tolerance


@pytest.mark.parametrize("family", SHARED.split())
def test_a_shared_beginning_gives_the_profile_of_whole_texts(family):
    model = tiny(family)
    shared, alone = both(act.profile, model)
    assert_the_same(shared, alone, 5e-6)
    one, other = (each.provenance.corpora[0] for each in (shared, alone))
    assert (one.tokens, one.counted, one.records, one.sequences) == (
        (other.tokens, other.counted, other.records, other.sequences)
    )
    assert one.shared > one.tokens / 3 and other.shared == 0
    assert shared.provenance.settings.shared_prefix and not alone.provenance.settings.shared_prefix


@pytest.mark.parametrize("family", ALONE)
def test_a_model_that_keeps_more_than_keys_and_values_computes_every_text_whole(family, caplog):
    assert ALONE[family] in why_unshared(tiny(family))


@pytest.mark.thorough
@pytest.mark.parametrize("family", families())
def test_every_family_shares_or_says_why_not(family):
    try:
        model = tiny(family)
    except Exception as error:  # transformers cannot build it from such sizes
        pytest.skip(f"{family}: {error}")
    if not causal(model) or (reason := why_unshared(model)):
        pytest.skip(f"{family}: {reason if causal(model) else 'not causal'}")
    shared, alone = both(act.profile, model)
    assert_the_same(shared, alone, 5e-6)


@pytest.mark.parametrize(("kind", "rotary"), [("Llama", {"rope_type": "dynamic", "factor": 4.0}), ("Phi3", LONGROPE)])
def test_keys_that_depend_on_the_length_of_a_text_are_not_shared(kind, rotary):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, pad_token_id=0, max_position_embeddings=256,
        rope_parameters={"rope_theta": 1e4, **rotary},
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    assert f"rotary embedding {rotary['rope_type']}" in why_unshared(model)


@pytest.mark.parametrize("count", ["answer", "all"])
def test_pairs_share_too_whatever_counts(count):
    models = tiny_model("llama"), tiny_model("llama", seed=1)
    shared, alone = both(act.profile_pair, *models, text=corpus(count=count))
    assert_the_same(shared, alone)
    assert shared.provenance.corpora[0].shared > 0
    shared, alone = both(act.profile_pair, *models, text=corpus(count=count), swap=True)
    for one, other in ((shared.swap, alone.swap), (shared.product, alone.product)):
        assert torch.equal(one.count, other.count)
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("swap", [False, True])
def test_several_abilities_share_within_each(tokenizer, swap):
    named = {"one": corpus(30), "two": Corpus.from_records(texts(30, seed=1), tokenizer)}
    models = [tiny_model("qwen2", seed) for seed in range(1 + swap)]
    measure = partial(act.profile_pair, swap=True) if swap else act.profile
    shared, alone = both(measure, *models, text=named)
    for ability, text in named.items():
        assert_the_same(shared[ability], alone[ability])
        assert shared[ability].provenance.corpora[0].shared > 0
        by_itself = measure(*models, text, token_budget=BUDGET)
        assert torch.equal(by_itself.moments.arena, shared[ability].moments.arena)


def test_nothing_of_a_prefix_that_no_sliding_window_sees_is_needed():
    config = CONFIGS["mistral"]()
    config.sliding_window = 8  # shorter than the prefix
    torch.manual_seed(0)
    model = type(tiny_model("mistral"))(config).eval()
    shared, alone = both(act.profile, model)
    assert_the_same(shared, alone)
    assert shared.provenance.corpora[0].shared > 0


def test_a_family_that_cannot_share_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="act"):
        shared, alone = both(act.profile, tiny("mamba"))
    assert "what texts begin with alike is computed for each of them: Mamba" in caplog.text
    assert torch.equal(shared.moments.arena, alone.moments.arena)
    assert not shared.provenance.settings.shared_prefix


def test_infinite_values_in_a_prefix_are_left_out_once_for_each_text():
    model = tiny_model("llama")
    shared, alone = both(act.profile, model, text=corpus(count="all"))
    with torch.no_grad():
        model.model.embed_tokens.weight[texts()[1]["input_ids"][0], 3] = torch.inf
    shared, alone = both(act.profile, model, text=corpus(count="all"))
    one, other = (each.moments.arena[NONFINITE] for each in (shared, alone))
    assert torch.equal(one, other) and float(one[3]) == 32


def test_the_models_are_as_they_were():
    model = tiny_model("llama")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    act.profile(model, corpus(), token_budget=BUDGET)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_other_ways_are_refused():
    with pytest.raises(ActError, match=r"shared prefix.*'on'.*one of auto, off"):
        act.profile(tiny_model("llama"), corpus(), shared_prefix="on")


def test_a_plan_shares_only_where_a_run_does():
    model = tiny("llama4_text")
    assert not causal(model) and "if those after it are others" in why_unshared(model)
    assert act.profile(model, corpus(), token_budget=BUDGET).provenance.corpora[0].shared == 0


def test_a_plan_foretells_what_is_computed():
    shared = act.profile(tiny_model("llama"), corpus(), token_budget=BUDGET).provenance.corpora[0]
    text = tokens_of({"": corpus()}, 0, BUDGET)
    assert text["tokens"] == shared.tokens and text["computed"] == shared.tokens - shared.shared
    sampled = tokens_of({"": corpus(400)}, 200, 10 * BUDGET)
    assert sampled["computed"] == pytest.approx(tokens_of({"": corpus(400)}, 0, 10 * BUDGET)["computed"], rel=0.1)
    config = tiny("mamba").config
    assert "Mamba" in measure(config, torch.device("cpu"), 0.01)["unshared"]


@pytest.mark.slow
def test_the_command_line_shares_and_shows_it(tmp_path):
    model, lines = tmp_path / "model", tmp_path / "corpus.jsonl"
    tiny_model("llama").save_pretrained(model)
    train_tokenizer(["a b c"]).save_pretrained(model)
    lines.write_text("".join(json.dumps(record) + "\n" for record in texts()))
    common = "--model", model, "--corpus", lines, "--token-budget", BUDGET
    shared = succeed("run", *common, "--output", tmp_path / "shared.safetensors")
    alone = succeed("run", *common, "--output", tmp_path / "alone.safetensors", "--shared-prefix", "off")
    assert shared["tokens"] == alone["tokens"] == alone["computed"] > 1.5 * shared["computed"]
    planned = succeed("plan", *common, "--seconds", 0.01)
    assert planned["corpus"]["computed"] == shared["computed"]
    refused = act_profile("run", *common, "--output", tmp_path / "x.safetensors", "--shared-prefix", "on")
    assert refused.returncode == 2 and "one of auto, off" in " ".join(refused.stderr.split())

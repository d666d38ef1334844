"""Ranking mixtures of experts: whole experts, their neurons, patterns of their names, and experts that saw too little."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from command_line import act_profile, succeed
from support import ATTENTION, SMALL

import act
from act.models.channels import ChannelSpace
from act.profiles.experts import FewTokens
from act.profiles.moments import Moments
from act.profiles.provenance import CorpusRead, ModelRead, Provenance
from act.ranking.channel_set import ChannelSet
from act.ranking.granularity import units_of
from act_kernels import PAIR
from act_kernels.statistics import COUNT, M2, MEAN, SUM_ABS

MIXTURES = {
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, **ATTENTION, num_local_experts=4),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **SMALL, **ATTENTION, head_dim=8, num_local_experts=4, layer_types=["full_attention"] * 2
    ),
}


def mixture(family: str = "mixtral", seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(MIXTURES[family]()).eval()


def measured(space: ChannelSpace, counts: dict[str, tuple[int, int, int]] | None = None, seed: int = 0):
    """A pair profile filled by hand: donor, target and both counted 100 rows, or what ``counts`` says of a site."""
    moments = Moments(space, pair=True)
    generator = torch.Generator().manual_seed(seed)
    for site in space:
        block = moments.block(site.name)
        for side, count in enumerate((counts or {}).get(site.name, (100, 100, 100))):
            block[side, COUNT] = count
            block[side, [SUM_ABS, M2]] = (
                torch.rand(2, site.width, generator=generator, dtype=torch.float64).add_(1).mul_(count)
            )
            block[side, MEAN] = block[side, SUM_ABS] / max(count, 1)
    models = {side: ModelRead(side, side) for side in PAIR[:2]}
    corpus = CorpusRead(f"text {seed}", str(seed), count="answer", counted=100)
    return act.PairProfile(moments, Provenance(models=models, corpora=(corpus,)))


@pytest.fixture(scope="module")
def space() -> ChannelSpace:
    return ChannelSpace.from_model(mixture())


def sites_of(space: ChannelSpace, channels: torch.Tensor) -> dict[str, int]:
    return {site.name: len(rows) for site, rows in space.split(channels)}


@pytest.mark.parametrize("granularity", ["expert", "routed-expert"])
def test_the_best_experts_are_taken_whole(space, granularity):
    profile = measured(space)
    difference = profile.moments.arena[PAIR.index("difference"), SUM_ABS]
    for role in ("gate", "up", "down"):
        difference[space.site(f"model.layers.1.mlp.experts[2].{role}").channels] *= 10
    chosen = act.rank(profile, granularity=granularity, count=1)
    taken = {f"model.layers.1.mlp.experts[2].{role}": width for role, width in (("gate", 48), ("up", 48), ("down", 32))}
    router = {"model.layers.1.mlp.gate": 1} if granularity == "routed-expert" else {}
    assert sites_of(space, chosen.index) == {**router, **taken} and not chosen.inputs
    if router:
        assert space.channel("model.layers.1.mlp.gate", 2) in chosen.index
    assert chosen.rule.ranked == 2 * 4 * (128 + len(router))


@pytest.mark.parametrize("family", MIXTURES)
def test_a_whole_expert_is_all_that_makes_it(family):
    model = mixture(family)
    space = ChannelSpace.from_model(model)
    (units, _) = units_of(space, "routed-expert")
    index = units.channels_of(torch.tensor([3])).sort().values
    moved: dict[str, int] = {}
    for chosen in ChannelSet(space, index, torch.zeros(len(index))).rows():
        part = chosen.parameter.matrix(dict(model.named_parameters()))
        moved[chosen.parameter.name] = moved.get(chosen.parameter.name, 0) + part[chosen.rows].numel()
    wanted = {
        name: parameter.numel() // 4
        for name, parameter in model.named_parameters()
        if name.startswith("model.layers.0.mlp.")
    }
    assert moved == wanted


def test_a_channel_belongs_to_the_largest_unit_that_holds_it(space):
    kinds = {units.kind for units in units_of(space, ["expert", "neuron", "head", "channel"])}
    assert {"expert", "head", "router", "norm", "embed"} <= kinds and "neuron" not in kinds
    every = torch.cat([units.channels_of(torch.arange(len(units))) for units in units_of(space, ["expert", "channel"])])
    assert torch.equal(every.sort().values, torch.arange(len(space)))


def test_neurons_of_experts_have_a_gate_row_an_up_row_and_a_down_column(space):
    chosen = act.rank(measured(space), granularity="neuron", count=3)
    assert len(chosen) == 6 and sum(map(len, chosen.inputs.values())) == 3
    assert all(name.endswith("].down") for name in chosen.inputs)
    slices = {(one.parameter.name.rpartition(".")[2], one.parameter.dim) for one in chosen.rows()}
    assert slices == {("gate_up_proj", 0), ("down_proj", 1)}


def test_a_dense_model_has_no_experts(pair):
    for granularity in ("expert", "routed-expert"):
        with pytest.raises(
            act.ActError, match=f"granularity {granularity} ranks whole experts, but this model has none"
        ):
            act.rank(pair, granularity=granularity)


def test_names_of_experts_mean_what_they_say(space):
    profile = measured(space)
    chosen = act.rank(profile, top=1.0, include="model.layers.0.mlp.experts[3].*")
    assert sites_of(space, chosen.index) == {
        f"model.layers.0.mlp.experts[3].{role}": width for role, width in (("gate", 48), ("up", 48), ("down", 32))
    }
    name = "model.layers.1.mlp.experts[0].down"
    assert list(sites_of(space, act.rank(profile, top=1.0, include=name).index)) == [name]
    assert name not in sites_of(space, act.rank(profile, top=1.0, exclude=name).index)


def test_the_difference_of_weights_of_experts():
    donor, target = mixture("gpt-oss"), mixture("gpt-oss")
    with torch.no_grad():
        target.model.layers[0].mlp.experts.gate_up_proj[2, :, 5] += 2.0  # interleaved, outputs last: up of neuron 2
        target.model.layers[0].mlp.experts.down_proj_bias[1, 7] += 3.0
    space = ChannelSpace.from_model(donor)
    from act.ranking.weights import weight_diff

    found = weight_diff(donor, target)
    changed = {
        (site.name, int(row)): float(found[site.offset + row])
        for site, rows in space.split(found.nonzero().flatten())
        for row in rows
    }
    assert changed == {
        ("model.layers.0.mlp.experts[2].up", 2): pytest.approx(2.0 * 32**0.5),
        ("model.layers.0.mlp.experts[1].down", 7): pytest.approx(3.0),
    }


def few(space: ChannelSpace, expert: str, counts: tuple[int, int, int]) -> dict[str, tuple[int, int, int]]:
    return {site.name: counts for site in space if site.name.startswith(f"{expert}.")}


STARVED = "model.layers.0.mlp.experts[1]"


@pytest.mark.parametrize(
    ("counts", "score", "sure"),
    [
        ((100, 100, 31), "paired", False),  # rarely the same expert in both
        ((100, 100, 31), "mean-abs", True),
        ((100, 100, 32), "paired", True),
        ((31, 100, 32), "paired", True),
        ((31, 100, 100), "cohen-d", False),
        ((100, 5, 5), "welch-t", False),
        ((100, 0, 0), "mean-shift", False),
        ((5, 5, 5), "random", True),
    ],
)
def test_an_expert_that_saw_few_tokens_is_not_ranked(space, counts, score, sure):
    profile = measured(space, few(space, STARVED, counts))
    chosen = act.rank(profile, score, top=1.0)
    names = sites_of(space, chosen.index)
    assert any(name.startswith(STARVED) for name in names) == sure
    assert (chosen.rule.starved_channels, chosen.rule.starved_experts) == ((0, 0) if sure else (128, 1))
    assert not chosen.rule.unmeasured and chosen.rule.ranked == len(space) - (0 if sure else 128)
    assert chosen.rule.min_expert_tokens == (None if score == "random" else 32)
    assert ("experts of at least 32 tokens" in str(chosen.rule)) == (score != "random")


def test_the_threshold_is_the_callers(space):
    profile = measured(space, few(space, STARVED, (5, 5, 5)))
    assert act.rank(profile, top=1.0, min_expert_tokens=5).rule.starved_experts == 0
    assert act.rank(profile, top=1.0, min_expert_tokens=6).rule.starved_experts == 1
    assert act.rank(profile, top=1.0, min_expert_tokens=0).rule.ranked == len(space)
    with pytest.raises(act.ActError, match="min_expert_tokens is -1"):
        act.rank(profile, min_expert_tokens=-1)
    with pytest.raises(act.ActError, match="fewer than 101 counted tokens"):
        act.rank(profile, min_expert_tokens=101, include="*.experts*")


def test_an_expert_that_is_unsure_in_what_to_keep_is_not_ranked(space):
    ability, keep = measured(space), measured(space, few(space, STARVED, (9, 9, 9)), seed=1)
    assert act.rank(ability, top=1.0, keep=keep).rule.starved_experts == 1


def test_an_unsure_expert_does_not_set_the_scale_of_its_kind(space):
    sure, unsure = measured(space), measured(space, few(space, STARVED, (9, 9, 9)))
    unsure.moments.block(f"{STARVED}.up")[:, SUM_ABS] *= 1e9
    wanted, found = (act.rank(one, top=1.0, normalize="kind-mean") for one in (sure, unsure))
    assert found.scores.max() < 2 * wanted.scores.max()


def test_a_profile_says_which_experts_saw_few_tokens(space):
    counts = {**few(space, STARVED, (100, 100, 31)), **few(space, "model.layers.0.mlp.experts[2]", (0, 50, 0))}
    profile = measured(space, counts)
    sentence = (
        "2 of 8 experts saw fewer than 32 counted tokens in both models (1 saw none), most in "
        "model.layers.0.mlp.experts (2 of 4)"
    )
    found = FewTokens.of(profile)
    assert str(found) == sentence and sentence in profile._repr_html_()
    assert (found.to_json() | {"worst": None}) == {
        "experts": 8, "few": 2, "none": 1, "least": 32, "worst": None, "worst_few": 2, "worst_experts": 4, "both": True
    }  # fmt: skip
    assert str(FewTokens.of(measured(space))) == "each of 8 experts saw at least 32 counted tokens in both models"
    one = profile.site(f"{STARVED}.up")
    assert one.target.count.tolist() == [100] * 48 and one.difference.count.tolist() == [31] * 48


def test_a_kind_that_was_not_measured_starves_nobody(space):
    unread = {site.name: (0, 0, 0) for site in space if site.expert is not None and site.kind == "gate"}
    profile = measured(space, unread)
    assert FewTokens.of(profile).few == 0
    assert act.rank(profile, top=1.0).rule.unmeasured == {"gate": 2 * 4 * 48}


def test_the_command_line_says_which_experts_it_left_out(space, tmp_path):
    profile = measured(space, few(space, STARVED, (9, 9, 9)))
    profile.save(tmp_path / "pair.safetensors")
    arguments = ("rank", tmp_path / "pair.safetensors", "--output", tmp_path / "set.safetensors", "--force")
    result = act_profile(*arguments, "--top", "100%")
    assert "not ranked: 128 channels of 1 expert that fewer than 32 counted tokens" in result.stderr
    assert succeed(*arguments, "--min-expert-tokens", "9")["rule"]["starved_channels"] == 0
    assert ChannelSet.load(tmp_path / "set.safetensors").rule.min_expert_tokens == 9
    report = succeed("report", tmp_path / "pair.safetensors", "--output", tmp_path / "report")
    assert report["concentration"][0]["experts"]["sentence"].startswith("1 of 8 experts saw fewer than 32 counted")
    assert act_profile(*arguments, "--granularity", "expert", "--count", "9").returncode == 2


def test_experts_that_no_token_met_in_both_models_are_starved_not_unmeasured(space):
    alone = {site.name: (100, 100, 0) for site in space if site.expert is not None}
    pair = measured(space, alone)
    few = FewTokens.of(pair)
    assert few is not None and few.none == few.few == few.experts
    rule = act.rank(pair, count=1).rule
    assert rule.starved_experts == few.experts


def test_profiles_of_all_tokens_and_of_routed_ones_are_not_compared(space):
    routed, every = measured(space), measured(space, seed=1)
    settings = replace(every.provenance.settings, moe_all_experts=True)
    every = act.PairProfile(every.moments, replace(every.provenance, settings=settings))
    with pytest.raises(act.ActError, match="--moe-all-experts"):
        act.rank(routed, keep=every, count=1)

"""Heads and neurons are what the model computes, or are refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from support import CONFIGS, random_batches, tiny_model
from tiny_families import tiny

import act
from act.models.blocks import Attention, Mlp, Turned
from act.models.channels import ChannelSpace
from act.ranking.granularity import units_of
from act.taps.probed import Probed
from act.taps.verified import codes

SHARED = {
    "diffllama": "heads share their values",
    "doge": "the mask is made of all values",
}
"""Families whose heads are none, and why."""


def verified(model: torch.nn.Module) -> ChannelSpace:
    return Probed.of(model, ChannelSpace.from_model(model)).space


@pytest.mark.parametrize("units", [1, 2, 3, 14, 70, 5000])
def test_some_trial_changes_one_of_two_units_only(units):
    code = codes(units).T.int()
    assert len(code.unique(dim=0)) == units
    assert len(code.sum(1).unique()) == 1  # so that none is a part of another
    assert units < 5000 or code.shape[1] == 15


NORMED = ("olmo2", "bitnet")
"""Families with a norm of all heads: of queries and keys, or of what the last linears read."""


@pytest.mark.parametrize("family", [*CONFIGS, "gpt_neox", "opt", "gpt_oss", "gemma3_text", *NORMED])
def test_blocks_of_a_model_hold(family):
    model = tiny_model(family) if family in CONFIGS else tiny(family)
    static = ChannelSpace.from_model(model)
    space = verified(model)
    assert space.refused == {} and [*map(type, space.blocks)] == [*map(type, static.blocks)]
    assert {Attention, Mlp} <= {*map(type, space.blocks)}
    assert all("forward" not in vars(module) and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu2"])
def test_as_many_neurons_as_a_real_model_has_hold_in_half_precision(activation, dtype):
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=8192,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=99,
        hidden_act=activation,
    )
    assert verified(transformers.LlamaForCausalLM(config).to(dtype).eval()).refused == {}


@pytest.mark.parametrize("family", SHARED)
def test_heads_that_change_each_other_are_refused_with_the_reason(family, tmp_path):
    profile = act.profile(tiny(family), random_batches(1))
    assert [type(block) for block in profile.space.blocks] == [Turned, Turned, Mlp] * 2
    profile.save(tmp_path / "profile")
    again = act.load(tmp_path / "profile")
    with pytest.raises(act.ActError, match=r"no head of this model can be ranked: in .*self_attn, rows of .* change"):
        units_of(again.space, "head")
    assert len(units_of(again.space, "neuron")) == 2
    paired = [units for units in units_of(again.space, "rotary-pair") if units.size == 2]
    assert [units.kind for units in paired] == ["q", "k"] * 2


def test_parts_of_a_projection_in_another_order_are_no_heads():
    model = tiny("gpt_neox")
    space = ChannelSpace.from_model(model)
    starts = {"q": 0, "k": 32, "v": 64}
    sites = [
        replace(site, columns=site.columns and (starts[site.kind], starts[site.kind] + 32, 1, 1)) for site in space
    ]
    found = Probed.of(model, replace(space, sites=tuple(sites))).space
    assert found.refused.keys() == {block.o for block in space.blocks if isinstance(block, Attention)}


@pytest.mark.parametrize("fault", ["heads of half the width", "keys of another layer"])
def test_a_block_that_the_model_does_not_have_is_refused(fault):
    model = tiny_model("llama")
    space = ChannelSpace.from_model(model)
    wrong = {
        "heads of half the width": lambda block: replace(block, heads=8, groups=4, head_dim=4),
        "keys of another layer": lambda block: replace(
            block, k=(other := block.k.replace("0", "1")), widths={block.q: 32, other: 16, block.v: 16}
        ),
    }[fault]
    blocks = (wrong(space.blocks[0]), *space.blocks[1:])
    found = Probed.of(model, replace(space, blocks=blocks)).space
    ((reader, reason),) = found.refused.items()
    assert reader == space.blocks[0].o and found.blocks[-3:] == Probed.of(model, space).space.blocks[1:]
    assert "would be" in reason or "did not run model.layers" in reason


def test_some_heads_that_are_refused_are_said(caplog):
    space = ChannelSpace.from_model(tiny_model("llama"))
    model = tiny_model("llama")
    blocks = (replace(space.blocks[0], heads=8, groups=4, head_dim=4), *space.blocks[1:])
    found = Probed.of(model, replace(space, blocks=blocks)).space
    assert len(units_of(found, "head")) == 1 and "1 modules have no heads that can be ranked" in caplog.text

"""Neurons, heads and rotary pairs: what belongs together, by what the model computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from support import ATTENTION, CONFIGS, SMALL, random_batches, tiny_model
from tiny_families import families, tiny

import act
from act.models.blocks import Attention, Mlp
from act.models.channels import ChannelSpace
from act.ranking.channel_set import ChannelSet
from act.ranking.granularity import units_of
from act.taps.probed import Probed

MORE = {
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL, num_attention_heads=4, max_position_embeddings=256),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=300),
    "falcon": lambda: transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, vocab_size=300,
        new_decoder_architecture=True,
    ),
    "cohere": lambda: transformers.CohereConfig(**SMALL, **ATTENTION),
}  # fmt: skip


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
T5_AND_BERT = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, vocab_size=300)).eval(),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=300)
    ).eval(),
    "gated t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=300, feed_forward_proj="gated-gelu"
        )
    ).eval(),
}
OTHERS = ["gptj", "codegen", "deepseek_v3", "qwen3_next", "modernbert-decoder", "ctrl", "afmoe", *T5_AND_BERT]
"""Families whose heads or neurons lie in places of their own."""


@pytest.fixture(autouse=True)
def more_families(monkeypatch):
    for family, config in MORE.items():
        monkeypatch.setitem(CONFIGS, family, config)


def input_of(model: torch.nn.Module, module: str) -> torch.Tensor:
    seen = []
    handle = model.get_submodule(module).register_forward_hook(lambda _, args, output: seen.append(args[0].clone()))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        model(input_ids=ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))
    handle.remove()
    return seen[0].flatten(0, -2)


def scale_rows(model: torch.nn.Module, space: ChannelSpace, rows: dict[str, torch.Tensor], unit: int) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, table in rows.items():
            for part in space.site(name).parameters:
                part.whole.part_of(parameters[part.name])[part.places(table[unit])] *= 1.5


@pytest.mark.parametrize("family", [*CONFIGS, *MORE])
def test_rows_of_a_unit_feed_its_columns_and_no_others(family):
    model = tiny_model(family)
    space = ChannelSpace.from_model(model)
    assert [type(block) for block in space.blocks] == [Attention, Mlp] * 2
    for block in space.blocks[:2]:
        ((reader, columns),) = block.inputs().items()
        state = {name: parameter.clone() for name, parameter in model.named_parameters()}
        before = input_of(model, reader)
        assert sorted(columns.flatten().tolist()) == list(range(before.shape[-1]))
        for unit in range(0, len(columns), max(1, len(columns) // 3)):
            scale_rows(model, space, block.rows(), unit)
            changed = (input_of(model, reader) != before).any(0).nonzero().flatten().tolist()
            assert changed and set(changed) <= set(columns[unit].tolist())
            model.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    "family",
    [
        *OTHERS,
        *(
            pytest.param(name, marks=[pytest.mark.slow, pytest.mark.thorough])
            for name in families()
            if name not in OTHERS
        ),
    ],
)
def test_units_of_a_family_are_what_its_model_computes(family):
    """Tried on the weights themselves, where the probe tries outputs."""
    try:
        model = T5_AND_BERT[family]() if family in T5_AND_BERT else tiny(family)
        space = Probed.of(model, ChannelSpace.from_model(model)).space
    except Exception as error:
        if family in OTHERS:
            raise
        pytest.skip(f"no tiny model: {error}")
    blocks = {}
    for block in space.blocks:
        if isinstance(block, (Attention, Mlp)) and all(space.site(name).expert is None for name in block.rows()):
            blocks.setdefault((type(block), tuple(len(name.split(".")) for name in block.inputs())), block)
    assert {Attention, Mlp} <= {kind for kind, _ in blocks} or family not in OTHERS
    for block in blocks.values():
        ((reader, columns),) = block.inputs().items()
        state = {name: parameter.clone() for name, parameter in model.named_parameters()}
        before = input_of(model, reader)
        assert sorted(columns.flatten().tolist()) == list(range(before.shape[-1]))
        scale_rows(model, space, block.rows(), 1)
        change = (input_of(model, reader) - before).abs().amax(0)
        changed = (change > 1e-5 * before.abs().max()).nonzero().flatten().tolist()
        assert changed and set(changed) <= set(columns[1].tolist())
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("family", [*CONFIGS, *MORE])
def test_every_row_belongs_to_one_unit(family):
    space = ChannelSpace.from_model(tiny_model(family))
    units = units_of(space, ["neuron", "head"])
    channels = torch.cat([one.channels.flatten() for one in units])
    assert len(channels.unique()) == len(channels)
    expected = {"q", "k", "v", "qkv", "gate", "up", "gate_up"}
    assert len(channels) == sum(site.width for site in space if site.kind in expected)


def test_grouped_heads_stay_together():
    space = ChannelSpace.from_model(tiny_model("llama"))
    head = units_of(space, "head")[0]
    assert head.channels.shape == (2, 16 + 8 + 8) and head.inputs["model.layers.0.self_attn.o_proj"].shape == (2, 16)


def test_rotary_pairs():
    half, turned = (ChannelSpace.from_model(tiny_model(family)).blocks[0] for family in ("llama", "cohere"))
    assert (half.rotary, turned.rotary) == ("half", "interleaved")
    assert next(half.pairs())[1][:2].tolist() == [[0, 4], [1, 5]]
    assert next(turned.pairs())[1][:2].tolist() == [[0, 1], [2, 3]]
    partial = ChannelSpace.from_model(tiny_model("phi")).blocks[0]
    assert dict(partial.pairs())[partial.k].tolist()[:3] == [[0, 2], [1, 3], [8, 10]]
    space = ChannelSpace.from_model(tiny_model("phi"))
    assert sum(len(one) * one.size for one in units_of(space, "rotary-pair")) == len(space)


def test_whole_neurons_carry_their_columns(pair, tmp_path):
    channels = act.rank(pair, count=5, granularity="neuron")
    assert len(channels) == 10 and sum(map(len, channels.inputs.values())) == 5
    score = pair.mean_abs_diff
    mean = torch.cat([score[one.channels].mean(1) for one in units_of(pair.space, "neuron")])
    assert sorted(channels.scores.unique().tolist()) == sorted(score[channels.index].unique().tolist())
    chosen = mean.topk(5).indices
    assert {int(unit) % 48 for unit in chosen} == {int(c) for columns in channels.inputs.values() for c in columns}
    channels.save(tmp_path / "set")
    again = ChannelSet.load(tmp_path / "set")
    assert {name: columns.tolist() for name, columns in again.inputs.items()} == {
        name: columns.tolist() for name, columns in channels.inputs.items()
    }


@pytest.mark.parametrize("granularity", ["channel", "rotary-pair", "neuron", "head", ["neuron", "head", "channel"]])
@pytest.mark.parametrize("top", [0.1, 1.0])
def test_no_value_lies_in_two_parts(models, pair, granularity, top):
    channels = act.rank(pair, top=top, granularity=granularity)
    touched = {name: torch.zeros_like(parameter) for name, parameter in models[0].named_parameters()}
    for chosen in channels.rows():
        touched[chosen.parameter.name].movedim(chosen.parameter.dim, 0)[chosen.rows] += 1
        assert (chosen.rows.diff() > 0).all()
    assert max(count.max() for count in touched.values()) == 1
    if top == 0.1:
        assert len(channels) <= max(32, round(0.1 * channels.rule.ranked))  # at least one head, of 32 channels


def test_all_heads_and_neurons_are_all_of_attention_and_mlp(models, pair):
    channels = act.rank(pair, top=1.0, granularity=["neuron", "head"])
    touched = {name: 0 for name, _ in models[0].named_parameters()}
    shapes = {name: parameter.shape for name, parameter in models[0].named_parameters()}
    for chosen in channels.rows():
        shape = shapes[chosen.parameter.name]
        touched[chosen.parameter.name] += len(chosen.rows) * (shape.numel() // shape[chosen.parameter.dim])
    whole = {name for name, count in touched.items() if count == shapes[name].numel()}
    assert whole == {name for name in shapes if "proj" in name} and sum(count > 0 for count in touched.values()) == 14


def test_rows_and_columns_of_one_linear_are_refused(pair):
    down = pair.space.site("model.layers.0.mlp.down_proj")
    with pytest.raises(act.ActError, match="cross in one tensor"):
        ChannelSet(pair.space, torch.tensor([down.offset]), torch.ones(1), inputs={down.name: torch.tensor([0])})


def test_a_model_of_unknown_layout_is_refused(pair):
    bare = replace(pair.space, blocks=())
    for granularity, match in (("head", "no head"), ("neuron", "no neuron"), ("rotary-pair", "no rotary embedding")):
        with pytest.raises(act.ActError, match=match):
            units_of(bare, granularity)
    with pytest.raises(act.ActError, match="of an earlier version, which did not note heads"):
        units_of(ChannelSpace(pair.space.sites), "head")
    with pytest.raises(act.ActError, match="granularity is 'layer'; expected one of"):
        units_of(bare, "layer")
    with pytest.raises(act.ActError, match="no rotary embedding"):
        units_of(ChannelSpace.from_model(tiny_model("gpt2")), "rotary-pair")


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "phi", "gpt_neox"])
def test_a_transfer_moves_rows_and_columns_and_comes_back(family):
    donor, target = tiny_model(family), tiny_model(family, seed=1)
    channels = act.rank(act.profile_pair(donor, target, random_batches()), count=3, granularity=["neuron", "head"])
    before = {name: parameter.clone() for name, parameter in target.named_parameters()}
    wanted = dict(donor.named_parameters())
    patch = act.transfer(donor, target, channels, 1.0)
    expected = {name: parameter.clone() for name, parameter in before.items()}
    for chosen in channels.rows():
        old, new = (chosen.parameter.part_of(weights[chosen.parameter.name]) for weights in (expected, wanted))
        old[chosen.rows] = new[chosen.rows].detach()
    assert channels.inputs and {chosen.parameter.name for chosen in channels.rows()} >= {
        channels.space.site(name).inputs.name for name in channels.inputs
    }
    assert all(torch.equal(parameter, expected[name]) for name, parameter in target.named_parameters())
    assert sum(len(chosen.rows) for chosen in channels.rows()) == sum(len(change.rows) for change in patch.changes)
    patch.revert(target)
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.named_parameters())


def test_a_column_has_the_score_of_its_unit(pair):
    channels = act.rank(pair, count=4, granularity="neuron")
    for chosen in channels.rows():
        if chosen.parameter.dim == 1:
            gate, up = (pair.space.site(chosen.site.name.replace("down", name)) for name in ("gate", "up"))
            score = pair.mean_abs_diff
            expected = (score[gate.offset + chosen.rows] + score[up.offset + chosen.rows]) / 2
            torch.testing.assert_close(chosen.scores, expected)


def test_units_do_not_move_columns_that_are_excluded(pair):
    for word, granularity in (("down", "neuron"), ("*.layers.1.mlp.down_proj", ["neuron", "channel"]), ("o", "head")):
        with pytest.raises(act.ActError, match=r"(down|o)_proj is excluded, but its columns move with each (neuron|h)"):
            act.rank(pair, count=3, granularity=granularity, exclude=[word])
    channels = act.rank(pair, count=40, granularity="neuron", exclude=["*.layers.1.*", "o"])
    assert set(channels.inputs) == {"model.layers.0.mlp.down_proj"}


def test_a_part_of_a_unit_is_not_ranked_and_said_so(pair):
    with pytest.raises(act.ActError, match=r"no whole neuron can be ranked.*gate and up"):
        act.rank(pair, granularity="neuron", include=["gate"])
    with pytest.raises(act.ActError, match="no whole head or neuron can be ranked"):
        act.rank(pair, granularity=["neuron", "head"], include=["gate", "q"])

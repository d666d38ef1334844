from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from support import ATTENTION, CONFIGS, SMALL, tiny_model
from tiny_families import shapes
from torch import nn

from act.core.errors import ActError
from act.models.channels import ChannelSpace

SPACE = ChannelSpace.from_model(tiny_model("llama"))


@pytest.mark.parametrize("family", CONFIGS)
def test_every_parameter_is_behind_exactly_one_channel(family):
    model = tiny_model(family)
    space = ChannelSpace.from_model(model)
    assert space.uncovered == ()
    parameters = dict(model.named_parameters())
    held = {name: torch.zeros(parameter.shape) for name, parameter in parameters.items()}
    for site in space:
        for part in site.parameters:
            assert part.part_of(parameters[part.name]).shape[0] == site.width
            rows = part.places(torch.arange(site.width))
            part.whole.part_of(held[part.name]).index_add_(0, rows, torch.ones(part.part_of(held[part.name]).shape))
    assert all((counts == 1).all() for counts in held.values())
    assert len(space) == sum(site.width for site in space)


def test_kinds_and_layers_of_a_llama():
    by_name = {site.name: site for site in SPACE}
    assert by_name["model.embed_tokens"].kind == "embed" and by_name["model.embed_tokens"].layer is None
    assert by_name["model.layers.1.mlp.gate_proj"].kind == "gate" and by_name["model.layers.1.mlp.gate_proj"].layer == 1
    assert by_name["model.layers.0.input_layernorm"].kind == "norm"
    assert by_name["lm_head"].kind == "head" and by_name["lm_head"].width == 300
    assert {site.kind for site in SPACE} == {"embed", "q", "k", "v", "o", "gate", "up", "down", "norm", "head"}


@pytest.mark.parametrize(("tied", "owner", "other"), [("head", "lm_head", "embed"), ("embed", "embed", "lm_head")])
def test_a_tied_tensor_belongs_to_one_site(tied, owner, other):
    space = ChannelSpace.from_model(tiny_model("llama-tied-bias"), tied=tied)
    sites = {"embed": space.site("model.embed_tokens"), "lm_head": space.site("lm_head")}
    assert sites[owner].parameters and sites[owner].tied_to is None
    assert not sites[other].parameters and sites[other].tied_to == sites[owner].name
    assert sites["embed"].width == 32 and sites["lm_head"].width == 300


@given(st.integers(0, len(SPACE) - 1))
def test_flat_index_and_site_row_are_inverse(channel):
    site, row = SPACE.locate(channel)
    assert 0 <= row < site.width
    assert SPACE.channel(site.name, row) == channel


@given(st.sets(st.integers(0, len(SPACE) - 1)))
def test_split_covers_every_chosen_channel_once(chosen):
    index = torch.tensor(sorted(chosen), dtype=torch.int64)
    parts = [rows + site.offset for site, rows in SPACE.split(index)]
    assert torch.equal(torch.cat([index[:0], *parts]), index)


@pytest.mark.parametrize("channel", [-1, len(SPACE)])
def test_an_index_outside_the_space_is_refused(channel):
    with pytest.raises(IndexError, match="outside"):
        SPACE.locate(channel)


def test_json_round_trip():
    space = ChannelSpace.from_model(tiny_model("llama-tied-bias"))
    again = ChannelSpace.from_json(space.to_json())
    assert again == space


def test_the_first_difference_is_named():
    other = ChannelSpace.from_model(tiny_model("qwen2"))
    difference = SPACE.first_difference(other)
    assert difference.endswith(
        "q_proj is made by other parameters (model.layers.0.self_attn.q_proj.bias in one model only)"
    )
    assert "(tied to lm_head in one model only)" in SPACE.first_difference(
        ChannelSpace.from_model(tiny_model("llama-tied-bias"))
    )
    assert SPACE.first_difference(ChannelSpace.from_model(tiny_model("llama", seed=5))) is None


def test_parameters_that_no_site_covers_are_listed():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.experts = nn.Parameter(torch.zeros(2, 3, 4))

    space = ChannelSpace.from_model(Odd())
    assert space.uncovered == ("experts",)
    assert repr(space) == "<ChannelSpace: 4 channels at 1 site in 0 layers, 1 parameter uncovered>"


def test_its_repr_counts_what_it_holds():
    assert repr(SPACE) == f"<ChannelSpace: {len(SPACE):,} channels at 21 sites in 2 layers>"
    assert f"<tr><td>q<td>2<td>{2 * 32}" in SPACE._repr_html_()


def test_a_model_without_channels_is_refused():
    with pytest.raises(ActError, match="no linear, norm or embedding"):
        ChannelSpace.from_model(nn.ReLU())


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_without_values_has_the_same_space(family):
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
        space = ChannelSpace.from_model(empty)
    assert space.to_json() == ChannelSpace.from_model(tiny_model(family)).to_json()


def test_excluding_every_kind_leaves_nothing():
    space = ChannelSpace.from_model(tiny_model("gpt2"))
    with pytest.raises(ActError, match="every module kind is excluded"):
        space.without({site.kind for site in space})


BIDIRECTIONAL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "embed", "head"),
    [
        (transformers.BioGptConfig(**BIDIRECTIONAL, vocab_size=300), "biogpt.embed_tokens", "output_projection"),
        (
            transformers.BertConfig(**BIDIRECTIONAL, vocab_size=300, is_decoder=True),
            "bert.embeddings.word_embeddings",
            "cls.predictions.decoder",
        ),
        (transformers.CTRLConfig(n_embd=32, dff=48, n_layer=1, n_head=4, vocab_size=300), "transformer.w", "lm_head"),
        (
            transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=300),
            "backbone.embeddings",
            "lm_head",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_embedding_and_the_head_are_those_that_the_model_gives(config, embed, head):
    space = ChannelSpace.from_model(transformers.AutoModelForCausalLM.from_config(config))
    kinds = {kind: [site.name for site in space if site.kind == kind] for kind in ("embed", "head")}
    assert kinds == {"embed": [embed], "head": [head]}


def test_linears_that_are_called_the_same_are_told_apart_by_what_is_around_them():
    config = transformers.BertConfig(**BIDIRECTIONAL, vocab_size=300)
    space = ChannelSpace.from_model(transformers.BertModel(config))
    found = {site.kind: site.name for site in space if "dense" in site.name}
    layer = "encoder.layer.0"
    assert found == {
        "o": f"{layer}.attention.output.dense",
        "up": f"{layer}.intermediate.dense",
        "down": f"{layer}.output.dense",
        "dense": "pooler.dense",
    }


def test_what_is_called_a_head_and_gives_no_tokens_is_none():
    model = tiny_model("llama")
    model.model.layers[0].lm_head = nn.Linear(32, 7)
    assert ChannelSpace.from_model(model).site("model.layers.0.lm_head").kind == "lm_head"


def test_norms_of_all_heads_go_with_the_queries_and_keys_that_they_scale():
    config = transformers.CohereConfig(**SMALL, **ATTENTION, use_qk_norm=True)
    with torch.device("meta"):
        space = ChannelSpace.from_model(transformers.AutoModelForCausalLM.from_config(config))
    scaling = {site.name.removeprefix("model.layers.0.self_attn."): site for site in space if site.scales}
    heads = {name: scaling[f"{name}_norm.weight"].width for name in "qk"}
    assert heads == {"q": 4, "k": 2} and space.coverage.share == 1
    assert scaling["q_norm.weight"].scales == "model.layers.0.self_attn.q_proj"


def test_an_output_embedding_that_is_no_module_is_no_head():
    model = shapes("perceiver (masked)")  # gives the tensor that its queries are
    assert "head" not in {site.kind for site in ChannelSpace.from_model(model)}

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CONFIGS, chosen, state, tiny_model

import act
from act.models.channels import ChannelSpace
from act.ranking.channel_set import ChannelSet
from act.ranking.rule import Rule

MODELS = {family: (tiny_model(family), tiny_model(family, seed=1)) for family in ("llama", "llama-tied-bias", "gpt2")}


@pytest.mark.parametrize("family", CONFIGS)
def test_exactly_the_chosen_rows_move(family):
    donor, target = tiny_model(family), tiny_model(family, seed=1)
    space = ChannelSpace.from_model(target)
    channels = chosen(space, 0.2)
    before, source = state(target), state(donor)
    act.transfer(donor, target, channels, strength=0.4)
    touched = {part: rows for site, rows in space.split(channels.index) for part in site.parameters}
    for name, after in state(target).items():
        expected = before[name].double()
        for part, rows in touched.items():
            if part.name == name:
                old, new = before[name].double(), source[name].double()
                blended = old + 0.4 * (new - old)
                rows = rows + (part.span[0] if part.span else 0)  # both families hold q, k and v in blocks
                expected.index_copy_(part.dim, rows, blended.index_select(part.dim, rows))
        torch.testing.assert_close(after.double(), expected, rtol=2e-7, atol=1e-8)
    assert torch.equal(
        state(donor)["model.embed_tokens.weight" if family != "gpt2" else "transformer.wte.weight"],
        source["model.embed_tokens.weight" if family != "gpt2" else "transformer.wte.weight"],
    )


@settings(deadline=None, max_examples=25)
@given(
    family=st.sampled_from(sorted(MODELS)),
    share=st.floats(0.001, 1),
    strength=st.floats(0, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 100),
)
def test_reverting_gives_back_the_original_bytes(family, share, strength, dtype, seed):
    donor, target = (copy.deepcopy(model).to(dtype) for model in MODELS[family])
    before = state(target)
    patch = act.transfer(donor, target, chosen(ChannelSpace.from_model(target), share, seed), strength)
    patch.revert(target)
    assert all(torch.equal(parameter, before[name]) for name, parameter in state(target).items())


def test_strength_one_on_all_channels_makes_the_target_the_donor():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    act.transfer(donor, target, chosen(ChannelSpace.from_model(target), 1.0), strength=1.0)
    assert all(torch.equal(a, b) for a, b in zip(state(donor).values(), state(target).values(), strict=True))


def test_a_donor_of_another_dtype_is_cast():
    donor, target = tiny_model("llama", dtype=torch.float32), tiny_model("llama", seed=1, dtype=torch.bfloat16)
    act.transfer(donor, target, chosen(ChannelSpace.from_model(target), 1.0), strength=1.0)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(state(donor).values(), state(target).values(), strict=True))


def test_reverting_a_model_that_changed_since_is_refused():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    patch = act.transfer(donor, target, chosen(ChannelSpace.from_model(target), 0.3))
    with pytest.raises(act.ActError, match="holds the values from after the transfer already, so there is nothing to"):
        patch.apply(target)
    with torch.no_grad():
        target.lm_head.weight.add_(1)
    held = state(target)
    with pytest.raises(act.ActError, match="does not hold the values that the transfer wrote: it was changed since"):
        patch.revert(target)
    assert all(torch.equal(parameter, held[name]) for name, parameter in state(target).items())
    with pytest.raises(act.ActError, match="holds the values from before the transfer, so there is nothing to revert"):
        patch.revert(tiny_model("llama", seed=1))


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_outside_its_range_is_refused(strength):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    with pytest.raises(act.ActError, match="expected 0"):
        act.transfer(donor, target, chosen(ChannelSpace.from_model(target), 0.3), strength)


@pytest.mark.parametrize("overlap", ["sum", "mean"])
@pytest.mark.parametrize("donors", [1, 2])
def test_a_strength_that_leaves_the_range_of_the_weights_is_refused(donors, overlap):
    target = tiny_model("llama", seed=9)
    channels, before = chosen(ChannelSpace.from_model(target), 0.3), state(target)
    given = [act.Donor(tiny_model("llama", seed=seed), channels, 1e45) for seed in range(donors)]
    with pytest.raises(act.ActError, match=r"strength 1e\+45 takes values of the target out of the range"):
        act.transfer_many(given, target, overlap)
    act.transfer_many([replace(donor, strength=0.0) for donor in given], target, overlap)
    assert all(torch.equal(parameter, before[name]) for name, parameter in state(target).items())


def test_a_set_made_for_other_models_is_refused():
    donor, target, other = (tiny_model("llama", seed=seed) for seed in range(3))
    batches = [{"input_ids": torch.arange(20)[None]}]
    channels = act.rank(act.profile_pair(donor, target, batches))
    with pytest.raises(act.ActError, match="chosen for the target"):
        act.transfer(donor, other, channels)
    with pytest.raises(act.ActError, match="donor and target look swapped: the target given is the donor that"):
        act.transfer(target, donor, channels)
    with pytest.raises(act.ActError, match="give the donor as it was profiled"):
        act.transfer(other, target, channels)
    with pytest.raises(act.ActError, match="of another architecture"):
        act.transfer(tiny_model("gpt2"), tiny_model("gpt2", seed=1), channels)
    act.transfer(donor, target, channels)


def test_quantised_weights_are_refused():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    channels = chosen(ChannelSpace.from_model(target), 0.3)
    target.lm_head.weight = torch.nn.Parameter(target.lm_head.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(act.ActError, match=r"lm_head\.weight of the target is torch\.int8"):
        act.transfer(donor, target, channels)


def test_a_strength_pattern_that_matches_nothing_is_refused():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    space = ChannelSpace.from_model(target)
    held = state(target)
    for strength, message in (
        ({"*.mpl.*": 0.4}, r"the strength pattern '\*.mpl.\*' matches none of the chosen sites"),
        ({"*.mlp.*": 0.4, "*.mpl.*": 0.4, "*": 0.2}, r"'\*.mpl.\*'"),
        ({}, "strength is {}; expected a number"),
    ):
        with pytest.raises(act.ActError, match=message):
            act.transfer(donor, target, chosen(space, 0.3), strength)
    assert all(torch.equal(parameter, held[name]) for name, parameter in state(target).items())
    mlp = space.site("model.layers.0.mlp.up_proj").channels
    only = ChannelSet(space, torch.arange(mlp.start, mlp.stop), torch.ones(mlp.stop - mlp.start).double())
    with pytest.raises(act.ActError, match=r"such as model.layers.0.mlp.up_proj"):
        act.transfer(donor, target, only, {"*.self_attn.*": 0.4})
    by_pattern = {"*.self_attn.*": 0.1, "*.mlp.*": 1.0}  # one of the donors has channels of each
    donors = [act.Donor(donor, one, by_pattern) for one in (only, chosen(space, 0.3))]
    act.transfer_many(donors, target, "first")
    assert torch.equal(target.model.layers[0].mlp.up_proj.weight, donor.model.layers[0].mlp.up_proj.weight)


def test_channels_of_other_tokens_are_left_out_unless_aligned():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    channels = chosen(ChannelSpace.from_model(target), 1.0)
    held = state(target)
    giver = act.Donor(donor, channels, 1.0, token_difference="token 3 is 'a' to the donor's tokenizer")
    assert giver.moves_tokens
    patch = act.transfer_many([giver], target)
    assert len(patch.notes) == 2 and all(
        "token 3 is 'a'" in note and "align the tokens" in note for note in patch.notes
    )
    same = {name for name, parameter in state(target).items() if torch.equal(parameter, held[name])}
    assert same == {"lm_head.weight", "model.embed_tokens.weight"}
    patch.revert(target)
    ids = torch.arange(300)
    act.transfer_many([replace(giver, tokens=(ids, ids))], target)
    assert torch.equal(target.lm_head.weight, donor.lm_head.weight)


def test_a_patch_shows_itself_in_one_line_and_as_an_escaped_table():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    space = ChannelSpace.from_model(target)
    norm = space.site("model.norm")
    channels = ChannelSet(space, torch.arange(norm.offset, norm.offset + 3), torch.zeros(3).double())
    patch = act.transfer_many([act.Donor(donor, channels, name="<b>ase")], target)
    before = patch.provenance.before
    assert repr(patch) == f"<Patch: 3 rows of 1 parameter, 12 bytes of float32, from <b>ase to {before}>"
    assert "<td>&lt;b&gt;ase</td><td>3</td><td>0.4</td>" in patch._repr_html_()


def test_tokens_of_a_path_are_refused():
    with pytest.raises(act.ActError, match="the tokenizer of the donor is of type str; expected a tokenizer, such as"):
        act.shared_tokens("a/folder", "another")


def test_a_donor_is_shown_in_a_line():
    model = tiny_model("llama")
    channels = chosen(ChannelSpace.from_model(model), 0.1)
    size = f"{len(channels)} channels at strength 0.4>"
    assert repr(act.Donor(model, channels)) == f"<Donor LlamaForCausalLM: {size}"
    assert repr(act.Donor("base", channels)) == f"<Donor base: {size}"
    assert repr(act.Donor("base", channels, name="maths")) == f"<Donor maths: {size}"


def test_a_rule_says_which_modules_it_ranked():
    head, rest = Rule("paired", top=0.05, include=("head",)), Rule("paired", top=0.05, exclude=("head", "embed"))
    assert (str(head), str(rest)) == ("paired, top 5%, among head", "paired, top 5%, without head, embed")

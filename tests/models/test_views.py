"""Models under the names of the language model inside them: vision-language models, adapters, heads."""

from __future__ import annotations

import pytest
import torch
import transformers
from multimodal import FAMILIES, config_of, multimodal, of_text, randomised
from support import random_batches, state, tiny_model
from tiny_families import small
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import act
from act.models.channels import ChannelSpace
from act.models.common import common_space, same_names
from act.models.fingerprint import fingerprint
from act.models.views import language_view, original


@pytest.mark.parametrize("family", FAMILIES.split())
def test_the_language_model_has_the_names_of_the_model_of_text_alone(family):
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config_of(family))
        config = model.config.get_text_config()
        known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        alone = transformers.AutoModelForCausalLM.from_config(config) if known else None
    view = language_view(model)
    assert language_view(view) is view and original(view) is model
    assert {*view.parameters()} == {*model.parameters()}
    for name, parameter in model.named_parameters():
        assert view.get_parameter(view.name_of(name)) is parameter
    names = [name for name, _ in view.named_parameters()]
    if alone:
        beside = [name for name, _ in view.named_parameters(recurse=False)]
        assert names[len(beside) :][: len(dict(alone.named_parameters()))] == [*dict(alone.named_parameters())]
    else:
        assert names[0].startswith("model.") and "lm_head.weight" in names
    assert type(view.config) is type(config) and type(view).__name__ == type(model).__name__
    assert view.dtype == model.dtype and view.get_input_embeddings() is model.get_input_embeddings()


def test_a_model_of_text_is_its_own_view():
    for family in ("llama", "gpt2"):
        model = tiny_model(family)
        assert language_view(model) is model
    assert language_view(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "mllama"])
def test_the_text_part_is_measured_as_plain_hooks_see_it(family):
    model = multimodal(family)
    batch = random_batches(1, vocabulary=200)
    profile = act.profile(model, batch)
    names = {module: name for name, module in language_view(model).named_modules()}
    outputs = {}

    def note(module, args, output):
        outputs[names[module]] = output.clone() if isinstance(output, torch.Tensor) else None

    handles = [module.register_forward_hook(note) for module in names if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        model(input_ids=batch[0]["input_ids"], attention_mask=batch[0]["attention_mask"])
    for handle in handles:
        handle.remove()
    read = [site for site in profile.space if site.kind in "qkvo" or site.kind in ("up", "down", "head")]
    text = [site for site in read if outputs.get(site.name) is not None and (profile.count[site.channels] > 0).all()]
    assert len(text) > 7
    mask = batch[0]["count_mask"] & batch[0]["attention_mask"].bool()
    for site in text:
        rows = outputs[site.name].view(*mask.shape, -1)[mask].double()
        torch.testing.assert_close(profile.site(site.name).mean, rows.mean(0), rtol=1e-5, atol=1e-7)
    unread = [site for site in profile.space if site.name.startswith(language_view(model).beside)]
    assert unread and not any(profile.count[site.channels].any() for site in unread)


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_a_text_donor_fits_a_multimodal_target(family):
    donor, target = of_text(family), multimodal(family, 1)
    pair = act.profile_pair(donor, target, random_batches(vocabulary=200))
    assert [site.name for site in pair.space] == [site.name for site in ChannelSpace.from_model(donor)]
    assert any("vision_tower" in name for name in pair.space.coverage.uncovered)
    channels = act.rank(pair, top=0.3)
    view = language_view(target)
    wanted = state(view)
    for site, rows in channels.space.split(channels.index):
        for part in site.parameters:
            part.part_of(wanted[part.key])[rows] = part.part_of(donor.get_parameter(part.key).detach())[rows]
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    patch = act.transfer(donor, target, channels, 1.0)
    assert all(torch.equal(wanted[name], parameter) for name, parameter in view.named_parameters())
    assert "vision_tower" in patch.notes[-1]
    patch.revert(target)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    apart = act.profile(donor, random_batches(vocabulary=200)), act.profile(target, random_batches(vocabulary=200))
    expected = act.rank(pair, score="mean-shift", top=0.1)
    assert torch.equal(act.rank(apart, score="mean-shift", top=0.1).index, expected.index)
    back = act.profile_pair(target, donor, random_batches(vocabulary=200))
    assert back.space == pair.space


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_parameters_have_the_names_that_they_have_in_the_model_of_the_user(family, tmp_path):
    donor, target = multimodal(family), multimodal(family, 1)
    own, view = dict(target.named_parameters()), dict(language_view(target).named_parameters())
    pair = act.profile_pair(donor, target, random_batches(vocabulary=200))
    pair.save(tmp_path / "pair.safetensors")
    space = act.load(tmp_path / "pair.safetensors").space
    assert space.sites == ChannelSpace.from_model(target).sites == ChannelSpace.from_model(language_view(target)).sites
    parts = [part for site in space for part in site.parameters]
    assert all(own[part.name] is view[part.key] for part in parts)
    assert any(part.name != part.key for part in parts)
    assert {*space.uncovered} <= {*space.coverage.uncovered} == {*space.coverage.reasons} <= own.keys()
    assert own.keys() == {part.name for part in parts} | {*space.uncovered}
    text = [part for site in ChannelSpace.from_model(of_text(family)) for part in site.parameters]
    assert {*text} <= {*parts}
    channels = act.rank(pair, top=0.1)
    before = state(target)
    patch = act.transfer(donor, target, channels, {"model.language_model.*": 1.0, "*": 0.5})
    patch.save(tmp_path / "patch.safetensors")
    patch = act.Patch.load(tmp_path / "patch.safetensors")
    for change in patch.changes:
        now = change.parameter.part_of(own[change.parameter.name].detach())
        assert torch.equal(now[change.rows], change.after)
    assert {change.parameter.name for change in patch.changes} == {chosen.parameter.name for chosen in channels.rows()}
    patch.revert(target)
    assert all(torch.equal(before[name], parameter) for name, parameter in own.items())


def bert(head: bool, seed: int = 0, **more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 300}
    config = transformers.BertConfig(**{**sizes, "num_hidden_layers": 2, **more})
    return randomised(transformers.BertForMaskedLM if head else transformers.BertModel, config, seed)


@pytest.mark.parametrize("head", [False, True], ids=["head on the target", "head on the donor"])
def test_a_head_on_one_of_two_models_is_left_out(head):
    donor, target = bert(head), bert(not head, 1)
    pair = act.profile_pair(donor, target, random_batches())
    names = dict(target.named_modules())
    assert len(pair.space) and all(site.name in names for site in pair.space)
    prefix = "" if head else "bert."
    assert pair.space.site(f"{prefix}encoder.layer.1.attention.self.query").parameters
    assert pair.space.site(f"{prefix}embeddings.word_embeddings").parameters
    channels = act.rank(pair, top=0.3)
    before = state(target)
    patch = act.transfer(donor, target, channels, 1.0)
    theirs = dict(same_names(donor, target)[0].named_parameters())
    moved = {part.key for site, _ in channels.space.split(channels.index) for part in site.parameters}
    assert moved
    for site, rows in channels.space.split(channels.index):
        for part in site.parameters:
            assert torch.equal(part.matrix(dict(target.named_parameters()))[rows], part.matrix(theirs)[rows])
    patch.revert(target)
    assert all(torch.equal(before[name], parameter) for name, parameter in target.named_parameters())
    assert fingerprint(same_names(donor, target)[0]) == fingerprint(donor)


def test_the_first_difference_between_models_is_shown():
    with pytest.raises(act.ActError, match=r"bert\.encoder\.layer\.0\.intermediate\.dense has 64 channels against 48"):
        common_space(bert(True, intermediate_size=64), bert(True))
    with pytest.raises(act.ActError, match=r"differ in architecture: site bert\.encoder\.layer\.2"):
        common_space(bert(False, num_hidden_layers=3), bert(True))
    with pytest.raises(act.ActError, match="differ in architecture"):
        common_space(tiny_model("qwen2"), multimodal("llava"))


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("family", sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
def test_no_part_of_a_model_of_images_is_lost(family):
    kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family]
    kind = kind if isinstance(kind, str) else kind[0]
    try:
        with torch.device("meta"):
            model = getattr(transformers, kind)(small(CONFIG_MAPPING[family], {}))
    except Exception as error:  # a family whose sizes need more than small numbers, or another package
        pytest.skip(str(error))
    view = language_view(model)
    assert {*view.parameters()} == {*model.parameters()}
    if view is not model:
        for name, parameter in model.named_parameters():
            assert view.get_parameter(view.name_of(name)) is parameter
        assert any(name.startswith("model.") for name, _ in view.named_parameters())

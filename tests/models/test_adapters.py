"""Models with adapters: measured as they are, never transferred unless they are merged."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import torch
from support import random_batches, tiny_model

import act
from act.models.fingerprint import fingerprint
from act.models.loading import load_model
from act.models.views import language_view

peft = pytest.importorskip("peft")
IDS = torch.arange(5, 15)[None]


def lora(family: str = "llama", seed: int = 0, **settings):
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    return peft.get_peft_model(tiny_model(family, seed), peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()


def scaled():
    modules = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    config = peft.IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False, **modules)
    return peft.get_peft_model(tiny_model("llama"), config).eval()


ADAPTED = {
    "lora": lora,
    "fused": lambda: lora("phi3"),
    "transposed": lambda: lora("gpt2"),
    "dora": lambda: lora(use_dora=True),
    "embedding and head": lambda: lora(target_modules=["embed_tokens", "lm_head", "v_proj"]),
    "saved head": lambda: lora(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "ia3": scaled,
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_sites_have_the_names_of_the_base_and_the_outputs_of_the_adapter(kind):
    model, (batch,) = ADAPTED[kind](), random_batches(1)
    base = act.ChannelSpace.from_model(tiny_model({"fused": "phi3", "transposed": "gpt2"}.get(kind, "llama")))
    profile = act.profile(model, [batch])
    added = [site for site in profile.space if re.search("lora_|ia3_|original_module", site.name)]
    assert [site.name for site in profile.space if site not in added] == [site.name for site in base]
    assert {part.name for site in profile.space for part in site.parameters} <= {*dict(model.named_parameters())}
    assert {site.kind for site in added} <= {"lora_A", "lora_B", "lora_magnitude_vector", "ia3_l", "original_module"}
    assert {type(block) for block in profile.space.blocks} == {type(block) for block in base.blocks}
    outputs: dict[str, torch.Tensor] = {}
    modules = dict(language_view(model).named_modules())
    for site in profile.space:
        modules[site.module].register_forward_hook(
            lambda module, args, output, name=site.module: outputs.update({name: output.clone()})
        )
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    mask = batch["count_mask"] & batch["attention_mask"].bool()
    read = [site for site in profile.space if (profile.count[site.channels] > 0).all() and site.kind != "position"]
    assert {site.name for site in base if site.kind != "position"} <= {site.name for site in read}
    assert kind in ("dora", "ia3", "saved head") or {*added} <= {*read}
    for site in read:
        if site.scales is None:
            rows = outputs[site.module].expand(*mask.shape, -1)[mask].double()
            rows = rows[:, site.outputs(torch.arange(site.width))]
            torch.testing.assert_close(profile.site(site.name).mean, rows.mean(0), rtol=1e-5, atol=1e-6)


def test_a_transfer_is_refused_until_the_adapter_is_merged():
    donor, target = lora(seed=0), lora(seed=1)
    channels = act.rank(act.profile_pair(donor, target, random_batches()), top=0.1)
    with pytest.raises(act.ActError, match=r"^model.layers.0.self_attn.q_proj of the target has an adapter.*--merge"):
        act.transfer(donor, target, channels)
    with pytest.raises(act.ActError, match=r"adapted in one model only\?\); merge the adapter \(--merge on"):
        act.profile_pair(donor, tiny_model("llama"), random_batches())
    donor, target = donor.merge_and_unload(), target.merge_and_unload()
    assert act.ChannelSpace.from_model(donor) == act.ChannelSpace.from_model(tiny_model("llama"))
    act.transfer(donor, target, act.rank(act.profile_pair(donor, target, random_batches()), top=0.1)).revert(target)


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig])
def test_virtual_tokens_are_refused_for_what_they_are(kind):
    config = kind(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        **({} if "Encoder" not in kind.__name__ else {"encoder_hidden_size": 8}),
    )
    model = peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(act.ActError, match=r"an adapter of \w+ tuning, which puts virtual tokens before"):
        act.profile(model, random_batches())


def saved(folder, model, base):
    base.save_pretrained(folder / "base")
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_that_names_no_base_model_is_a_sentence(tmp_path, merge):
    lora().save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(act.ActError, match=r"^cannot load the model .*adapter_config.json names no base model"):
        load_model(str(tmp_path), device="cpu", merge=merge)


def test_an_adapter_folder_is_measured_as_it_is_or_merged(tmp_path):
    model = lora()
    saved(tmp_path, model, tiny_model("llama"))
    loaded = load_model(str(tmp_path / "adapter"))
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    own, other = act.profile(model, random_batches()), act.profile(loaded, random_batches())
    assert own.space == other.space
    torch.testing.assert_close(own.mean, other.mean, rtol=1e-5, atol=1e-7)  # with a mask, and without
    whole = load_model(str(tmp_path / "adapter"), merge=True)
    torch.testing.assert_close(whole(IDS).logits, model(IDS).logits)
    whole.save_pretrained(tmp_path / "whole")
    assert fingerprint(load_model(str(tmp_path / "whole"))) == fingerprint(whole)


def test_an_adapter_folder_with_virtual_tokens_cannot_be_loaded(tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    saved(tmp_path, peft.get_peft_model(tiny_model("llama"), config), tiny_model("llama"))
    with pytest.raises(act.ActError, match=r"an adapter of prompt tuning, .* give its base model .*base"):
        load_model(str(tmp_path / "adapter"))
    with pytest.raises(act.ActError, match=r"an adapter of prompt tuning, .* give its base model .*base"):
        load_model(str(tmp_path / "adapter"), merge=True)


@pytest.mark.parametrize("kind", ["lora", "fused", "dora", "embedding and head"])
def test_an_adapter_of_the_donor_is_given_the_inputs_of_the_targets(kind):
    donor, target, (batch,) = ADAPTED[kind](), ADAPTED[kind](), random_batches(1)
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(0.05)
    pair = act.profile_pair(donor, target, [batch], swap=True, exclude=["head"])
    theirs, counted = dict(language_view(donor).named_modules()), batch["count_mask"] & batch["attention_mask"].bool()
    swaps: dict[str, torch.Tensor] = {}

    def keep(module, args, output, name):
        if output.shape[:2] == counted.shape:
            swaps[name] = (theirs[name](*args) - output).double()

    names = {site.module for site in pair.space if site.columns is None and pair.site(site.name).swap.count.any()}
    for name, module in language_view(target).named_modules():
        if name in names:
            module.register_forward_hook(partial(keep, name=name))
    with torch.no_grad():
        target(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert {"model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.o_proj.lora_A.default"} <= names or kind == (
        "embedding and head"
    )
    for name, rows in swaps.items():
        expected = rows[counted].flatten(0, -2).mean(0)
        torch.testing.assert_close(pair.site(name).swap.mean, expected, rtol=1e-4, atol=1e-5)

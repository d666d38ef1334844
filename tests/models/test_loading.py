from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import CONFIGS, random_batches, tiny_model

import act
from act.models.loading import load_model


def rewritten(folder, change) -> None:
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", CONFIGS)
def test_a_whole_model_loads_with_its_own_weights(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    held = dict(model.named_parameters())
    loaded = dict(load_model(str(tmp_path), device="cpu").named_parameters())
    assert loaded.keys() == held.keys() and all(torch.equal(loaded[name], held[name]) for name in held)


def test_missing_weights_are_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    rewritten(tmp_path, lambda held: held.pop("lm_head.weight"))
    with pytest.raises(act.ActError, match=r"lacks 1 of the model's weights, lm_head\.weight"):
        load_model(str(tmp_path), device="cpu")


def test_weights_of_another_shape_are_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    rewritten(tmp_path, lambda held: held.update({"lm_head.weight": torch.zeros(7, 32)}))
    with pytest.raises(act.ActError, match="cannot load the model"):
        load_model(str(tmp_path), device="cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(act.ActError, match=r"cannot load|lacks"):
        load_model(str(tmp_path), device="cpu")


def test_a_model_spread_over_memory_and_disk_counts_the_same(tmp_path):
    pytest.importorskip("accelerate")
    tiny_model("qwen2").save_pretrained(tmp_path)
    whole = act.profile(load_model(str(tmp_path), device="cpu"), random_batches())
    spread = load_model(str(tmp_path), device_map="auto", max_memory={"cpu": "40KB"})
    assert any(parameter.is_meta for parameter in spread.parameters())
    profile = act.profile(spread, random_batches())
    assert profile.provenance.models["model"].fingerprint == whole.provenance.models["model"].fingerprint
    torch.testing.assert_close(profile.moments.arena, whole.moments.arena, rtol=1e-6, atol=1e-6)
    assert any(parameter.is_meta for parameter in spread.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "everywhere"}, "device map is 'everywhere'; expected one of auto"),
        ({"device_map": "auto", "device": "cpu"}, "were both given"),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, "maximum memory is cpu=lots; expected such as"),
        ({"max_memory": {"cpu": "1GiB"}}, "without a device map"),
    ],
)
def test_contradictory_places_are_refused(options, message, tmp_path):
    pytest.importorskip("accelerate")
    with pytest.raises(act.ActError, match=message):
        load_model(str(tmp_path), **options)

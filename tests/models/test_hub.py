"""Models of the hub: what its cache has is loaded without a network, and nothing is waited for twice."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from packaging.version import Version
from support import tiny_model, train_tokenizer

from act.core.errors import ActError
from act.models.hub import base_of
from act.models.loading import load_config, load_model, load_tokenizer

COMMIT = "a" * 40
LOADS = {
    "model": load_model,
    "merged": lambda name: load_model(name, merge=True),
    "config": load_config,
    "tokenizer": load_tokenizer,
}


@pytest.fixture
def waits(monkeypatch, tmp_path):
    """How long was waited for a hub that cannot be reached, each time, in seconds; ``tmp_path`` is its cache."""
    if Version(huggingface_hub.__version__) < Version("1.0"):
        pytest.skip("this version of huggingface_hub keeps the address of the hub")
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    address = "http://127.0.0.1:9"  # where nobody answers
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def cached(name, cache, save):
    place = cache / f"models--{name.replace('/', '--')}"
    save(place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("what", LOADS)
def test_what_the_cache_has_is_loaded_without_waiting_for_the_hub(what, waits, tmp_path):
    model = tiny_model("llama")
    cached("org/model", tmp_path, model.save_pretrained)
    train_tokenizer(["some text"]).save_pretrained(tmp_path / "models--org--model" / "snapshots" / COMMIT)
    LOADS[what]("org/model")
    assert waits == []


@pytest.mark.parametrize("what", ["model", "merged", "config"])
def test_so_is_an_adapter_whose_base_model_the_cache_has(what, waits, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    cached("org/model", tmp_path, model.save_pretrained)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = "org/model"
    cached("org/adapter", tmp_path, lambda folder: adapted.save_pretrained(folder, save_embedding_layers=False))
    loaded = LOADS[what]("org/adapter")
    assert waits == []
    if what != "config":
        ids = torch.arange(10)[None]
        torch.testing.assert_close(loaded.to("cpu")(ids).logits, adapted.eval()(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", LOADS)
def test_an_unknown_model_is_asked_for_once(what, waits):
    with pytest.raises(
        ActError, match="no such folder, the hub's cache does not have it, and the hub cannot be reached"
    ):
        LOADS[what]("org/none")
    assert waits == []


def test_a_model_of_the_hub_is_asked_for_its_configuration_before_that_of_an_adapter(monkeypatch, tmp_path):
    pytest.importorskip("peft")
    config, adapter = "config.json", "adapter_config.json"
    held = {"org/model": [config], "org/adapter": [adapter], "org/both": [config, adapter]}
    asked = []

    def download(name, file):
        asked.append((name, file))
        if file not in held[name]:
            raise EntryNotFoundError("no")
        (tmp_path / file).write_text(json.dumps({"base_model_name_or_path": "org/base"}))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: None)
    assert base_of("org/model") == "org/model" and {*asked} == {("org/model", config)}
    assert base_of("org/adapter") == base_of("org/adapter", merge=True) == base_of("org/both", merge=True) == "org/base"
    assert base_of("org/both") == "org/both"

from __future__ import annotations

import io
import json
import shutil
import sys
import types

import pytest
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file
from support import CONFIGS, random_batches, tiny_model

import act
from act.core.errors import ActError, brief
from act.models.architecture import class_of
from act.models.loading import code_of, empty_model, load_config, load_model, load_tokenizer


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


TINY_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("BertModel", transformers.BertConfig(vocab_size=99, **TINY_BERT)),
        ("BertForTokenClassification", transformers.BertConfig(vocab_size=99, **TINY_BERT)),
        ("LlamaForSequenceClassification", CONFIGS["llama"]()),
        ("T5EncoderModel", transformers.T5Config(vocab_size=99, d_model=32, d_ff=48, num_layers=1, num_heads=4)),
    ],
)
def test_a_model_is_of_the_class_that_its_configuration_names(kind, config, tmp_path):
    saved = getattr(transformers, kind)(config)
    saved.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert type(loaded).__name__ == type(empty_model(load_config(str(tmp_path)))).__name__ == kind
    held, read = saved.state_dict(), loaded.state_dict()
    assert held.keys() == read.keys() and all(torch.equal(held[name], read[name]) for name in held)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (transformers.BertConfig(), "BertForMaskedLM"),
        (transformers.BertConfig(is_decoder=True), "BertLMHeadModel"),
        (transformers.BartConfig(), "BartForConditionalGeneration"),
        (transformers.MistralConfig(architectures=["LlamaForCausalLM"]), "MistralForCausalLM"),
        (transformers.DPRConfig(), "DPRQuestionEncoder"),
    ],
)
def test_without_an_architecture_the_task_decides(config, kind):
    assert class_of(config).__name__ == kind


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.ViTConfig(), "it is a ViTModel, which reads pixel_values and no text; give a model that takes"),
        (transformers.WhisperConfig(), "which reads input_features and no text"),
        (transformers.CLIPConfig().vision_config, "reads pixel_values and no text"),
        (transformers.MimiConfig(), "which reads input_values and no text"),
    ],
)
def test_a_model_of_no_text_is_refused(config, message, tmp_path):
    with pytest.raises(act.ActError, match=message):
        empty_model(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(act.ActError, match=f"cannot load the model .*{message}"):
        load_model(str(tmp_path), device="cpu")


def test_an_adapter_is_of_the_class_of_its_base(tmp_path):
    peft = pytest.importorskip("peft")
    base = transformers.BertModel(transformers.BertConfig(vocab_size=99, **TINY_BERT))
    base.save_pretrained(tmp_path / "base")
    loaded = load_model(str(tmp_path / "base"), device="cpu")
    peft.get_peft_model(loaded, peft.LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    adapted = load_model(str(tmp_path / "adapter"), device="cpu")
    assert type(adapted).__name__ == "BertModel" and any("lora_A" in name for name, _ in adapted.named_parameters())


def test_missing_weights_are_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    rewritten(tmp_path, lambda held: held.pop("lm_head.weight"))
    with pytest.raises(act.ActError, match=r"lacks 1 of the model's weights, lm_head\.weight"):
        load_model(str(tmp_path), device="cpu")


def test_layers_that_the_configuration_leaves_out_are_not_dropped(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    configured(tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(ActError, match=r"leaves out model\.layers\.1\.\S+ and 8 more .* correct the number of layers"):
        load_model(str(tmp_path / "model"))


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
    spread = load_model(str(tmp_path), device_map="auto", max_memory={"cpu": "100KB"})
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def configured(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def only(folder, **files):
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "no/such/base", "task_type": "CAUSAL_LM"})
LOADS = {
    "an empty folder": (load_model, only, "the folder is empty; give the folder of a model"),
    "another type": (load_model, lambda f: configured(f, model_type="t5"), "it lacks .* of the model's weights"),
    "an unknown type": (load_model, lambda f: configured(f, model_type="none"), "'none' is unknown to the installed"),
    "no type": (load_model, lambda f: configured(f, model_type=None), "its config.json names no model_type; download"),
    "heads that do not fit": (load_model, lambda f: configured(f, num_attention_heads=5), "multiple of the number of"),
    "JSON that is none": (load_model, lambda f: (f / "config.json").write_text("{"), "not a valid JSON file; download"),
    "GGUF only": (load_model, lambda f: only(f, model__gguf="GGUF"), "it has GGUF files only; give the model from"),
    "an adapter": (
        load_model,
        lambda f: only(f, adapter_config__json=ADAPTER),
        "its base model no/such/base cannot be",
    ),
    "its tokenizer": (
        load_tokenizer,
        lambda f: only(f, adapter_config__json=ADAPTER),
        "copy the tokenizer of its base",
    ),
    "no tokenizer": (load_tokenizer, lambda f: only(f, config__json="{}"), "it has no tokenizer.json; copy"),
    "a bad tokenizer": (load_tokenizer, lambda f: (f / "tokenizer.json").write_text("{}"), "JSON files is damaged"),
    "cut weights": (
        load_model,
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99),
        "damaged or cut .*again",
    ),
    "no weights": (load_model, lambda f: (f / "model.safetensors").unlink(), "no file named .*; download or save"),
    "pickles": (
        load_model,
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin").write_bytes(b"x"),
        "weights are damaged or cut",
    ),
}


@pytest.mark.parametrize("what", LOADS)
def test_what_cannot_be_loaded_is_one_sentence_that_fits(what, whole, tmp_path):
    load, change, message = LOADS[what]
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    change(folder)
    with pytest.raises(ActError, match=message) as caught:
        load(str(folder))
    assert "cannot load the" in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "gives it to accepted users only; ask for access"),
        (RepositoryNotFoundError, "the hub has none of that name that you may read"),
        (LocalEntryNotFoundError, "no such folder, the hub's cache does not have it, and the hub cannot be reached"),
    ],
)
def test_why_the_hub_gives_no_model(error, message, monkeypatch):
    def refuse(*arguments, **options):
        response = types.SimpleNamespace(headers={}, request=None)
        cause = error("no", response=response) if issubclass(error, HfHubHTTPError) else error("no")
        raise OSError("You are trying to access something. Some more of it") from cause

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    with pytest.raises(ActError, match=f"cannot load the model org/name: .*{message}"):
        load_model("org/name")


def test_errors_are_not_cut_within_a_sentence():
    assert brief(ValueError("One e.g. two.\n Three " + "four " * 50)) == "One e.g. two"
    assert brief(ValueError("One " + "two " * 70 + "end. Three")).endswith("two end")
    assert brief(ValueError("One " + "two " * 700)).endswith("two …") and brief(KeyError()) == "KeyError"


OWN = {
    "conf.py": "from transformers import LlamaConfig\nopen({mark!r}, 'w')\n"
    "class OwnConfig(LlamaConfig):\n    model_type = 'own-of-the-test'\n",
    "own.py": "from transformers import LlamaForCausalLM\nfrom .conf import OwnConfig\n"
    "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n",
    "words.py": "from transformers import PreTrainedTokenizerFast\nclass Words(PreTrainedTokenizerFast):\n    pass\n",
}


def test_the_code_of_a_model_runs_only_if_it_is_trusted(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder, mark = tmp_path / "own-model", tmp_path / "ran"
    shutil.copytree(whole, folder)
    for name, code in OWN.items():
        (folder / name).write_text(code.format(mark=str(mark)) if name == "conf.py" else code)
    own = {"AutoConfig": "conf.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    configured(folder, model_type="own-of-the-test", auto_map=own)
    settings = folder / "tokenizer_config.json"
    words = {"auto_map": {"AutoTokenizer": [None, "words.Words"]}, "tokenizer_class": "Words"}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **words}))
    for load in (load_model, load_config, load_tokenizer):
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
        with pytest.raises(ActError, match=r"Python code of its own; .* \(--trust-remote-code"):
            load(str(folder))
    assert not mark.exists()
    model, tokenizer = (load(str(folder), trust_remote_code=True) for load in (load_model, load_tokenizer))
    assert mark.exists() and code_of(model) == code_of(tokenizer) == str(folder)
    assert code_of(empty_model(load_config(str(folder), trust_remote_code=True), trust_remote_code=True)) == str(folder)
    assert code_of(load_model(str(whole))) is code_of(load_tokenizer(str(whole))) is None
    corpus = act.Corpus.from_records([{"prompt": "a b", "completion": " c"}], tokenizer)
    act.profile(model, corpus).save(tmp_path / "profile.safetensors")
    source = act.load(tmp_path / "profile.safetensors").provenance
    assert source.models["model"].code == source.corpora[0].tokenizer_code == str(folder)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 2**31), ("num_local_experts", 10**400)])
def test_more_layers_than_any_model_has_are_refused_at_once(tmp_path, key, value):
    tiny_model("llama").config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    for load in (load_model, load_config):
        with pytest.raises(ActError, match=rf"config\.json says that {key} is .*more than 10,000; download it again"):
            load(str(tmp_path))

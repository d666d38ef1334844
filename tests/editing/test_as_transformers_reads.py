"""A model folder is read and written as transformers loads it: odd ones that it takes, and hostile ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import chosen, state, tiny_model

import act
from act.editing.copies import companions
from act.editing.donor import Donor
from act.editing.folders import patch_folder, patch_of_folders, transfer_folders
from act.editing.patch import Patch
from act.editing.stored import StoredModel, fingerprints
from act.editing.weight_files import RenamedWeights
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.profiles.provenance import ModelRead
from act.ranking.rule import Rule

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def loaded(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def moved(folder: Path, channels, patched: bool = False) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The result of a transfer on disk, or by a patch file, and the one in memory."""
    donors = [Donor(folder / "donor", channels, 0.4)]
    if patched:
        patch_of_folders(donors, folder / "target").save(folder / "patch")
        patch_folder(Patch.load(folder / "patch"), folder / "target", folder / "out")
    else:
        transfer_folders(donors, folder / "target", folder / "out")
    donor, target = loaded(folder / "donor"), loaded(folder / "target")
    act.transfer(donor, target, channels, 0.4)
    return loaded(folder / "out"), target


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = state(one), state(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def twice(tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def in_a_wider_type(tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING].double()


def under_the_other_name(tensors) -> None:
    tensors[HEAD] = tensors.pop(EMBEDDING)


def under_a_third_name(tensors) -> None:
    tensors["model.shared.weight"] = tensors[EMBEDDING].clone()


STORED = [twice, in_a_wider_type, under_the_other_name, under_a_third_name]


@pytest.mark.parametrize("patched", [False, True], ids=["transfer", "patch"])
@pytest.mark.parametrize("include", ["head", "embed"])
@pytest.mark.parametrize("change", STORED, ids=lambda change: change.__name__)
def test_what_is_tied_is_changed_under_every_name(tmp_path, change, include, patched):
    for seed, name in enumerate(("donor", "target")):
        tiny_model("llama-tied-bias", seed).save_pretrained(tmp_path / name)
        rewrite(tmp_path / name, change)
    space = ChannelSpace.from_model(loaded(tmp_path / "target"), tied=include)
    on_disk, in_memory = moved(tmp_path, chosen(space, 0.3), patched)
    assert same(on_disk, in_memory)
    assert on_disk.lm_head.weight is on_disk.model.embed_tokens.weight
    before, after = (load_file(tmp_path / name / SINGLE) for name in ("target", "out"))
    names = {HEAD, EMBEDDING, "model.shared.weight"} & before.keys()
    assert all(not torch.equal(before[name], after[name]) for name in names)
    assert {name: x.dtype for name, x in before.items()} == {name: x.dtype for name, x in after.items()}


def test_ends_that_differ_are_two_tensors_or_another_architecture(tmp_path):
    for seed, name in enumerate(("donor", "target")):
        tiny_model("llama-tied-bias", seed).save_pretrained(tmp_path / name)
    tied = chosen(ChannelSpace.from_model(loaded(tmp_path / "target")), 0.3)
    for name in ("donor", "target"):
        rewrite(tmp_path / name, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] * 1.5}))
    apart = chosen(ChannelSpace.from_model(loaded(tmp_path / "target")), 0.3)
    assert same(*moved(tmp_path, apart))
    with pytest.raises(act.ActError, match=r"stores .* and .* with different values, so the model does not tie them"):
        transfer_folders([Donor(tmp_path / "donor", tied, 0.4)], tmp_path / "target", tmp_path / "tied")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_that_is_rounded_as_it_is_loaded_is_the_one_that_was_profiled(tmp_path, dtype):
    for seed, name in enumerate(("donor", "target")):
        tiny_model("llama", seed, dtype).save_pretrained(tmp_path / name)
        rewrite(
            tmp_path / name, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].float() + 1e-4})
        )  # fmt: skip
    models = {name: loaded(tmp_path / name) for name in ("donor", "target")}
    rule = Rule(models={name: ModelRead(name, fingerprint(model)) for name, model in models.items()})
    space = ChannelSpace.from_model(models["target"])
    some = chosen(space, 0.3)
    channels = act.ChannelSet(space, some.index, some.scores, rule)
    stored = StoredModel(tmp_path / "target").parameters(space)
    assert fingerprints(stored)[1] == fingerprint(models["target"]) != fingerprints(stored)[0] == fingerprint(stored)
    patch = patch_of_folders([Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target")
    transfer_folders([Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target", tmp_path / "out")
    before, after = (load_file(tmp_path / name / SINGLE) for name in ("target", "out"))
    assert {name: x.dtype for name, x in before.items()} == {name: x.dtype for name, x in after.items()}
    assert patch.provenance.after == fingerprint(StoredModel(tmp_path / "out").parameters(space))
    other = Rule(models={"target": ModelRead("other", "0" * 16)})
    channels = act.ChannelSet(space, some.index, some.scores, other)
    with pytest.raises(RenamedWeights, match=r"stores model.norm.weight in a wider type"):
        transfer_folders([Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target", tmp_path / "no")


def sharded(folder: Path, place) -> dict[str, str]:
    """A donor, and a target whose shards lie where ``place`` says; returns the weight map."""
    tiny_model("llama").save_pretrained(folder / "donor")
    tiny_model("llama", 1).save_pretrained(folder / "target", max_shard_size="20KB")
    index = json.loads((folder / "target" / INDEX).read_text())
    for file in sorted({*index["weight_map"].values()}):
        (folder / "target" / place(file)).parent.mkdir(parents=True, exist_ok=True)
        (folder / "target" / file).rename(folder / "target" / place(file))
    index["weight_map"] = {name: place(file) for name, file in index["weight_map"].items()}
    (folder / "target" / INDEX).write_text(json.dumps(index))
    return index["weight_map"]


@pytest.mark.parametrize("share", [0.001, 0.3])
@pytest.mark.parametrize("place", ["parts/{}", "parts/deep/{}", "./{}", "a/../a/{}"])
def test_shards_may_lie_in_folders(tmp_path, place, share):
    if ".." in place:
        with pytest.raises(act.ActError, match=r"names 'a/../a/.*', which is not a file inside the folder"):
            sharded(tmp_path, place.format)
            StoredModel(tmp_path / "target")
        return
    places = sharded(tmp_path, place.format)
    assert same(*moved(tmp_path, chosen(ChannelSpace.from_model(loaded(tmp_path / "target")), share)))
    out = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.safetensors")}
    assert out == {os.path.normpath(file) for file in places.values()}


def test_a_tensor_in_two_shards_changes_in_both(tmp_path):
    sharded(tmp_path, "{}".format)
    target = tmp_path / "target"
    space = ChannelSpace.from_model(loaded(target))
    first, last = (sorted(target.glob("*.safetensors"))[at] for at in (0, -1))
    for path, other in ((first, last), (last, first)):
        save_file(load_file(path) | load_file(other), path, metadata={"format": "pt"})
    assert same(*moved(tmp_path, chosen(space, 0.5)))
    out = [load_file(tmp_path / "out" / path.name) for path in (first, last)]
    assert out[0].keys() == out[1].keys() and all(torch.equal(x, out[1][name]) for name, x in out[0].items())


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/passwd", "", ".", "a\0b", "parts/x.safetensors", "link"])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    sharded(tmp_path, "{}".format)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target" / "parts").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "target" / "link").symlink_to(tmp_path / "donor" / SINGLE)
    (tmp_path / "target" / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(act.ActError, match="which is not a file inside the folder"):
        StoredModel(tmp_path / "target")


def test_a_snapshot_in_the_cache_of_the_hub_leads_to_its_blobs(tmp_path):
    sharded(tmp_path, "parts/{}".format)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in (tmp_path / "target").rglob("*") if path.is_file())):
        place = snapshot / path.relative_to(tmp_path / "target")
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    held = {path: path.read_bytes() for path in blobs.iterdir()}
    channels = chosen(ChannelSpace.from_model(loaded(snapshot)), 0.01)
    transfer_folders([Donor(tmp_path / "donor", channels, 0.4)], snapshot, tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in files)
    loaded(tmp_path / "out")
    assert held == {path: path.read_bytes() for path in blobs.iterdir()}


@pytest.mark.parametrize("config", [{}, {"transformers_weights": "new.safetensors"}], ids=["single", "named"])
def test_a_stale_index_beside_the_file_that_is_loaded(tmp_path, config):
    sharded(tmp_path, "{}".format)
    target = tmp_path / "target"
    tiny_model("llama", 2).save_pretrained(tmp_path / "new")
    shutil.copy(tmp_path / "new" / SINGLE, target / config.get("transformers_weights", SINGLE))
    (target / "config.json").write_text(json.dumps(json.loads((target / "config.json").read_text()) | config))
    assert same(loaded(target), loaded(tmp_path / "new"))
    assert same(*moved(tmp_path, chosen(ChannelSpace.from_model(loaded(target)), 0.3)))
    assert not (tmp_path / "out" / INDEX).exists() and len([*(tmp_path / "out").glob("*.safetensors")]) == 1


KEPT = [
    *("tokenizer.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja"),
    *("preprocessor_config.json", "processor_config.json", "modeling_own.py", "code/part.py", "vocab.txt", ".gitattributes"),
    *("speech/config.json", "speech/model.safetensors", "spiece.model", "1_Pooling/config.json"),
]  # fmt: skip
LEFT = [
    *("README.md", ".act-profile", ".git/config", "__pycache__/x.pyc", "pytorch_model.bin", "model.gguf", "tf_model.h5"),
    *("old.safetensors", "pytorch_model.bin.index.json", "original/consolidated.00.pth", "onnx/model.onnx"),
    *("checkpoint-5/trainer_state.json", "checkpoint-5/config.json", "checkpoint-5/model.safetensors"),
]  # fmt: skip


def test_every_file_that_may_be_read_comes_along_and_no_other_weights(tmp_path):
    for seed, name in enumerate(("donor", "target")):
        tiny_model("llama", seed).save_pretrained(tmp_path / name)
    target = tmp_path / "target"
    own = {path.name for path in target.iterdir()}
    for name in (*KEPT, *LEFT):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(name)
    assert {*companions(target)} == {*KEPT, *own} - {SINGLE}
    transfer_folders(
        [Donor(tmp_path / "donor", chosen(ChannelSpace.from_model(tiny_model("llama")), 0.01), 0.4)], target, tmp_path / "out"
    )  # fmt: skip
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == {*KEPT, *own, "README.md", ".act-profile"}
    assert all((tmp_path / "out" / name).read_text() == name for name in KEPT)
    assert {*(tmp_path / "out" / ".act-profile").read_text().split()} == written - {".act-profile"}

"""A transfer writes what the target's checkpoint holds, in its types, whatever type the models were measured in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from support import chosen, tiny_model
from typer.testing import CliRunner

import act
from act.cli import app
from act.editing.patch import Patch
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.profiles.provenance import ModelRead
from act.ranking.rule import Rule

RUNNER = CliRunner()
COMMIT = "a" * 40


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def set_for(donor, target, path: Path) -> Path:
    """A channel set that was made for these two models, with channels of the first half of them."""
    some = chosen(ChannelSpace.from_model(target), 0.2)
    models = {side: ModelRead(side, fingerprint(model)) for side, model in (("donor", donor), ("target", target))}
    half = some.index < len(some.space) // 2
    act.ChannelSet(some.space, some.index[half], some.scores[half], Rule(models=models)).save(path)
    return path


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    """Donor and target in float16, the target in shards, with a channel set made for them."""
    models = {name: tiny_model("llama", seed, torch.float16) for seed, name in enumerate(("donor", "target"))}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name, max_shard_size="20KB" if name == "target" else "1GB")
        tokenizer.save_pretrained(tmp_path / name)
    set_for(models["donor"], models["target"], tmp_path / "set.safetensors")
    return tmp_path


def done(*arguments) -> dict:
    result = RUNNER.invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    return json.loads(result.stdout)


def moving(folder: Path, *more) -> list:
    models = ["--donor", folder / "donor", "--target", folder / "target"]
    return ["transfer", *models, "--channels", folder / "set.safetensors", *more]


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.mark.parametrize("memory", [[], ["--in-memory"]])
def test_a_patch_and_a_model_are_in_the_types_of_the_checkpoint(folder, memory):
    done(*moving(folder, "--output", folder / "plain"))
    wide = ["--dtype", "float32", *memory]
    done(*moving(folder, *wide, "--output", folder / "p.safetensors"))
    assert {change.after.dtype for change in Patch.load(folder / "p.safetensors").changes} == {torch.float16}
    done("patch", "apply", folder / "p.safetensors", "--model", folder / "target", "--output", folder / "applied")
    done(*moving(folder, *wide, "--output", folder / "direct"))
    expected, before = tensors(folder / "plain"), tensors(folder / "target")
    assert same(tensors(folder / "applied"), expected) and same(tensors(folder / "direct"), expected)
    assert not same(expected, before)
    if not memory:
        shards, ours = ({path.name for path in (folder / one).glob("*.safetensors")} for one in ("target", "direct"))
        assert ours == shards and len(shards) > 1
        assert (folder / "direct/config.json").read_bytes() == (folder / "target/config.json").read_bytes()


@pytest.mark.parametrize("memory", [[], ["--in-memory"]])
def test_channels_chosen_in_a_narrower_type_move_between_the_checkpoints(tmp_path, tokenizer, memory):
    models = {name: tiny_model("llama", seed) for seed, name in enumerate(("donor", "target"))}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    before = tensors(tmp_path / "target")
    measured = [model.bfloat16() for model in models.values()]
    channels = act.ChannelSet.load(set_for(*measured, tmp_path / "set.safetensors"))
    done(*moving(tmp_path, *memory, "--output", tmp_path / "out"))
    after = tensors(tmp_path / "out")
    assert {value.dtype for value in after.values()} == {torch.float32}
    changed = {chosen.parameter.name for chosen in channels.rows()}
    untouched = before.keys() - changed
    assert untouched and same({name: after[name] for name in untouched}, {name: before[name] for name in untouched})
    assert any(not torch.equal(after[name], before[name]) for name in changed)


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """The cache of a hub that does not answer."""
    if Version(huggingface_hub.__version__) < Version("1.0"):
        pytest.skip("this version of huggingface_hub keeps the address of the hub")
    nowhere = "http://127.0.0.1:9"
    for name, value in {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "ENDPOINT": nowhere,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{nowhere}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    return tmp_path / "hub"


def test_models_of_the_hub_take_and_lose_a_patch_like_folders(folder, cache):
    for name in ("donor", "target"):
        place = cache / f"models--me--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text(COMMIT)
        (place / "snapshots").mkdir()
        (folder / name).rename(place / "snapshots" / COMMIT)
    models = ["--donor", "me/donor", "--target", "me/target", "--channels", folder / "set.safetensors"]
    made = done("transfer", *models, "--output", folder / "p.safetensors")
    assert made["path"] == "patch"
    done("patch", "apply", folder / "p.safetensors", "--model", "me/target", "--output", folder / "applied")
    done("transfer", *models, "--output", folder / "direct")
    before = tensors(cache / "models--me--target/snapshots" / COMMIT)
    direct = tensors(folder / "direct")
    assert same(tensors(folder / "applied"), direct) and not same(direct, before)
    card = (folder / "direct/README.md").read_text()
    assert "[me/donor](https://huggingface.co/me/donor)" in card and COMMIT not in card
    done("patch", "revert", folder / "p.safetensors", "--model", folder / "applied", "--output", folder / "back")
    assert same(tensors(folder / "back"), before)
    none = ["patch", "apply", str(folder / "p.safetensors"), "--model", "me/none", "--output", str(folder / "none")]
    assert "cannot load the model me/none" in str(RUNNER.invoke(app, none).exception)


def test_the_type_of_a_patch_is_shown_and_another_one_named(folder):
    done(*moving(folder, "--output", folder / "p.safetensors"))
    shown = done("patch", "show", folder / "p.safetensors")
    assert {change["type"] for change in shown["changes"]} == {"float16"}
    assert "float16" in RUNNER.invoke(app, ["patch", "show", str(folder / "p.safetensors")]).stdout
    held = Patch.load(folder / "p.safetensors")
    target = tiny_model("llama", 1, torch.float16)
    wide = Patch(
        [replace(one, before=one.before.float(), after=one.after.float()) for one in held.changes], held.provenance
    )
    with pytest.raises(act.ActError, match=r"the patch is in float32, and .* of this model in float16; make the patch"):
        wide.apply(target)
    with pytest.raises(act.ActError, match=r"in different types: .* is float16 in one and float32 in another"):
        act.compose([held, wide], "first")
    assert "of float16, from" in repr(held)


def test_the_type_that_was_measured_in_is_part_of_a_run(folder):
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"a {word} c"}) + "\n" for word in "bdef"), encoding="utf-8")
    run = ["run", "--model", folder / "target", "--corpus", text]
    done(*run, "--output", folder / "p.safetensors")
    assert done(*run, "--output", folder / "p.safetensors")["finished_before"]
    wide = RUNNER.invoke(app, [*map(str, run), "--dtype", "float32", "--output", str(folder / "p.safetensors")])
    assert isinstance(wide.exception, act.ActError) and "exists already" in str(wide.exception)

    for number, dtype in enumerate(("float16", "float32")):
        done(*run, "--dtype", dtype, "--shard", f"{number}/2", "--output", folder / f"{number}.safetensors")
    shards = [str(folder / f"{number}.safetensors") for number in range(2)]
    found = RUNNER.invoke(app, ["combine", *shards, "--output", str(folder / "whole.safetensors")])
    assert "in different types: the model in float16 and in float32" in str(found.exception)


def test_the_profile_of_one_text_replaces_no_folder_of_profiles(folder):
    texts = {name: folder / f"{name}.jsonl" for name in ("a", "b")}
    for name, text in texts.items():
        text.write_text(json.dumps({"text": f"{name} c"}) + "\n", encoding="utf-8")
    both = [one for name, text in texts.items() for one in ("--corpus", f"{name}={text}")]
    done("run", "--model", folder / "target", *both, "--output", folder / "profiles")
    one = ["run", "--model", folder / "target", "--corpus", texts["a"], "--output", folder / "profiles", "--force"]
    found = RUNNER.invoke(app, [*map(str, one)])
    assert isinstance(found.exception, act.ActError) and "is a folder, and the profile of one text" in str(
        found.exception
    )

"""Outputs of all commands: no input is ever replaced, and what cannot be written is one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import act_profile
from support import chosen, save_models, tiny_model

from act.models.channels import ChannelSpace

MODELS = ["--donor", "donor", "--target", "target"]
RECIPE = "merge_method: act\nbase_model: target\noutput: {}\nmodels: [{{model: donor, corpus: 'texts/*.jsonl'}}]\n"
MERGE = "merge_method: act\nbase_model: target\nmodels: [{model: donor, parameters: {channels: set}}]\n"
OVERWRITING = {
    "a model": ["run", "--model", "target", "--corpus", "a.jsonl", "--output", "target"],
    "a file of a model": ["pair", *MODELS, "--corpus", "a.jsonl", "--output", "donor/config.json"],
    "a glob": ["run", "--model", "target", "--corpus", "texts/*.jsonl", "--output", "texts/b.jsonl"],
    "a folder": ["run", "--model", "target", "--corpus", "texts", "--output", "texts"],
    "an ability": ["pair", *MODELS, "--corpus", "one=a.jsonl", "--corpus", "two=texts/*.jsonl", "--output", "texts"],
    "the log": ["run", "--model", "target", "--corpus", "texts/*.jsonl", "--output", "new", "--log", "texts/b.jsonl"],
    "tokens": ["run", "--model", "target", "--corpus", "a.jsonl", "--token-cache", "cache", "--output", "cache/0.parquet"],
    "a profile": ["rank", "pair", "--output", "pair"],
    "a profile to keep": ["rank", "pair", "--keep", "keep", "--output", "keep"],
    "a shard": ["combine", "pair", "keep", "--output", "keep"],
    "a profile of a report": ["report", "pair", "--output", "pair"],
    "a corpus of a report": ["report", "pair", "--donor", "donor", "--corpus", "texts/*.jsonl", "--output", "texts"],
    "a corpus of a sweep": ["sweep", "pair", *MODELS, "--corpus", "texts/*.jsonl", "--output", "texts/b.jsonl"],
    "records": ["evaluate", "--model", "target", "--corpus", "texts/*.jsonl", "--details", "texts/b.jsonl"],
    "a channel set": ["transfer", *MODELS, "--channels", "set", "--output", "set"],
    "a link to a channel set": ["transfer", *MODELS, "--channels", "set", "--output", "link"],
    "a patch": ["patch", "apply", "patch", "--model", "target", "--output", "patch"],
    "one of several patches": ["patch", "compose", "patch", "keep", "--output", "keep"],
    "a corpus to tune on": ["tune", "--model", "target", "--corpus", "texts/*.jsonl", "--output", "texts"],
    "a checkpoint to tune": ["tune", "--model", ".new.tuning/checkpoint-3", "--corpus", "a.jsonl", "--output", "new"],
    "a recipe": ["recipe", "recipe.yaml"],
    "a corpus of a recipe": ["recipe", "texts.yaml"],
    "a configuration of mergekit": ["mergekit", "merge.yaml", "merge.yaml"],
    "a set of mergekit": ["mergekit", "merge.yaml", "set"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("outputs")
    save_models(path, tokenizer, "donor", "target")
    for folder in ("texts", "cache", ".new.tuning/checkpoint-3"):
        (path / folder).mkdir(parents=True)
    row = json.dumps({"prompt": "a", "completion": " b"})
    for name in ("a.jsonl", "texts/b.jsonl", "cache/0.parquet", "pair", "keep", "set", "patch"):
        (path / name).write_text(row)
    (path / ".new.tuning" / "checkpoint-3" / "config.json").write_text("{}")
    (path / ".new.tuning" / "identity").write_text("another run")
    (path / "link").symlink_to("set")
    for name, output in (("recipe", "recipe.yaml"), ("texts", "texts"), ("html", "x.html")):
        (path / f"{name}.yaml").write_text(RECIPE.format(output))
    (path / "merge.yaml").write_text(MERGE)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", OVERWRITING)
def test_force_never_removes_an_input(what, place):
    if "mergekit" in what:
        pytest.importorskip("mergekit")
    held = contents(place)
    result = act_profile(*OVERWRITING[what], "--force", cwd=place)
    assert result.returncode == 2, result.stderr
    input_is = ("would overwrite the input", "lies in the input", "take the place of a folder with the input")
    refused = (*input_is, "expected the name of a folder", "is a file; expected a folder")
    assert any(reason in result.stderr for reason in refused) and "Traceback" not in result.stderr, result.stderr
    assert contents(place) == held


OTHER_FORMATS = {
    "details": (["evaluate", "--model", "target", "--corpus", "a.jsonl", "--details", "x.xlsx"], ".jsonl, .csv or .parquet"),
    "a table of a set": (["rank", "pair", "--csv", "x.xlsx", "--output", "new"], ".csv or .parquet"),
    "an export": (["export", "pair", "--output", "x.xlsx"], ".csv or .parquet"),
    "a channel set": (["rank", "pair", "--output", "x.csv"], ".safetensors, which is what is written"),
    "a profile": (["pair", *MODELS, "--corpus", "a.jsonl", "--output", "x.parquet"], ".safetensors, which is what"),
    "a whole profile": (["combine", "pair", "keep", "--output", "x.npz"], ".safetensors, which is what is written"),
    "several patches": (["patch", "compose", "patch", "keep", "--output", "x.pt"], ".safetensors"),
    "a tuned model": (["tune", "--model", "target", "--corpus", "a.jsonl", "--output", "x.safetensors"], "the name of a"),
    "a recipe": (["recipe", "html.yaml"], "the name of a folder"),
    "a sweep": (["sweep", "pair", *MODELS, "--corpus", "a.jsonl", "--output", "x.csv"], ".json, which is what is written"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_FORMATS)
def test_no_output_is_named_as_another_format(what, place):
    arguments, expected = OTHER_FORMATS[what]
    held = contents(place)
    result = act_profile(*arguments, cwd=place)
    assert result.returncode == 2 and f"expected {expected}" in result.stderr, result.stderr
    assert contents(place) == held


@pytest.mark.parametrize("command", ["transfer", "pair", "sweep", "tune", "evaluate"])
def test_a_folder_around_the_output_is_no_model(command, place):
    arguments = {
        "transfer": ["--donor", ".", "--target", "target", "--channels", "set", "--output", "new"],
        "pair": ["--donor", ".", "--target", "target", "--corpus", "a.jsonl", "--output", "new"],
        "sweep": ["pair", "--donor", "donor", "--target", ".", "--corpus", "a.jsonl", "--output", "new"],
        "tune": ["--model", ".", "--corpus", "a.jsonl", "--output", "new"],
        "evaluate": ["--model", ".", "--corpus", "a.jsonl", "--details", "new.csv"],
    }[command]
    result = act_profile(command, *arguments, cwd=place)
    assert result.returncode == 2 and "there is no model in .: it has no config.json" in result.stderr, result.stderr


def test_an_hour_is_not_lost_for_want_of_a_tokenizer(place, tmp_path):
    for seed, name in enumerate(("donor", "target")):
        tiny_model("llama", seed).save_pretrained(tmp_path / name)
    chosen(ChannelSpace.from_model(tiny_model("llama")), 0.1).save(tmp_path / "set")
    for more in ([], ["--in-memory"]):
        out = tmp_path / f"out{len(more)}"
        result = act_profile("transfer", *MODELS, "--channels", "set", *more, "--output", out, cwd=tmp_path)
        assert result.returncode == 0 and "warning: cannot load the tokenizer" in result.stderr, result.stderr
        assert (out / "config.json").is_file()


def test_a_name_that_is_no_text_can_be_printed(place, tmp_path):
    chosen(ChannelSpace.from_model(tiny_model("llama")), 0.001).save(tmp_path / "set")
    models = ["--donor", place / "donor", "--target", place / "target", "--channels", tmp_path / "set"]
    for more, shown in (([], "\udcff"), (["--json"], r"\udcff")):  # its own byte, but escaped in JSON
        name = os.fsdecode(b"\xff%d" % len(more))
        result = act_profile("transfer", *models, "--output", tmp_path / name, *more)
        assert result.returncode == 0 and shown in result.stdout, result.stderr
    assert json.loads(result.stdout)["output"] == str(tmp_path / name)


def test_links_are_made_only_when_asked(place, tmp_path):
    tiny_model("llama", 1).save_pretrained(tmp_path / "target", max_shard_size="20KB")
    chosen(ChannelSpace.from_model(tiny_model("llama")), 0.001).save(tmp_path / "set")
    models = ["--donor", place / "donor", "--target", tmp_path / "target", "--channels", tmp_path / "set"]
    linked = []
    for more in ([], ["--hard-link"]):
        out = tmp_path / f"out{len(more)}"
        assert act_profile("transfer", *models, *more, "--output", out).returncode == 0
        linked.append(sum(os.stat(path).st_nlink > 1 for path in out.rglob("*") if path.is_file()))
    assert linked[0] == 0 < linked[1]
    useless = act_profile("transfer", *models, "--in-memory", "--hard-link", "--output", tmp_path / "no")
    assert useless.returncode == 2 and "--hard-link has no effect" in useless.stderr

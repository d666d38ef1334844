"""Transfer, patch files and sweeps as a user types them, on model folders."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import Running, act_profile, succeed
from safetensors.torch import load_file, save_file
from support import ATTENTION, SMALL, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig
from typer.testing import CliRunner

import act
from act.cli import app
from act.cli.patch import show
from act.core.places import last_parts
from act.editing.patch import Patch
from act.evaluation.choice import figure
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.profiles.provenance import ModelRead
from act.ranking.channel_set import ChannelSet
from act.ranking.rule import Rule

RECORDS = [{"prompt": f"a b {word}", "completion": f" {word} c d"} for word in ("one", "two", "three", "four")]


def refuse(*arguments) -> str:
    result = act_profile(*arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    return " ".join(result.stderr.split())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def made_set(model, path: Path, share: float, seed: int) -> ChannelSet:
    space = ChannelSpace.from_model(model)
    count = max(1, int(share * len(space)))
    index = torch.randperm(len(space), generator=torch.Generator().manual_seed(seed))[:count]
    channels = ChannelSet(space, index, torch.rand(count, generator=torch.Generator().manual_seed(seed)))
    channels.save(path)
    return channels


def variant(path: Path, config, tokenizer, seed: int = 0) -> None:
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A target, two donors with a channel set each, and models that do not fit."""
    path = tmp_path_factory.mktemp("transfer")
    for seed, name in enumerate(("target", "one", "two")):
        model = tiny_model("llama", seed)
        model.save_pretrained(path / name, max_shard_size="20KB" if name == "target" else "1GB")
        tokenizer.save_pretrained(path / name)
        made_set(model, path / f"{name}.set", 0.2, seed)
    wide = tiny_model("llama", 3)
    wide.resize_token_embeddings(310)
    wide.save_pretrained(path / "wide")
    variant(path / "tied", LlamaConfig(**SMALL, **ATTENTION, tie_word_embeddings=True), tokenizer)
    for name, positions in (("gpt2", 256), ("short", 128)):
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300, n_positions=positions)
        variant(path / name, config, tokenizer)
        made_set(AutoModelForCausalLM.from_config(config), path / f"{name}.set", 1.0, 0)
    made_set(tiny_model("llama"), path / "all.set", 1.0, 0)
    (path / "ability.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (path / "keep.jsonl").write_text("".join(json.dumps({"text": record["prompt"]}) + "\n" for record in RECORDS))
    return path


def donors_of(f: Path, *names: str) -> list:
    return [part for name in names for part in ("--donor", f / name, "--channels", f / f"{name}.set")]


def loaded(f: Path, name: str):
    return AutoModelForCausalLM.from_pretrained(f / name)


@pytest.mark.parametrize("overlap", ["sum", "mean", "first", "stronger"])
def test_two_donors_with_strengths_by_pattern(folder, tmp_path, overlap):
    output = tmp_path / "out"
    options = ["--strength", "0.4", "--strength", "0.7", "--strength-of", "*.mlp.*=0.1", "--overlap", overlap]
    done = succeed(
        "transfer", *donors_of(folder, "one", "two"), "--target", folder / "target", *options, "--output", output
    )
    assert done["path"] == "disk" and done["strength"] == [0.4, 0.7]
    target = loaded(folder, "target")
    donors = [
        act.Donor(loaded(folder, name), ChannelSet.load(folder / f"{name}.set"), {"*.mlp.*": 0.1, "*": value})
        for name, value in (("one", 0.4), ("two", 0.7))
    ]
    patch = act.transfer_many(donors, target, overlap)
    assert done["values"] == len(patch)
    assert same(tensors(output), dict(target.named_parameters()))
    in_memory = tmp_path / "memory"
    models = [*donors_of(folder, "one", "two"), "--target", folder / "target"]
    assert succeed("transfer", *models, *options, "--in-memory", "--output", in_memory)["path"] == "memory"
    assert same(tensors(in_memory), tensors(output))
    card = (output / "README.md").read_text()
    assert "- ability-transfer" in card and card.count("| donor |") == 2 and patch.provenance.after in card


def test_patch_files_are_made_shown_applied_reverted_and_composed(folder, tmp_path):
    before = tensors(folder / "target")
    files = {}
    for name in ("one", "two"):
        files[name] = tmp_path / f"{name}.safetensors"
        made = succeed("transfer", *donors_of(folder, name), "--target", folder / "target", "--output", files[name])
        assert made["path"] == "patch"
    assert same(tensors(folder / "target"), before)
    succeed("transfer", *donors_of(folder, "one"), "--target", folder / "target", "--output", tmp_path / "direct")
    applied = succeed("patch", "apply", files["one"], "--model", folder / "target", "--output", tmp_path / "patched")
    assert same(tensors(tmp_path / "patched"), tensors(tmp_path / "direct"))
    assert "Made with act-profile (`act-profile patch apply`)" in (tmp_path / "patched" / "README.md").read_text()
    reverted = succeed("patch", "revert", files["one"], "--model", tmp_path / "patched", "--output", tmp_path / "back")
    assert same(tensors(tmp_path / "back"), before)
    shown = succeed("patch", "show", files["one"])
    assert (applied["fingerprint"], reverted["fingerprint"]) == (shown["after"], shown["before"])
    assert shown["values"] == len(Patch.load(files["one"])) == sum(change["values"] for change in shown["changes"])
    told = act_profile("patch", "show", files["one"]).stdout
    assert "donor" in told and " rows" in told and "dim" not in told
    assert f"made on {shown['before']}, the model to apply it to" in told and "at strength 0.4, by " in told
    told = act_profile(
        "patch", "revert", files["one"], "--model", tmp_path / "patched", "--output", tmp_path / "restored"
    )
    assert shown["before"] in told.stdout and "put back" in told.stdout and "to the byte" in told.stdout
    both = [files["one"], files["two"]]
    refused = refuse("patch", "compose", *both, "--output", tmp_path / "both.safetensors")
    assert "changed by two patches: " in refused and "say which wins: --conflict first, or last" in refused
    assert "the patch both has no ending; expected .safetensors" in refuse(
        "patch", "compose", *both, "--output", "both"
    )
    alone = act_profile("patch", "compose", files["one"], "--output", tmp_path / "alone.safetensors").stdout
    assert "of one patch\nnext: act-profile patch apply" in alone and alone.count("\n") == 2
    applied = act_profile("patch", "apply", files["one"], "--model", folder / "target", "--output", tmp_path / "told")
    assert (
        f"next: act-profile evaluate --before {folder / 'target'} --model {tmp_path / 'told'} --corpus"
        in applied.stdout
    )
    told = act_profile("patch", "compose", *both, "--conflict", "first", "--output", tmp_path / "told.safetensors")
    assert " from the first " in told.stdout
    joined = succeed("patch", "compose", *both, "--conflict", "last", "--output", tmp_path / "both.safetensors")
    assert sum(joined["conflicts"].values()) > 0
    assert "unknown, because it is composed" in " ".join(
        act_profile("patch", "show", tmp_path / "both.safetensors").stdout.split()
    )
    succeed(
        "patch", "apply", tmp_path / "both.safetensors", "--model", folder / "target", "--output", tmp_path / "composed"
    )
    succeed(
        "patch",
        "revert",
        tmp_path / "both.safetensors",
        "--model",
        tmp_path / "composed",
        "--output",
        tmp_path / "again",
    )
    assert same(tensors(tmp_path / "again"), before)
    for model, output, message in (
        (folder / "one", tmp_path / "no", "does not hold the values"),
        (folder / "gpt2", tmp_path / "no", "for another model"),
        (folder / "target", folder / "target", "would overwrite the input"),
        (folder / "target", files["one"], "would overwrite the input"),
    ):
        arguments = ["patch", "apply", files["one"], "--model", model, "--output", output, "--force"]
        assert message in refuse(*arguments)
    assert not (tmp_path / "no").exists()


def test_a_patch_of_one_row_has_a_row(folder, tmp_path, capsys):
    target, donor = loaded(folder, "target"), loaded(folder, "one")
    act.transfer(donor, target, made_set(target, tmp_path / "set", 1e-9, 0)).save(tmp_path / "one.safetensors")
    show(tmp_path / "one.safetensors")
    said = capsys.readouterr().out
    assert " 1 row " in said and "1 channel at" in said and "rows" not in said


def test_whole_neurons_and_heads_move_their_input_columns(folder, tmp_path):
    target, donor = loaded(folder, "target"), loaded(folder, "one")
    pair = act.profile_pair(donor, target, [{"input_ids": torch.arange(40)[None]}])
    channels = act.rank(pair, top=0.2, granularity=["neuron", "head"])
    assert channels.inputs
    channels.rule = replace(channels.rule, models={})  # the folders' own names and fingerprints are tested elsewhere
    channels.save(tmp_path / "set")
    models = ["--donor", folder / "one", "--target", folder / "target", "--channels", tmp_path / "set"]
    succeed("transfer", *models, "--strength", "1", "--output", tmp_path / "out")
    before, after, given = tensors(folder / "target"), tensors(tmp_path / "out"), tensors(folder / "one")
    expected = {name: value.clone() for name, value in before.items()}
    for chosen in channels.rows():
        name, dim = chosen.parameter.name, chosen.parameter.dim
        expected[name].index_copy_(dim, chosen.rows, given[name].index_select(dim, chosen.rows))
    assert same(after, expected)
    assert any("down_proj" in name for name in channels.inputs)
    patch = act.transfer(donor, target, channels, 1.0)
    assert same(dict(target.named_parameters()), expected)
    patch.revert(target)
    assert same(dict(target.named_parameters()), before)


def quantised(f: Path, t: Path) -> Path:
    path = t / "quantised"
    path.mkdir()
    for file in (f / "target").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    return path


def copied(source: Path, path: Path) -> Path:
    shutil.copytree(source, path)
    return path


def damaged(f: Path, t: Path, file: str, text: str) -> Path:
    (copied(f / "target", t / "damaged") / file).write_text(text)
    return t / "damaged"


def adapter(f: Path, t: Path) -> Path:
    (copied(f / "target", t / "adapter") / "config.json").rename(t / "adapter" / "adapter_config.json")
    return t / "adapter"


def renumbered(source: Path, path: Path) -> Path:
    """The same model with each token's id moved on by one, in its tokenizer, embedding and LM head."""
    tokenizer = json.loads((copied(source, path) / "tokenizer.json").read_text())
    count = len(tokenizer["model"]["vocab"])
    for name, number in tokenizer["model"]["vocab"].items():
        tokenizer["model"]["vocab"][name] = (number + 1) % count
    for token in tokenizer["added_tokens"]:
        token["id"] = (token["id"] + 1) % count
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    held = load_file(path / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        held[name][:count] = held[name][:count].roll(1, 0)
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    return path


def incomplete(f: Path, t: Path) -> Path:
    path = t / "incomplete"
    path.mkdir()
    for file in (f / "one").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    held = load_file(path / "model.safetensors")
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    return path


BAD = {
    "one set for two donors": lambda f, t: (
        ["--donor", f / "one", "--donor", f / "two", "--channels", f / "one.set", "--target", f / "target"],
        "give one set for each donor",
    ),
    "too many strengths": lambda f, t: (
        [*donors_of(f, "one"), "--strength", "1", "--strength", "2", "--target", f / "target"],
        "give one for all, or one for each",
    ),
    "unknown overlap": lambda f, t: (
        [*donors_of(f, "one"), "--overlap", "most", "--target", f / "target"],
        "overlap is",
    ),
    "pattern without value": lambda f, t: (
        [*donors_of(f, "one"), "--strength-of", "*.mlp.*", "--target", f / "target"],
        "expected PATTERN=VALUE",
    ),
    "tied donor": lambda f, t: (
        ["--donor", f / "tied", "--channels", f / "all.set", "--target", f / "target"],
        "tied embeddings in one model only",
    ),
    "quantised target": lambda f, t: ([*donors_of(f, "one"), "--target", quantised(f, t)], "is quantised"),
    "quantised donor": lambda f, t: (
        ["--donor", quantised(f, t), "--channels", f / "one.set", "--target", f / "target"],
        "is quantised",
    ),
    "pattern that matches nothing": lambda f, t: (
        [*donors_of(f, "one"), "--strength-of", "*.mpl.*=0.2", "--target", f / "target"],
        "the strength pattern '*.mpl.*' matches none of the",
    ),
    "device for files": lambda f, t: (
        [*donors_of(f, "one"), "--target", f / "target", "--device", "cpu"],
        "--device cpu has no effect on files; add --in-memory",
    ),
    "configuration that is not JSON": lambda f, t: (
        [*donors_of(f, "one"), "--target", damaged(f, t, "config.json", "{oops")],
        "config.json is not JSON",
    ),
    "adapter": lambda f, t: (
        [*donors_of(f, "one"), "--target", adapter(f, t)],
        "is an adapter, not a model; merge it",
    ),
    "weights missing": lambda f, t: (
        [*donors_of(f, "one"), "--target", incomplete(f, t), "--in-memory"],
        "lacks 1 of the model's weights, model.layers.1.mlp.up_proj.weight",
    ),
    "the same donor twice": lambda f, t: (
        [*donors_of(f, "one", "one"), "--target", f / "target"],
        "is given twice, and --overlap sum adds both steps",
    ),
    "another architecture": lambda f, t: ([*donors_of(f, "gpt2"), "--target", f / "target"], "of another architecture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, folder, tmp_path):
    arguments, message = BAD[name](folder, tmp_path)
    held = sorted(tmp_path.iterdir())
    assert message in refuse("transfer", *arguments, "--output", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == held


def test_a_folder_is_not_called_like_a_file(folder, tmp_path):
    moving = ["transfer", *donors_of(folder, "one"), "--target", folder / "target"]
    refused = refuse(*moving, "--output", tmp_path / "o.txt")
    assert "ends with .txt like a file; expected the name of a folder, or a patch that ends with" in refused
    succeed(*moving, "--output", tmp_path / "p.safetensors")
    for what in ("apply", "revert"):
        patching = ["patch", what, tmp_path / "p.safetensors", "--model", folder / "target"]
        refused = refuse(*patching, "--output", tmp_path / "o.safetensors")
        assert "ends with .safetensors like a file; expected the name of a folder" in refused


def test_a_revert_brings_the_readme_of_the_target_back(folder, tmp_path):
    target = copied(folder / "target", tmp_path / "target")
    text = "---\nlicense: apache-2.0\n---\n# Mine, as it was é\r\n"
    (target / "README.md").write_bytes(text.encode())
    moving = ["transfer", *donors_of(folder, "one"), "--target", target, "--output"]
    for number, more in enumerate(([], ["--in-memory"])):
        patch, mended, back = (tmp_path / f"{name}{number}" for name in ("p", "mended", "back"))
        patch = patch.with_suffix(".safetensors")
        succeed(*moving, patch, *more)
        succeed("patch", "apply", patch, "--model", target, "--output", mended)
        card = (mended / "README.md").read_text()
        assert "license: apache-2.0" in card and "# Mine" not in card
        succeed("patch", "revert", patch, "--model", mended, "--output", back)
        assert (back / "README.md").read_bytes() == text.encode()
        assert "# Mine" not in act_profile("patch", "show", patch, "--json").stdout


def test_no_output_is_an_input_even_with_force(folder):
    before = {name: tensors(folder / name) for name in ("target", "one")}
    models = [*donors_of(folder, "one"), "--target", folder / "target", "--force"]
    for output in (folder / "target", folder / "one", folder / "one.set", folder / "one" / "inside", folder):
        for path in ([], ["--in-memory"]):
            said = refuse("transfer", *models, *path, "--output", output)
            assert any(f"{how} the input" in said for how in ("would overwrite", "lies in", "a folder with")), said
    tuning = ["tune", "--model", folder / "target", "--corpus", folder / "ability.jsonl", "--force"]
    for output, why in (("target", "would overwrite the input"), ("ability.jsonl", "ends with .jsonl like a file")):
        assert why in refuse(*tuning, "--output", folder / output)
    assert all(same(tensors(folder / name), held) for name, held in before.items())


def test_another_vocabulary_or_position_table_is_left_out_and_said(folder, tmp_path):
    done = succeed(
        "transfer", "--donor", folder / "wide", "--channels", folder / "all.set", "--target", folder / "target",
        "--output", tmp_path / "narrow",
    )  # fmt: skip
    assert len(done["notes"]) == 2 and all("align the tokens" in note for note in done["notes"])
    before, after = tensors(folder / "target"), tensors(tmp_path / "narrow")
    assert {name for name in before if torch.equal(before[name], after[name])} == {
        "lm_head.weight",
        "model.embed_tokens.weight",
    }
    done = succeed(
        "transfer", "--donor", folder / "short", "--channels", folder / "gpt2.set", "--target", folder / "gpt2",
        "--strength", "1", "--output", tmp_path / "positions", "--in-memory",
    )  # fmt: skip
    assert len(done["notes"]) == 1 and "transformer.wpe" in done["notes"][0]


def test_tokens_numbered_otherwise_are_left_out_or_aligned(folder, tmp_path):
    donor = renumbered(folder / "one", tmp_path / "donor")
    models = ["--target", folder / "target", "--channels", folder / "all.set", "--strength", "1"]
    plain = succeed("transfer", "--donor", folder / "one", *models, "--output", tmp_path / "plain")
    assert not plain["notes"]
    expected, target = tensors(tmp_path / "plain"), tensors(folder / "target")
    for more in ([], ["--in-memory"]):
        output = tmp_path / f"out{len(more)}"
        done = succeed("transfer", "--donor", donor, *models, *more, "--output", output)
        assert len(done["notes"]) == 2 and all("to the donor's tokenizer and" in note for note in done["notes"])
        assert all(
            torch.equal(value, (target if name.startswith(("lm_head", "model.embed")) else expected)[name])
            for name, value in tensors(output).items()
        )
    aligned = tmp_path / "aligned"
    done = succeed("transfer", "--donor", donor, *models, "--align-tokens", "--output", aligned)
    count = len(AutoTokenizer.from_pretrained(donor))
    assert not done["notes"]
    assert all(torch.equal(value[:count], expected[name][:count]) for name, value in tensors(aligned).items())


def test_a_pattern_for_everything_overrules_the_strength(folder, tmp_path):
    models = [*donors_of(folder, "one"), "--target", folder / "target"]
    by_pattern = ["--strength-of", "*.mlp.*=0.3", "--strength-of", "*=0.7"]
    done = succeed("transfer", *models, *by_pattern, "--output", tmp_path / "out")
    assert done["strength_of"] == {"*.mlp.*": 0.3, "*": 0.7} and done["values"] > 0
    same_strength = ["--strength", "0.7", "--strength-of", "*.mlp.*=0.3"]
    succeed("transfer", *models, *same_strength, "--output", tmp_path / "same")
    assert same(tensors(tmp_path / "out"), tensors(tmp_path / "same"))
    shown = act_profile("transfer", *models, *by_pattern, "--output", tmp_path / "shown").stdout
    assert "*.mlp.*=0.3" in shown and "values" in shown


def test_pickled_weights_are_loaded_and_it_is_said(folder, tmp_path):
    target = copied(folder / "one", tmp_path / "target")
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    models = [*donors_of(folder, "two"), "--output"]
    result = act_profile("transfer", "--target", target, *models, tmp_path / "out")
    assert result.returncode == 0 and "holds pytorch_model.bin and no safetensors" in result.stderr, result.stderr
    succeed("transfer", "--target", folder / "one", *models, tmp_path / "expected")
    assert same(tensors(tmp_path / "out"), tensors(tmp_path / "expected"))
    succeed("transfer", "--target", folder / "one", *models, tmp_path / "patch.safetensors")
    patching = ["patch", "apply", tmp_path / "patch.safetensors", "--model", target, "--output", tmp_path / "no"]
    assert "load the model and save it again" in refuse(*patching)


def test_sweep_prints_the_grid_and_its_frontier(folder, tmp_path, monkeypatch):
    pair = tmp_path / "pair.safetensors"
    models = ["--donor", folder / "one", "--target", folder / "target"]
    succeed("pair", *models, "--corpus", folder / "ability.jsonl", "--output", pair)
    texts = ["--corpus", folder / "ability.jsonl", "--keep", folder / "keep.jsonl", "--metric", "nll"]
    grid = ["--top", "5%", "--top", "50%", "--strength", "0.5", "--strength", "1"]
    controls = ["--control", "random", "--control", "interpolation"]
    found = succeed("sweep", pair, *models, *texts, *grid, *controls, "--output", tmp_path / "sweep.json")
    assert [(row["top"], row["strength"]) for row in found["rows"]] == [
        (0, 0),
        (0.05, 0.5),
        (0.05, 1),
        (0.5, 0.5),
        (0.5, 1),
    ]
    assert found["frontier"] and all(row in found["rows"] for row in found["frontier"])
    assert "is the text that the channels were ranked on" in found["doubts"][0] and found["best"] is None
    assert "keep.jsonl has 4 records to choose by, and it takes 10" in found["doubts"][1]
    assert json.loads((tmp_path / "sweep.json").read_text()) == found
    assert (tmp_path / "sweep-report" / "index.html").read_text().endswith("</html>\n")
    page = succeed("report", tmp_path / "sweep.json", "--output", tmp_path / "report")
    assert page["files"] == ["index.html"] and "No share or strength can be chosen by these figures" in page["verdict"]
    text = str(folder / "ability.jsonl")
    assert found["texts"][text] == {
        "metric": "nll",
        "figure": "log-likelihood per token, in nats",
        "records": 4,
        "chance": None,
        "majority": None,
    }
    assert all(row[f"{text}_se"] > 0 for row in [*found["rows"], *found["controls"]["random"], found["donor"]])
    random, interpolation = (found["controls"][name] for name in ("random", "interpolation"))
    assert [row["channels"] for row in random] == [row["channels"] for row in found["rows"]]
    assert [row["strength"] for row in interpolation] == [0, 0.5, 1]
    donors = succeed("evaluate", "--model", folder / "one", "--corpus", folder / "ability.jsonl", "--metric", "nll")
    assert interpolation[-1][text] == pytest.approx(-donors["results"][0]["nll_per_token"])
    assert found["donor"][text] == -donors["results"][0]["nll_per_token"]
    assert found["donor"][f"{text}_se"] == donors["results"][0]["nll_per_token_se"]
    told = act_profile("sweep", pair, *models, *texts, *grid, "--output", tmp_path / "again.json").stdout
    assert f"{tmp_path}/again-report/index.html, and its figures in {tmp_path}/again.json\n" in told
    assert f"next: act-profile report {tmp_path}/again.json {pair} --output {tmp_path}/pair-report" in told
    taken = refuse("sweep", pair, *models, "--corpus", f"top={text}")
    assert "a text is named top, which is what a sweep calls a column of its own" in taken
    for place in ("sweep-report", "report"):
        assert "The best of interpolation brings" in (tmp_path / place / "index.html").read_text()
    chosen = [
        "--normalize",
        "std",
        "--scope",
        "layer",
        "--granularity",
        "neuron",
        "--include",
        "gate",
        "--include",
        "up",
    ]
    swept = succeed("sweep", pair, *models, *texts, *grid, *chosen)
    ranked = succeed("rank", pair, "--top", "50%", *chosen, "--output", tmp_path / "set")
    assert swept["rows"][-1]["channels"] == ranked["chosen"] != found["rows"][-1]["channels"]
    assert "expected one of random, weight-diff, interpolation" in refuse(
        "sweep", pair, *models, *texts, "--control", "x"
    )
    several = refuse("sweep", pair, *models, *texts, "--control", "random,interpolation")
    assert "for several, repeat the option: --control random --control interpolation" in several
    assert "normalize is 'no'" in refuse("sweep", pair, *models, *texts, *grid, "--normalize", "no")
    refused = refuse("sweep", pair, *models, *texts, *grid, "--output", pair, "--force")
    assert "would overwrite the input" in refused
    monkeypatch.setattr("time.monotonic", itertools.count(0, 11).__next__)  # a line each time
    given = ["sweep", pair, *models, *texts, *grid[:2], *grid[4:6], *controls[:2]]
    lines = CliRunner().invoke(app, [*map(str, given)]).stderr
    assert "sweep: 5% × 0.5, " in lines and "sweep: random, 5% × 0.5, " in lines


def test_a_sweep_of_a_text_that_the_target_reads_better_recommends_nothing(folder, tmp_path, monkeypatch):
    models = ["--donor", folder / "one", "--target", folder / "target"]
    asked = []

    def doubt_of_swap(target, donor):
        asked.append((figure(target), figure(donor)))
        return "the texts may be swapped"

    monkeypatch.setattr("act.evaluation.choice.doubt_of_swap", doubt_of_swap)
    text = str(folder / "ability.jsonl")
    succeed("pair", *models, "--corpus", text, "--output", tmp_path / "pair.safetensors")
    given = ["--corpus", text, "--metric", "nll", "--top", "5%", "--strength", "1"]
    told = CliRunner().invoke(app, ["sweep", *map(str, [tmp_path / "pair.safetensors", *models, *given]), "--json"])
    found = json.loads(told.stdout)
    assert "the texts may be swapped" in told.stderr
    assert found["best"] is None and found["doubts"][-1] == "the texts may be swapped"
    assert asked == [(found["rows"][0][text], found["donor"][text])] and asked[0][0] != asked[0][1]


def test_a_tune_in_bfloat16_is_saved_in_the_type_of_the_checkpoint(folder, tmp_path):
    given = ["--corpus", folder / "ability.jsonl", "--steps", "1", "--batch-size", "2", "--dtype", "bfloat16"]
    succeed("tune", "--model", folder / "one", *given, "--output", tmp_path / "tuned")
    before, after = tensors(folder / "one"), tensors(tmp_path / "tuned")
    assert all(value.dtype == before[name].dtype == torch.float32 for name, value in after.items())
    assert all(torch.equal(value, value.bfloat16().float()) for value in after.values()) and not same(before, after)


def test_evaluating_a_model_with_nan_is_said_and_valid_json(folder, tmp_path):
    broken = copied(folder / "one", tmp_path / "one")  # of the same last name, too
    held = load_file(broken / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(held, broken / "model.safetensors", metadata={"format": "pt"})
    models = ["--before", folder / "one", "--model", broken, "--corpus", folder / "ability.jsonl", "--metric", "nll"]
    details = tmp_path / "details.jsonl"
    result = act_profile("evaluate", *models, "--details", details, "--json")
    assert result.returncode == 0 and f"{broken} gives NaN or infinity for 4 of 4 records of" in result.stderr
    for line in (result.stdout, *details.read_text().splitlines()):
        json.loads(line, parse_constant=pytest.fail)
    found = json.loads(result.stdout)
    assert [row["model"] for row in found["results"]] == [str(folder / "one"), str(broken)]
    assert found["results"][1]["nll_per_token"] is None and found["comparisons"][0]["nll_p"] is None
    alike = [str(folder / "one"), str(broken)]  # in their last part, so the folders that they lie in are named, too
    told = {name: "/".join(name.split("/")[-2:]) for name in alike}
    assert last_parts([*alike, "a/mended"]) == {**told, "a/mended": "mended"}
    assert last_parts(["base/", "a/mended/", "/"]) == {"base/": "base", "a/mended/": "mended", "/": "/"}


def test_tables_of_changes_are_in_plain_words(folder, tmp_path):
    given = [*donors_of(folder, "one"), "--target", folder / "target", "--output"]
    two = [*donors_of(folder, "one", "two"), "--target", folder / "target", "--output", tmp_path / "of two"]
    assert "0.4, 0.4 " in act_profile("transfer", *two).stdout
    moved = [act_profile("transfer", *given, tmp_path / "model").stdout]
    moved.append(act_profile("transfer", *given, tmp_path / "patch.safetensors").stdout)
    for said, how in zip(moved, ("on files", "as a patch"), strict=True):
        assert "carried out" in said and how in said and "parameters changed" in said
    (tmp_path / "kept.jsonl").write_text('{"prompt": "a", "completion": " b"}\n')
    given = [
        "--corpus",
        folder / "ability.jsonl",
        "--replay",
        tmp_path / "kept.jsonl",
        "--steps",
        "1",
        "--batch-size",
        "2",
    ]
    said = act_profile("tune", "--model", folder / "one", *given, "--output", tmp_path / "tuned").stdout
    assert "records drawn" in said and "records mixed in" in said and "went on from" not in said
    assert said.endswith(" --corpus TEST.jsonl --keep KEEP-TEST.jsonl\n")


@pytest.mark.parametrize("mode", ["full", "rows"])
def test_a_tuned_adapter_is_saved_as_the_whole_model(folder, tmp_path, mode):
    pytest.importorskip("peft")
    given = ["--corpus", folder / "ability.jsonl", "--steps", "1", "--batch-size", "2", "--output"]
    lora = ["--mode", "lora", "--adapter", "--lora-rank", "2", "--learning-rate", "0.1"]
    said = act_profile("tune", "--model", folder / "one", *lora, *given, tmp_path / "adapter")
    evaluated = f"evaluate --before {folder / 'one'} --model {tmp_path / 'adapter'} --corpus"
    assert said.returncode == 0 and f"next: act-profile {evaluated}" in said.stdout
    merged = act.models.loading.load_model(str(tmp_path / "adapter"), merge=True).state_dict()
    rows = ["--channels", folder / "one.set"] if mode == "rows" else []
    again = ["tune", "--model", tmp_path / "adapter", "--mode", mode, *rows, "--learning-rate", "1e-6", *given]
    result = act_profile(*again, tmp_path / "tuned", "--json")
    assert result.returncode == 0 and "is an adapter: it is merged into its base model" in result.stderr, result.stderr
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").state_dict()
    assert not [*(tmp_path / "tuned").glob("adapter*")]
    assert all(torch.allclose(value, merged[name], atol=1e-5) for name, value in after.items())
    assert any(not torch.equal(value, merged[name]) for name, value in after.items())
    assert "an adapter merged into one first, " in (tmp_path / "tuned" / "README.md").read_text()
    assert "leave --adapter out" in refuse("tune", "--model", tmp_path / "adapter", *lora, *given, tmp_path / "b")


def test_rows_of_channels_of_another_model_are_warned_of(folder, tmp_path):
    channels = ChannelSet.load(folder / "one.set")
    rule = Rule(models={"target": ModelRead("elsewhere", "0123456789abcdef")})
    ChannelSet(channels.space, channels.index, channels.scores, rule).save(tmp_path / "set")
    given = ["--corpus", folder / "ability.jsonl", "--steps", "1", "--batch-size", "2", "--mode", "rows"]
    for chosen, warned in ((tmp_path / "set", True), (folder / "one.set", False)):
        output = tmp_path / f"tuned-{warned}"
        tuned = act_profile("tune", "--model", folder / "one", *given, "--channels", chosen, "--output", output)
        assert tuned.returncode == 0, tuned.stderr
        assert ("the channels were chosen for the target elsewhere (0123456789abcdef)" in tuned.stderr) == warned
        assert (
            f"Fingerprint before the tune: `{fingerprint(tiny_model('llama', 1))}`"
            in (output / "README.md").read_text()
        )


def test_a_tune_in_float16_is_told_the_option(folder, tmp_path):
    given = ["--corpus", folder / "ability.jsonl", "--dtype", "float16", "--output", tmp_path / "tuned"]
    assert "float32 or bfloat16 (--dtype)" in refuse("tune", "--model", folder / "one", *given)


def test_ctrl_c_says_that_the_same_tune_goes_on(folder, tmp_path):
    given = ["--corpus", folder / "ability.jsonl", "--steps", "100000", "--batch-size", "2", "--save-steps", "1"]
    running = Running("tune", "--model", folder / "one", *given, "--output", tmp_path / "tuned")
    while not [*tmp_path.glob(".tuned.tuning/checkpoint-*/trainer_state.json")] and running.process.is_alive():
        time.sleep(0.01)
    os.kill(running.process.pid, signal.SIGINT)
    stopped = running.ended()
    assert stopped.returncode == 130 and "Traceback" not in stopped.stderr
    assert "stopped: interrupted after " in stopped.stderr and "run the same command to continue" in stopped.stderr
    assert not (tmp_path / "tuned").exists()

"""The last line of a command can be typed, and names what the command has just made."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from support import random_batches, tiny_model

import act
from act import cli
from act.cli import next_step
from act.profiles.provenance import ModelRead


@pytest.fixture
def said(capsys, monkeypatch):
    """The words of the commands on the last line, each understood by the command line."""
    logger = logging.getLogger("act")
    before = logger.level
    logger.setLevel(logging.INFO)

    def words() -> list[list[str]]:
        line = capsys.readouterr().out
        assert line.startswith("next: act-profile ") and line.count("\n") == 1
        found = [shlex.split(one)[1:] for one in line.removeprefix("next: ").split(" && ")]
        for name, *given in found:
            command = typer.main.get_command(cli.app).get_command(None, name)  # type: ignore[attr-defined]
            command.make_context(name, list(given))
        return found

    yield words
    logger.setLevel(before)


@pytest.fixture(scope="module")
def pair():
    return act.profile_pair(tiny_model("llama", 0), tiny_model("llama", 1), random_batches())


def test_a_pair_is_ranked_with_the_others_kept(pair, said):
    next_step.after_profiles({Path("my out/german.safetensors"): pair})
    assert said() == [
        ["rank", "my out/german.safetensors", "--top", "5%", "--output", "my out/german-channels.safetensors"]
    ]
    next_step.after_profiles({Path("o/german.safetensors"): pair, Path("o/maths.safetensors"): pair})
    assert said()[0][2:4] == ["--keep-profile", "o/maths.safetensors"]


def test_a_shard_is_combined_and_one_model_exported(pair, said):
    read = replace(pair.provenance.corpora[0], shard=(0, 2))
    part = act.PairProfile(pair.moments, replace(pair.provenance, corpora=(read,)))
    next_step.after_profiles({Path("a.safetensors"): part})
    assert said()[0][:2] == ["combine", "a.safetensors"]
    next_step.after_profiles({Path("a.safetensors"): act.profile(tiny_model("llama"), random_batches())})
    assert said() == [["export", "a.safetensors", "--output", "a.csv"]]


def test_channels_are_transferred_between_the_models_that_they_are_of(said):
    models = {side: ModelRead(f"models/{side}", "x") for side in ("donor", "target")}
    next_step.after_rank(Path("c.safetensors"), models)
    assert said()[0][:5] == ["transfer", "--donor", "models/donor", "--target", "models/target"]
    ranking = next_step.options_of({"score": "match", "granularity": ["neuron", "head"], "keep-profile": [Path("k")]})
    next_step.after_sweep(Path("p.safetensors"), "d", "t", 0.02, 0.7, ranking)
    ranked, moved = said()
    assert ranked[2:] == [*ranking, "--top", "2%", "--output", "p-channels.safetensors"]
    assert moved[-6:-2] == ["--channels", "p-channels.safetensors", "--strength", "0.7"]


def test_a_patch_is_applied_and_a_model_judged(said):
    next_step.after_transfer("t", Path("x/p.safetensors"))
    assert said() == [["patch", "apply", "x/p.safetensors", "--model", "t", "--output", "x/mended"]]
    next_step.after_transfer("t", Path("mended"))
    assert said()[0][:5] == ["evaluate", "--before", "t", "--model", "mended"]


def test_no_output_is_proposed_that_exists_already(tmp_path, pair, said):
    profile, patch = tmp_path / "p.safetensors", tmp_path / "patch.safetensors"
    for name in ("mended", "mended-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "p-channels.safetensors").touch()
    next_step.after_transfer("t", patch)
    assert said()[0][-1] == str(tmp_path / "mended-3")
    next_step.after_rank(tmp_path / "c.safetensors", {})
    assert said()[0][-1] == str(tmp_path / "mended-3")
    next_step.after_sweep(profile, "d", "t", 0.02, 0.7, [])
    ranked, moved = said()
    assert ranked[-1] == moved[6] == str(tmp_path / "p-channels-2.safetensors") and moved[-1].endswith("/mended-3")
    next_step.after_profiles({profile: pair})
    assert said()[0][-1] == str(tmp_path / "p-channels-2.safetensors")


def test_nothing_is_said_where_only_warnings_are_wanted(capsys):
    logging.getLogger("act").setLevel(logging.WARNING)
    next_step.after_transfer("t", Path("mended"))
    assert capsys.readouterr().out == ""

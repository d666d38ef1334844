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
from act.cli.profile_report import report_profile, report_profiles
from act.evaluation.sides import Sides
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


def test_a_pair_is_ranked_with_the_others_kept(pair, said, capsys):
    next_step.after_profiles({Path("my out/german.safetensors"): pair})
    assert said() == [
        ["rank", "my out/german.safetensors", "--top", "5%", "--output", "my out/german-channels.safetensors"]
    ]
    next_step.after_profiles({Path(f"o/{name}.safetensors"): pair for name in ("german", "maths", "music")}, Path("o"))
    ranked, likewise = capsys.readouterr().out.splitlines()
    assert shlex.split(ranked)[4:8] == [
        "--keep-profile", "o/maths.safetensors", "--keep-profile", "o/music.safetensors"
    ]  # fmt: skip
    assert ranked.endswith(" --output german-channels.safetensors")  # not among the profiles of the run
    assert likewise == "likewise for maths, music, with the others behind --keep-profile"


@pytest.mark.usefixtures("said")  # for its level of logging
def test_what_the_target_does_better_is_kept_and_not_recovered(pair, capsys):
    losses = {"maths": Sides(donor=3.0, target=2.0, tokens=9, records=3), "german": Sides(2.0, 3.0, 9, 3)}
    report_profiles({"maths": pair, "german": pair}, Path("o"), False, losses)
    expected = "next: act-profile rank o/german.safetensors --keep-profile o/maths.safetensors "
    assert expected in capsys.readouterr().out
    report_profile(pair, Path("o/maths.safetensors"), False, {"maths": losses["maths"]})
    *_, ranked, explained = capsys.readouterr().out.splitlines()
    assert ranked.startswith("next: act-profile rank ABILITY.safetensors --keep-profile o/maths.safetensors --top 5% ")
    assert ranked.endswith(" --output o/channels.safetensors") and "ABILITY.safetensors is the profile" in explained
    report_profile(pair, Path("o/german.safetensors"), False, {"german": losses["german"]})
    assert "next: act-profile rank o/german.safetensors --top 5% " in capsys.readouterr().out


def test_one_model_is_exported(said):
    profile = act.profile(tiny_model("llama"), random_batches())
    next_step.after_profiles({Path("a.safetensors"): profile})
    assert said() == [["export", "a.safetensors", "--output", "a.csv"]]
    next_step.after_profiles({Path("x/o/a.safetensors"): profile}, Path("x/o"))
    assert said() == [["export", "x/o", "--output", "x/o-tables"]]


def test_missing_shards_are_named_in_runs(pair, said, capsys, tmp_path):
    for size, expected in ((3, "with --shard 0/3 and with --shard 2/3,"), (9, "for each --shard of 0/9, 2/9 to 8/9,")):
        read = replace(pair.provenance.corpora[0], shard=(1, size))
        made = tmp_path / f"{size}" / "a.safetensors"
        made.parent.mkdir()
        part = act.PairProfile(pair.moments, replace(pair.provenance, corpora=(read,)))
        part.save(made)
        next_step.after_profiles({made: part})
        assert f"next: the same {expected}" in capsys.readouterr().out


def test_very_many_shards_are_not_looked_for(pair, said, capsys):
    read = replace(pair.provenance.corpora[0], shard=(0, 1000))
    part = act.PairProfile(pair.moments, replace(pair.provenance, corpora=(read,)))
    next_step.after_profiles({Path("shards/a.safetensors"): part})
    assert "from 0/1000 to 999/1000" in capsys.readouterr().out


def test_models_are_named_as_they_are_found_from_here(said, tmp_path, monkeypatch, capsys):
    for name in ("work/base", "work/specialist", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    models = {side: ModelRead(name, "x") for side, name in {"donor": "base", "target": "specialist/"}.items()}
    channels = tmp_path / "work/out/c.safetensors"
    for here, places in {
        "work": ["base", "specialist/"],
        "elsewhere": ["../work/base", "../work/specialist"],
    }.items():
        monkeypatch.chdir(tmp_path / here)
        next_step.after_rank(channels, models)
        assert said()[0][:5] == ["transfer", "--donor", places[0], "--target", places[1]]
    next_step.after_rank(Path("c.safetensors"), models, [tmp_path / "work/german.safetensors"])
    assert said()[0][1:3] == ["--donor", "../work/base"]
    gone = {"donor": ModelRead("org/name@v1", "x"), "target": ModelRead("../gone", "x")}
    next_step.after_rank(channels, gone)
    moved, where = capsys.readouterr().out.splitlines()
    assert moved.startswith("next: act-profile transfer --donor org/name@v1 --target TARGET ")
    assert where == "TARGET is where ../gone lies now"


def test_a_sweep_is_followed_by_its_setting(said):
    ranking = next_step.options_of({"score": "match", "granularity": ["neuron", "head"], "keep-profile": [Path("k")]})
    next_step.after_sweep(Path("p.safetensors"), "d", "t", 0.02, 0.7, ranking)
    ranked, moved = said()
    assert ranked[2:] == [*ranking, "--top", "2%", "--output", "p-channels.safetensors"]
    assert moved[-6:-2] == ["--channels", "p-channels.safetensors", "--strength", "0.7"]


def test_the_figures_of_a_sweep_go_on_a_page_with_the_profile(said, capsys):
    next_step.after_figures(Path("o/my sweep.json"), Path("p/german.safetensors"))
    assert said() == [["report", "o/my sweep.json", "p/german.safetensors", "--output", "o/german-report"]]
    next_step.after_figures(Path("s.json"), Path("german.safetensors"), others=True)
    assert capsys.readouterr().out.endswith(": act-profile report s.json german.safetensors --output german-report\n")


def test_a_patch_is_applied_and_a_model_judged(said):
    next_step.after_transfer("t", Path("x/p.safetensors"))
    assert said() == [["patch", "apply", "x/p.safetensors", "--model", "t", "--output", "x/mended"]]
    next_step.after_transfer("t", Path("mended"))
    assert said()[0][:5] == ["evaluate", "--before", "t", "--model", "mended"]
    next_step.after_transfer("t", Path("mended"), kept=True)
    assert said()[0][-4:] == ["--corpus", "TEST.jsonl", "--keep", "KEEP-TEST.jsonl"]


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

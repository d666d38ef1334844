"""Shards of a run: what is missing is said wherever the profile of a part is used, and the next command runs."""

from __future__ import annotations

import shlex
import shutil

import pytest
from command_line import act_profile, succeed
from support import tiny_model, train_tokenizer

import act
from act.cli import next_step
from act.cli.profile_report import report_profile
from act.profiles.combine import combine
from act.profiles.provenance import CorpusRead
from act.report.build import build, measure
from act.report.warnings import warnings_of

ENGLISH = [{"text": f"the bear number {number} reads a book in the garden"} for number in range(12)]
GERMAN = [{"text": f"der Bär Nummer {number} liest im Garten ein Buch"} for number in range(12)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of one run over German, those of another over English, and the whole of both."""
    folder = tmp_path_factory.mktemp("shards")
    models = tiny_model("llama", 0), tiny_model("llama", 1)
    tokenizer = train_tokenizer([one["text"] for one in GERMAN + ENGLISH])
    for name, records in {"german": GERMAN, "english": ENGLISH}.items():
        corpus = act.Corpus.from_records(records, tokenizer, name=name)
        for number in range(3):
            act.profile_pair(*models, corpus, shard=(number, 3)).save(folder / f"{name}-{number}.safetensors")
        combine(folder / f"{name}-{number}.safetensors" for number in range(3)).save(folder / f"{name}.safetensors")
    return folder


def test_a_part_says_so_in_its_table_and_when_it_is_ranked_and_reported(shards, tmp_path):
    part, german = tmp_path / "part.safetensors", [shards / f"german-{number}.safetensors" for number in (0, 2)]
    made = act_profile("combine", *german, "--partial", "--output", part)
    assert made.returncode == 0 and "2 of 3 shards, without 1/3" in made.stdout
    assert "german: 2 of 3 shards, without 1/3" in made.stderr
    ranked = act_profile("rank", part, "--keep-profile", shards / "english.safetensors", "--output", tmp_path / "c.s")
    assert ranked.returncode == 0 and "german was measured in part: 2 of 3 shards, without 1/3" in ranked.stderr
    rule = act.ChannelSet.load(tmp_path / "c.s").rule
    assert rule.parts == {"german": "2 of 3 shards, without 1/3"}
    told = warnings_of(build(measure([act.load(part), act.load(shards / "english.safetensors")])))
    assert [one for one in told if "in part" in one] == [
        "german: german was measured in part: 2 of 3 shards, without 1/3."
    ]
    assert "german (2 of 3 shards, without 1/3)" in repr(act.load(part))
    whole = act_profile("rank", shards / "german.safetensors", "--output", tmp_path / "w.s")
    assert whole.returncode == 0 and "part" not in whole.stderr
    assert succeed("combine", *german, "--partial", "--output", tmp_path / "again.safetensors")["shards"] == [0, 2]


def test_a_part_names_a_few_missing_shards_and_takes_no_time_for_a_false_header():
    assert CorpusRead("x", shards=(0, 2), of=3).part == "2 of 3 shards, without 1/3"
    assert CorpusRead("x", shards=(0,), of=8).part.endswith("without 1/8, 2/8, 3/8, 4/8, 5/8 and 2 more")
    assert CorpusRead("x", shards=(0, 9), of=10**15).part.endswith("and 999,999,999,999,993 more")
    assert CorpusRead("x", shard=(1, 3)).part == "shard 1/3 alone" and CorpusRead("x", shards=3).part == ""


def test_an_ability_that_some_shards_lack_is_whole_if_all_shards_are_there(shards, tmp_path):
    for number in range(3):
        folder = tmp_path / f"out-{number}"
        folder.mkdir()
        for name in ("german", "english")[: 1 if number == 1 else 2]:
            shutil.copy(shards / f"{name}-{number}.safetensors", folder / f"{name}.safetensors")
    outputs = [tmp_path / f"out-{number}" for number in range(3)]
    made = act_profile("combine", *outputs, "--output", tmp_path / "whole")
    assert made.returncode == 0 and "without" not in made.stderr + made.stdout
    assert act.load(tmp_path / "whole" / "english.safetensors").provenance.corpora[0].part == ""
    for more, said in ((["--output", tmp_path / "x.safetensors"], "expected the name of a folder, which gets a profile"),
                       ([shards / "german-0.safetensors"], "german-0.safetensors is no folder of profiles")):  # fmt: skip
        assert said in act_profile("combine", *outputs, *more, cwd=tmp_path).stderr
    around = act_profile("combine", tmp_path, "--output", "none", cwd=shards).stderr
    assert f"or the folders in it, such as {outputs[0]}, one by one" in around
    refused = act_profile("combine", *outputs[1:], "--output", tmp_path / "none")
    assert refused.returncode == 2 and "missing shards: 0/3" in refused.stderr


def test_the_last_shard_names_the_command_that_combines_all(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(next_step.log, "isEnabledFor", lambda level: True)
    for number in (0, 2):
        shutil.copy(shards / f"german-{number}.safetensors", tmp_path)
    shutil.copy(shards / "english-1.safetensors", tmp_path)  # of another run
    last = tmp_path / "german-2.safetensors"
    next_step.after_profiles({last: act.load(last)})
    said = capsys.readouterr().out
    assert said.startswith("next: the same with --shard 1/3, and") and "..." not in said
    shutil.copy(shards / "german-1.safetensors", tmp_path / "late one.safetensors")
    next_step.after_profiles({last: act.load(last)})
    _, *words = shlex.split(capsys.readouterr().out.removeprefix("next: "))
    assert act_profile(*words).returncode == 0
    assert act.load(tmp_path / "whole.safetensors").provenance.corpora[0].shards == 3


def test_a_shard_without_records_says_so_and_is_combined(tmp_path, capsys):
    corpus = act.Corpus.from_records(GERMAN[:1], train_tokenizer([GERMAN[0]["text"]]), name="german")
    for number in range(2):
        profile = act.profile(tiny_model("llama"), corpus, shard=(number, 2))
        profile.save(tmp_path / f"{number}.safetensors")
        report_profile(profile, tmp_path / f"{number}.safetensors", as_json=False)
        assert ("no record falls to it: the text has fewer records" in capsys.readouterr().out) == (number == 1)
    assert combine(tmp_path / f"{number}.safetensors" for number in range(2)).provenance.corpora[0].records == 1


def test_shards_given_twice_and_what_is_no_shard_are_named(shards, tmp_path):
    again = shutil.copy(shards / "german-0.safetensors", tmp_path / "copy.safetensors")
    twice = act_profile("combine", shards / "german-0.safetensors", again, "--output", tmp_path / "x")
    assert f"shard 0/3 was given twice ({shards / 'german-0.safetensors'} and {again})" in twice.stderr
    merged = act_profile("combine", shards / "german.safetensors", "--output", tmp_path / "x")
    assert "not of a shard, but of several that are merged already" in merged.stderr

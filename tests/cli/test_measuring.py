"""``run`` and ``pair`` as a user types them: several corpora, killed and repeated, with a log."""

from __future__ import annotations

import json
import os
import signal
import time

import command_line
import pytest
import torch
from support import save_models

import act
from act.cli.measuring import Measuring
from act.cli.measuring_options import MeasuringOptions
from act.core.errors import ActError, Interrupted

RECORDS = [{"prompt": f"a b {number}", "completion": f" {number} c d " + "e " * (number % 9)} for number in range(400)]


def act_profile(*arguments, code=0):
    result = command_line.act_profile(*arguments)
    assert result.returncode == code, result.stderr
    return result


def signalled(number, checkpoint, *arguments):
    """What a command ends with that gets a signal as soon as it has written its first checkpoint."""
    running = command_line.Running(*arguments)
    while not checkpoint.exists() and running.process.is_alive():
        time.sleep(0.002)
    os.kill(running.process.pid, number)
    return running.ended()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("measuring")
    save_models(path, tokenizer, "model", "donor")
    for name, part in (("de", RECORDS[:300]), ("en", RECORDS[300:])):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    return path


def options(folder, *more):
    return ["run", "--model", folder / "model", "--token-budget", "64", *more]


@pytest.mark.slow
def test_killed_and_repeated_a_run_gives_the_same_bits_and_is_then_finished(folder, tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "killed"
    corpora = ["--corpus", f"german={folder / 'de.jsonl'}", "--corpus", f"english={folder / 'en.jsonl'}"]
    act_profile(*options(folder, *corpora, "--output", whole))
    repeated = options(folder, *corpora, "--output", output, "--checkpoint-every", "0.01", "--log", tmp_path / "log")
    checkpoint = tmp_path / "killed.checkpoint"
    assert signalled(signal.SIGKILL, checkpoint, *repeated).returncode == -signal.SIGKILL
    assert checkpoint.exists() and not output.exists()
    result = json.loads(act_profile(*repeated, "--json").stdout)
    assert set(result["abilities"]) == {"german", "english"} and result["abilities"]["german"]["records"] == 300
    for ability in ("german", "english"):
        first, again = (act.load(path / f"{ability}.safetensors") for path in (whole, output))
        assert torch.equal(first.moments.arena, again.moments.arena)
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert "resumed" in events and "finished" in events[-2:]  # a checkpoint may follow
    assert not checkpoint.exists()
    assert "finished already" in act_profile(*repeated).stdout
    other = act_profile(*options(folder, *corpora[:2], "--output", output), code=2)
    assert "exists already, from another run (with the text english, which" in other.stderr


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(folder, tmp_path):
    arguments = [
        "pair",
        "--donor",
        folder / "donor",
        "--target",
        folder / "model",
        "--corpus",
        folder / "de.jsonl",
        "--token-budget",
        "20",
        "--output",
        tmp_path / "pair",
        "--checkpoint-every",
        "0.01",
    ]
    stopped = signalled(signal.SIGINT, tmp_path / "pair.checkpoint", *arguments)
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped: interrupted after" in stopped.stderr and "run the same command to continue" in stopped.stderr
    act_profile(*arguments)
    assert os.listdir(tmp_path) == ["pair"] and act.load(tmp_path / "pair").provenance.corpora[0].records == 300


def test_a_second_run_reads_the_tokens_of_the_first(folder, tmp_path):
    corpus = options(folder, "--corpus", folder / "de.jsonl", "--token-cache", tmp_path / "tokens")
    for number in range(2):
        act_profile(*corpus, "--output", tmp_path / f"{number}.safetensors")
    (tokens,) = (tmp_path / "tokens").iterdir()
    first, second = (act.load(tmp_path / f"{number}.safetensors") for number in range(2))
    assert torch.equal(first.moments.arena, second.moments.arena)
    tokens.write_bytes(b"")
    assert "delete the file" in act_profile(*corpus, "--output", tmp_path / "damaged", code=2).stderr


def test_bad_records_are_skipped_and_listed(folder, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a b"}\n{"txt": "c"}\n')
    result = act_profile(*options(folder, "--corpus", path, "--output", tmp_path / "p", "--skip-bad-records", "1"))
    assert f"skipped 1 bad record: {path}, line 2: expected" in result.stderr
    refused = act_profile(*options(folder, "--corpus", path, "--output", tmp_path / "q"), code=2)
    assert f"error: {path}, line 2: expected" in refused.stderr


def test_spans_of_each_ability_are_shown_and_rows_can_be_labelled(folder, tmp_path):
    corpora = ["--corpus", f"german={folder / 'de.jsonl'}", "--corpus", f"english={folder / 'en.jsonl'}"]
    shown = act_profile(*options(folder, *corpora, "--show-spans", "1")).stdout
    assert "german" in shown and "english" in shown and "a b 300[[ 300 c d" in shown
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps({"text": f"a {n}", "skill": "xy"[n % 2]}) + "\n" for n in range(10)))
    act_profile(*options(folder, "--corpus", labelled, "--ability-column", "skill", "--output", tmp_path / "skills"))
    assert sorted(path.name for path in (tmp_path / "skills").glob("*.safetensors")) == [
        "x.safetensors",
        "y.safetensors",
    ]


def test_spans_as_json_and_without_bad_records(folder, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"txt": "c"}\n{"prompt": "a b", "completion": " c"}\n')
    arguments = options(folder, "--corpus", path, "--show-spans", "5", "--json")
    result = act_profile(*arguments, "--skip-bad-records", "1")
    assert json.loads(result.stdout) == {
        "spans": {"": [[{"text": "a b", "counted": False}, {"text": " c</s>", "counted": True}]]}
    }
    assert f"skipped {path}, line 1: expected" in result.stderr
    assert f"error: {path}, line 1: expected" in act_profile(*arguments, code=2).stderr


def test_a_record_skipped_among_labelled_ones_is_told_once(folder, tmp_path):
    path = tmp_path / "labelled.jsonl"
    path.write_text('{"text": "a", "skill": "x"}\n{"text": "b", "skill": "y"}\n{"text": "c", "skill": "../y"}\n')
    labelled = ["--corpus", path, "--ability-column", "skill", "--output", tmp_path / "skills"]
    result = act_profile(*options(folder, *labelled, "--skip-bad-records", "1"))
    assert result.stderr.count("skipped 1 bad record: ") == 1 and "'../y'; expected a valid file name" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["labelled.jsonl", "skills"]
    assert all(act.load(p).provenance.corpora[0].skipped for p in (tmp_path / "skills").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "none.jsonl", "--workers", "-1"], "--workers is -1; expected at least 0"),
        (["--corpus", "none.jsonl", "--show-spans", "-1"], "--show-spans is -1; expected at least 0"),
        (
            ["--corpus", "none.jsonl", "--until-stable", "--stable-score", "paired"],
            "stable score is 'paired'; expected one of mean-abs",
        ),
        (["--corpus", "none.jsonl", "--skip-bad-records", "-1"], "--skip-bad-records is -1; expected at least 0"),
        (["--corpus", "..=none.jsonl"], "no such corpus: ..=none.jsonl"),
        (["--corpus", "a.jsonl", "--corpus", "b.jsonl"], "several corpora need different names"),
        (["--corpus", "one=a.jsonl", "--corpus", "b.jsonl"], "several corpora need different names"),
        (["--corpus", "none.jsonl", "--shard", "2/2"], "shard is '2/2'"),
        (["--corpus", "none.jsonl", "--shard", "0/2", "--until-stable"], "leave out --shard, or --until-stable"),
        (["--corpus", "none.jsonl", "--max-length", "many"], "--max-length is 'many'; expected a whole number"),
    ],
)
def test_bad_options(folder, arguments, message, tmp_path):
    assert message in act_profile(*options(folder, *arguments, "--output", tmp_path / "p"), code=2).stderr


def in_process(folder, output, **options):
    """One run of the demo's corpus in this process."""
    corpus = [str(folder / "de.jsonl")]
    Measuring({"model": str(folder / "model")}, MeasuringOptions(corpus=corpus, output=output, **options)).run()


def test_what_was_counted_is_safe_when_the_profile_cannot_be_written(folder, tmp_path, monkeypatch, capsys):
    def full(*arguments, **options):
        raise ActError("the disk is full")

    output, log = tmp_path / "p", tmp_path / "log"
    with monkeypatch.context() as patched:
        patched.setattr(act.Profile, "save", full)
        with pytest.raises(
            ActError, match=r"the disk is full; what came before .* is safe in .*p\.checkpoint: the same"
        ):
            in_process(folder, output)
        with pytest.raises(ActError, match="the disk is full; nothing was kept"):
            in_process(folder, tmp_path / "q", checkpoint_every=0)
    with monkeypatch.context() as patched:
        patched.setattr("act.profiling.measure.run_job", full)
        with pytest.raises(ActError, match="the disk is full; nothing was kept"):
            in_process(folder, tmp_path / "q", checkpoint_every=0)
    in_process(folder, output, log=log)
    in_process(folder, tmp_path / "whole")
    assert torch.equal(act.load(output).moments.arena, act.load(tmp_path / "whole").moments.arena)
    assert json.loads(log.read_text().splitlines()[0])["event"] == "resumed"
    assert not (tmp_path / "p.checkpoint").exists()


def test_ctrl_c_while_loading_is_a_sentence(folder, tmp_path, monkeypatch):
    def pressed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("act.models.loading.load_model", pressed)
    with pytest.raises(Interrupted, match="interrupted; nothing was counted before, and the same command"):
        in_process(folder, tmp_path / "p")
    (tmp_path / "p.checkpoint").touch()
    with pytest.raises(Interrupted, match=r"what was counted before is safe in .*p\.checkpoint"):
        in_process(folder, tmp_path / "p")

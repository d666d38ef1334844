"""Runs over several processes: ranks of ``torchrun`` and shards of a job array, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import command_line
import pytest
import torch
from support import save_models

import act
import act.models.loading
import act.profiles.combine
from act.core.errors import ActError

RECORDS = [{"prompt": f"a b {number}", "completion": f" {number} c d " + "e " * (number % 9)} for number in range(400)]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def act_profile(*arguments, ranks=0, code=0):
    if not ranks:
        # One thread, as torchrun has it: other threads, other last bits of a matrix product.
        result = command_line.act_profile(*arguments, env={"OMP_NUM_THREADS": "1"})
        assert result.returncode == code, result.stderr
        return result
    command = [*TORCHRUN, "--nproc-per-node", str(ranks), "-m", "--", "act", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode != 0) == (code != 0), result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("distributed")
    save_models(path, tokenizer, "model", "donor")
    (path / "de.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (path / "en.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:3]))
    (path / "other.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS[50:150]))
    return path


def options(folder, *more):
    return ["run", "--model", folder / "model", "--token-budget", "256", "--look-ahead", "32", "--count", "all", *more]


def relative(one, other):
    """Largest difference, of each statistic relative to its largest value."""
    a, b = one.moments.arena.flatten(0, -2), other.moments.arena.flatten(0, -2)
    return float(((a - b).abs().amax(1) / a.abs().amax(1).clamp_min(1e-300)).max())


def printed(result):
    """The one line of JSON that all ranks print together."""
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)


@pytest.fixture(scope="module")
def whole(folder):
    act_profile(*options(folder, "--corpus", folder / "de.jsonl", "--output", folder / "whole.safetensors"))
    return act.load(folder / "whole.safetensors")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_what_one_process_gives(folder, whole, tmp_path, ranks):
    output = tmp_path / "p.safetensors"
    arguments = options(folder, "--corpus", folder / "de.jsonl", "--output", output, "--json")
    assert printed(act_profile(*arguments, "--log", tmp_path / "log", ranks=ranks))["records"] == 400
    profile = act.load(output)
    assert relative(whole, profile) < 1e-12
    assert profile.provenance.corpora[0].counted == whole.provenance.corpora[0].counted
    assert profile.provenance.corpora[0].shard is None
    assert {path.name for path in tmp_path.iterdir()} == {"p.safetensors", "log"}
    if ranks == 2:
        assert "finished_before" in act_profile(*arguments, ranks=ranks).stdout
        assert "finished_before" in act_profile(*arguments).stdout  # the same run, whoever did it


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param("pair", marks=pytest.mark.thorough), "attribute"])
def test_ranks_that_are_killed_go_on_to_what_one_process_gives(folder, tmp_path, command):
    """Also with abilities of which one has nothing for the second rank to read."""
    models = ["--donor", folder / "donor", "--target", folder / "model"]
    corpora = ["--corpus", f"one={folder / 'de.jsonl'}", "--corpus", f"two={folder / 'en.jsonl'}"]
    more = ["--swap"] if command == "pair" else ["--keep", f"three={folder / 'other.jsonl'}"]
    arguments = [command, *models, *corpora, *more, "--token-budget", "256", "--look-ahead", "32"]
    output = tmp_path / "ranks"
    together = [*arguments, "--output", output, "--checkpoint-every", "0.1"]
    process = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node", "2", "-m", "act", *map(str, together)], stderr=subprocess.PIPE, text=True
    )
    checkpoints = [tmp_path / f"ranks.checkpoint-{rank}-of-2" for rank in range(2)]
    os.kill(ranks_of(process, checkpoints, 120)[-1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0 and not output.exists()
    act_profile(*together, ranks=2)
    assert not any(path.exists() for path in checkpoints)
    act_profile(*arguments, "--output", tmp_path / "alone")
    for ability in ("one", "two"):
        one, other = (act.load(tmp_path / name / f"{ability}.safetensors") for name in ("ranks", "alone"))
        assert relative(other, one) < 1e-12
        assert one.provenance.corpora[0].counted == other.provenance.corpora[0].counted
        if command == "attribute":
            assert relative(other.kept[0], one.kept[0]) < 1e-12 and torch.equal(one.distance, other.distance)


def ranks_of(torchrun, checkpoints, patience) -> list[int]:
    """Process ids of the ranks, once each has a checkpoint, which it must in ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not all(path.exists() for path in checkpoints):
        assert torchrun.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(torchrun.pid)], capture_output=True, text=True).stdout
    return [int(child) for child in children.split()]


@pytest.mark.slow
def test_a_lost_rank_is_a_sentence_and_the_same_command_goes_on(folder, tmp_path):
    corpus = tmp_path / "long.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in RECORDS * 12))
    output = tmp_path / "p.safetensors"
    arguments = options(folder, "--corpus", corpus, "--output", output, "--checkpoint-every", "0.1", "--json")
    process = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node", "2", "-m", "act", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    checkpoints = [tmp_path / f"p.safetensors.checkpoint-{rank}-of-2" for rank in range(2)]
    os.kill(ranks_of(process, checkpoints, 60)[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "run the same command to continue" in stderr or "another rank was lost" in stderr
    assert not output.exists() and all(path.exists() for path in checkpoints)
    refused = act_profile(*arguments, code=2)
    assert "another number of ranks" in refused.stderr
    assert printed(act_profile(*arguments, ranks=2))["records"] == 4800
    act_profile(*options(folder, "--corpus", corpus, "--output", tmp_path / "whole.safetensors"))
    alone, together = act.load(tmp_path / "whole.safetensors"), act.load(output)
    assert relative(alone, together) < 1e-12
    assert together.provenance.corpora[0].counted == alone.provenance.corpora[0].counted
    assert together.provenance.corpora[0].shard is None
    assert not any(path.exists() for path in checkpoints)
    assert "finished_before" in act_profile(*arguments).stdout  # the same run, whoever did it


@pytest.mark.slow
@pytest.mark.thorough
def test_torchrun_starts_lost_ranks_again_to_the_same_bits(folder, tmp_path):
    corpus = tmp_path / "long.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in RECORDS * 8))
    output, undisturbed = tmp_path / "p", tmp_path / "undisturbed"
    arguments = options(folder, "--corpus", corpus, "--checkpoint-every", "0.2")
    command = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "1", "-m", "act", *map(str, arguments)]
    process = subprocess.Popen([*command, "--output", output], stderr=subprocess.PIPE, text=True)
    checkpoints = [tmp_path / f"p.checkpoint-{rank}-of-2" for rank in range(2)]
    os.kill(min(ranks_of(process, checkpoints, 120)), signal.SIGKILL)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0 and "exitcode: -9" in stderr, stderr
    assert not any(path.exists() for path in checkpoints)
    act_profile(*arguments, "--output", undisturbed, ranks=2)
    assert torch.equal(act.load(output).moments.arena, act.load(undisturbed).moments.arena)


@pytest.mark.slow
@pytest.mark.thorough
def test_ranks_refuse_together_what_one_process_refuses(folder, tmp_path):
    bad, empty, output = tmp_path / "bad.jsonl", tmp_path / "empty.jsonl", tmp_path / "p"
    lines = (folder / "de.jsonl").read_text().splitlines()
    bad.write_text("\n".join(["{", *lines[:100], "{", *lines[100:], ""]))  # one for each rank
    empty.write_text('{"prompt": "a", "completion": ""}\n')
    arguments = options(folder, "--output", output, "--skip-bad-records", "1")
    refused = act_profile(*arguments, "--corpus", bad, ranks=2, code=2).stderr
    assert "line 102: not JSON" in refused and "leave up to N bad records out (--skip-bad-records N)" in refused
    assert "another rank was lost" not in refused and not output.exists()
    act_profile(*arguments, "--skip-bad-records", "2", "--corpus", bad, ranks=2)
    exists = act_profile(*arguments, "--corpus", folder / "de.jsonl", ranks=2, code=2).stderr
    assert "exists already" in exists and "another rank was lost" not in exists
    corpora = ["--corpus", f"x={folder / 'de.jsonl'}", "--corpus", f"y={empty}", "--output", tmp_path / "q"]
    refused = act_profile(*arguments, *corpora, ranks=2, code=2).stderr
    assert "empty.jsonl: no token was counted; it is empty" in refused and not (tmp_path / "q").exists()


@pytest.mark.slow
@pytest.mark.thorough
def test_ranks_with_nothing_to_read_and_with_abilities(folder, tmp_path):
    corpora = ["--corpus", f"one={folder / 'de.jsonl'}", "--corpus", f"two={folder / 'en.jsonl'}"]
    for name, ranks in (("ranks", 4), ("alone", 0)):
        act_profile(*options(folder, *corpora, "--output", tmp_path / name), ranks=ranks)
    for ability in ("one", "two"):
        one, other = (act.load(tmp_path / name / f"{ability}.safetensors") for name in ("ranks", "alone"))
        assert relative(other, one) < 1e-12


@pytest.mark.slow
@pytest.mark.thorough
def test_bad_input_of_ranks(folder, tmp_path):
    result = act_profile(
        *options(folder, "--corpus", tmp_path / "none.jsonl", "--output", tmp_path / "p"), ranks=2, code=2
    )
    assert "no such corpus" in result.stderr and 'Traceback (most recent call last):\n  File "/act' not in result.stderr
    stable = options(folder, "--corpus", folder / "de.jsonl", "--output", tmp_path / "p", "--until-stable")
    assert "works in one process" in act_profile(*stable, ranks=2, code=2).stderr


def test_a_shard_alone_cannot_tell_when_the_whole_is_certain(folder, tmp_path):
    arguments = options(folder, "--corpus", folder / "de.jsonl", "--output", tmp_path / "p")
    refused = act_profile(*arguments, "--until-stable", "--shard", "0/2", code=2)
    assert "--shard" in refused.stderr and not (tmp_path / "p").exists()


def test_shards_combine_to_the_whole(folder, whole, tmp_path, monkeypatch):
    model = act.models.loading.load_model(str(folder / "model"))
    corpus = act.Corpus.from_file(
        folder / "de.jsonl", act.models.loading.load_tokenizer(str(folder / "model")), count="all"
    )
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.safetensors")
        act.profile(model, corpus, token_budget=64, look_ahead=32, shard=(number, 3)).save(paths[-1])
    output = tmp_path / "all.safetensors"
    act_profile("combine", paths[2], paths[0], paths[1], "--output", output, "--json")
    combined = act.load(output)
    assert relative(whole, combined) < 1e-6  # float32 rounds otherwise in batches of other rows
    assert combined.provenance.corpora[0].shards == 3
    assert combined.provenance.corpora[0].records == 400
    again = act.profiles.combine.combine([act.load(path) for path in paths])
    assert torch.equal(again.moments.arena, combined.moments.arena)

    with monkeypatch.context() as patched:  # headers are enough to refuse
        patched.setattr(act.profiles.combine.StoredProfile, "load", None)
        with pytest.raises(ActError, match="missing shards: 0/3"):
            act.profiles.combine.combine(paths[1:])
    assert torch.equal(act.profiles.combine.combine(paths).moments.arena, combined.moments.arena)
    nothing = act.Corpus.from_records([], corpus.tokenizer)
    with pytest.raises(ActError, match="no token was counted; it is empty"):
        act.profiles.combine.combine([act.profile(model, nothing, shard=(number, 2)) for number in range(2)])

    (tmp_path / "shards").mkdir()
    for path in paths:
        shutil.copy(path, tmp_path / "shards")
    act_profile("combine", tmp_path / "shards", "--output", tmp_path / "from folder.safetensors", "--json")
    assert torch.equal(act.load(tmp_path / "from folder.safetensors").moments.arena, combined.moments.arena)

    refused = tmp_path / "refused"
    missing = act_profile("combine", *paths[:2], "--output", refused, code=2)
    assert "missing shards: 2/3" in missing.stderr
    assert "given twice" in act_profile("combine", paths[0], *paths, "--output", refused, code=2).stderr
    assert "not of a shard" in act_profile("combine", output, "--output", refused, code=2).stderr
    partial = act.profiles.combine.combine([act.load(path) for path in paths[:2]], partial=True)
    assert partial.provenance.corpora[0].shards == (0, 1)
    act.profile(model, corpus, token_budget=128, look_ahead=32, shard=(2, 3)).save(tmp_path / "other.safetensors")
    other = act_profile("combine", *paths[:2], tmp_path / "other.safetensors", "--output", refused, code=2)
    assert "different settings (token_budget" in other.stderr
    act.profile(model, corpus, token_budget=64, look_ahead=32, shard=(1, 2)).save(tmp_path / "half.safetensors")
    assert (
        "of a run of"
        in act_profile("combine", paths[0], tmp_path / "half.safetensors", "--output", refused, code=2).stderr
    )

"""Live signals at random moments: the next run gives the same bits, and nothing else is left.

Each command gets one of them, in turn; ``ACT_KILLS=20 pytest tests/cli/test_kills.py`` sends 20 SIGKILLs and 10
SIGTERMs to each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Running, act_profile
from safetensors.torch import load_file
from support import chosen, random_batches, tiny_model

import act
from act.models.channels import ChannelSpace

KILLS = int(os.environ.get("ACT_KILLS", "0"))
OFTEN = ["--checkpoint-every", "0.05"]
SEVERAL = ["--corpus", "one=text.jsonl", "--corpus", "two=other.jsonl"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("kills")
    for seed, name in enumerate(("donor", "target")):
        model = tiny_model("llama", seed)
        model.save_pretrained(path / name, max_shard_size="20KB")
        tokenizer.save_pretrained(path / name)
    chosen(ChannelSpace.from_model(model), 0.2).save(path / "set")
    act.profile_pair(tiny_model("llama"), model, random_batches()).save(path / "pair")
    words, draw = ["a", "b", "c", "d", "e", "one", "two", "three", "four", "five"], random.Random(0)
    for name in ("text", "other", "kept"):
        rows = [
            {"prompt": " ".join(draw.choices(words, k=9)), "completion": " " + " ".join(draw.choices(words, k=9))}
            for _ in range(200)
        ]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measuring(command: str, *more: object) -> Callable[[Path, Path], list[object]]:
    def arguments(inputs: Path, place: Path) -> list[object]:
        models = ["--donor", inputs / "donor", "--target", inputs / "target"]
        models = ["--model", inputs / "target"] if command == "run" else models
        corpus = more if "--corpus" in more else ("--corpus", "text.jsonl", *more)
        return [command, *models, *corpus, *OFTEN, "--token-budget", "256", "--output", place / "out"]

    return arguments


def recipe(inputs: Path, place: Path) -> Path:
    """A recipe that tunes and evaluates; paths in it are relative to the inputs."""
    path = inputs / f"{place.parent.name}-{place.name}.yaml"
    lines = [
        f"merge_method: act\nbase_model: target\noutput: {place / 'out'}",
        "models: [{model: donor, corpus: other.jsonl}]",
        "tune: {corpus: text.jsonl, steps: 6, batch_size: 2, save_steps: 2}",
        "evaluate: {corpora: {text: text.jsonl}, metric: nll}",
    ]
    path.write_text("\n".join(lines))
    return path


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "run": measuring("run"),
    "pair": measuring("pair", "--swap"),
    "several abilities": measuring("pair", "--swap", *SEVERAL),
    "until stable": measuring("pair", "--until-stable", "--stable-overlap", "0.5"),
    "attribute": measuring("attribute", *SEVERAL, "--keep", "kept.jsonl", "--until-stable"),
    "token cache": measuring("run", "--token-cache", "PLACE/cache"),
    "transfer": lambda inputs, place: [
        *("transfer", "--donor", inputs / "donor", "--target", inputs / "target"),
        *("--channels", inputs / "set", "--output", place / "out"),
    ],
    "tune": lambda inputs, place: [
        *("tune", "--model", inputs / "target", "--corpus", "text.jsonl", "--steps", "12", "--batch-size", "2"),
        *("--save-steps", "3", "--output", place / "out"),
    ],
    "sweep": lambda inputs, place: [
        *(
            "sweep",
            inputs / "pair",
            "--donor",
            inputs / "donor",
            "--target",
            inputs / "target",
            "--corpus",
            "text.jsonl",
        ),
        *("--keep", "kept.jsonl", "--top", "10%", "--metric", "nll", "--output", place / "out.json"),
    ],
    "recipe": lambda inputs, place: ["recipe", recipe(inputs, place)],
}


def sent(name: str) -> dict[int, int]:
    """How often each signal is sent to a command."""
    if KILLS:
        return {signal.SIGKILL: KILLS, signal.SIGTERM: (KILLS + 1) // 2}
    return {(signal.SIGKILL, signal.SIGTERM)[list(COMMANDS).index(name) % 2]: 1}


def started(name: str, inputs: Path, place: Path) -> Running:
    arguments = [str(each).replace("PLACE", str(place)) for each in COMMANDS[name](inputs, place)]
    return Running(*arguments, cwd=inputs)


def contents(place: Path) -> dict[str, str]:
    """The hash of every file, hidden ones too; of the tensors alone, and of no page, where times and places may stand."""
    found = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        if path.name.startswith(("report", "recipe", "figures", "README", "index")) or path.suffix == ".xxh3":
            found[path.relative_to(place).as_posix()] = ""
            continue
        digest = hashlib.sha256()
        try:
            for key, tensor in sorted(load_file(path).items()):
                digest.update(f"{key}{tensor.dtype}{list(tensor.shape)}".encode() + tensor.numpy().tobytes())
        except Exception:  # not a file of tensors
            digest.update(path.read_bytes())
        found[path.relative_to(place).as_posix()] = digest.hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_next_run_gives_the_same_bits_and_leaves_nothing_else(name, inputs, tmp_path):
    if name == "recipe" and not KILLS:
        pytest.skip("takes as long as all others")
    (tmp_path / "whole").mkdir()
    act_profile("--help")  # starts the server that forks
    start = time.monotonic()
    ended = started(name, inputs, tmp_path / "whole").ended()
    assert ended.returncode == 0, ended.stderr
    length = time.monotonic() - start
    expected = contents(tmp_path / "whole")
    draw = random.Random(name)
    for number, count in sent(name).items():
        for trial in range(count):
            place = tmp_path / f"{number.name}-{trial}"
            place.mkdir()
            running = started(name, inputs, place)
            time.sleep(draw.uniform(0, length))
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.process.pid, number)
            killed = running.ended()
            if number is signal.SIGTERM:
                assert killed.returncode in (0, 130, 143, -number), killed.stderr
                assert not [path.name for path in place.rglob(".?*.act-*")], killed.stderr
            again = started(name, inputs, place).ended()
            whole = again.returncode == 2 and "exists already" in again.stderr  # the signal came at the very end
            assert again.returncode == 0 or whole, again.stderr
            assert contents(place) == expected
    print(f"{name}: {length:.1f} s, {sum(sent(name).values())} signals")


@pytest.mark.slow
def test_of_two_equal_runs_one_says_that_the_other_is_at_work(inputs, tmp_path):
    first = started("pair", inputs, tmp_path)
    lock = tmp_path / ".out.act-lock"
    while not lock.exists() or not lock.read_text():
        time.sleep(0.01)
    os.kill(first.process.pid, signal.SIGSTOP)
    second = started("pair", inputs, tmp_path).ended()
    os.kill(first.process.pid, signal.SIGCONT)
    assert second.returncode == 2 and f"process {first.process.pid} is writing" in second.stderr, second.stderr
    assert first.ended().returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

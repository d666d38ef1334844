"""Evaluations in a folder: what was evaluated is not evaluated again, and a choice goes on from them to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import save_models, tiny_model
from typer.testing import CliRunner

import act
from act.cli import app
from act.core.scratch import release_all
from act.evaluation import evaluations
from act.evaluation.evaluations import Evaluations


@pytest.fixture
def counted(monkeypatch):
    """The calls of :func:`act.evaluate`; with ``calls.last = N``, what comes after N of them is interrupted."""

    class Calls(list[str]):
        last = 1000

    calls, real = Calls(), evaluations.evaluate

    def evaluate(model, corpus, metric):
        if len(calls) >= calls.last:
            raise KeyboardInterrupt
        calls.append(corpus.name)
        return real(model, corpus, metric)

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    return calls


@pytest.fixture
def corpus(tokenizer):
    return act.Corpus.from_records([{"prompt": "a b", "completion": " c"}] * 3, tokenizer, name="letters")


def test_an_evaluation_is_read_back_bit_for_bit_until_something_differs(corpus, tokenizer, counted, tmp_path):
    model = tiny_model("llama")
    (first,), (again,) = (Evaluations(tmp_path / "kept")(model, [corpus], "exact") for _ in range(2))
    assert counted == ["letters"] and first.to_json() == again.to_json() and torch.equal(first.nll, again.nll)
    others = [
        (tiny_model("llama", 1), corpus, "exact"),
        (model, corpus, "nll"),
        (model, act.Corpus.from_records([{"prompt": "a b", "completion": " d"}], tokenizer, name="letters"), "exact"),
        (model.to(torch.bfloat16), corpus, "exact"),
    ]
    for number, (other, text, metric) in enumerate(others, start=2):
        Evaluations(tmp_path / "kept")(other, [text], metric)
        assert len(counted) == number == Evaluations(tmp_path / "kept").kept


def test_what_cannot_be_read_is_evaluated_again_and_what_is_not_ours_stays(corpus, counted, tmp_path):
    kept = Evaluations(tmp_path)
    kept(tiny_model("llama"), [corpus], "nll")
    (file,) = tmp_path.iterdir()
    for damaged in (b"", b"[]", b"{}", file.read_bytes()[:-9], b"\xff"):
        file.write_bytes(damaged)
        kept(tiny_model("llama"), [corpus], "nll")
    assert len(counted) == 6 and kept.kept == 1
    (tmp_path / "mine.json").write_text("{}")
    kept.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]
    nowhere = Evaluations(None)
    for _ in range(2):
        nowhere(tiny_model("llama"), [corpus], "nll")
    assert len(counted) == 8 and not nowhere.kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("evaluations")
    save_models(path, tokenizer, "donor", "target")
    for name, answer in (("ability", " c d"), ("kept", " a e")):
        rows = [{"prompt": f"a {'b ' * number}c", "completion": answer} for number in range(1, 13)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair = act.profile_pair(
        tiny_model("llama"), tiny_model("llama", 1), act.Corpus.from_file(path / "kept.jsonl", tokenizer)
    )
    pair.save(path / "pair.safetensors")
    return path


def test_an_interrupted_sweep_goes_on_and_leaves_its_output_alone(folder, counted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["sweep", folder / "pair.safetensors", "--donor", folder / "donor", "--target", folder / "target"]
    given += [
        "--corpus",
        folder / "ability.jsonl",
        "--keep",
        folder / "kept.jsonl",
        "--top",
        "10%",
        "--control",
        "random",
    ]
    run = CliRunner()

    def swept(output: str):
        try:
            return run.invoke(app, [str(each) for each in (*given, "--output", output)])
        finally:
            release_all()  # as when the process ends

    assert swept("whole.json").exit_code == 0 and len(counted) == 20  # 4 strengths, twice, beside target and donor
    counted.clear()
    counted.last = 7
    assert swept("broken.json").exit_code == 130
    assert sorted(path.name for path in tmp_path.iterdir() if "broken" in path.name) == [".broken.json.evaluations"]
    counted.last = 1000
    done = swept("broken.json")
    assert done.exit_code == 0 and "going on from 7 evaluations that an earlier run has kept" in done.stderr
    assert len(counted) == 20 and not Path(".broken.json.evaluations").exists()
    assert Path("broken.json").read_bytes() == Path("whole.json").read_bytes()

"""``act-profile report``: where its page is written, and what it says of what it was given."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from support import tiny_model

import act
from act.cli import app
from act.core.errors import ActError
from act.core.scratch import release_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("report")
    models = {name: tiny_model("llama", seed, torch.bfloat16) for seed, name in enumerate(("donor", "target"))}
    for name, model in models.items():
        model.save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    for name in ("letters", "others"):
        (path / f"{name}.jsonl").write_text(json.dumps({"prompt": "a b", "completion": f" c d {name}"}))
    corpus = act.Corpus.from_file(path / "letters.jsonl", tokenizer)
    act.profile_pair(*models.values(), corpus).save(path / "pair.safetensors")
    (path / "letters.jsonl.old").touch()
    rows = [{"top": top, "strength": 1.0, "channels": 9, "t": value} for top, value in ((0.0, 0.1), (0.05, 0.4))]
    sweep = {"rows": rows, "frontier": rows, "doubts": ["t has 2 records to choose by", "some of t were ranked on"]}
    (path / "sweep.json").write_text(json.dumps(sweep))
    return path


@pytest.fixture
def report(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)

    def run(line: str) -> str:
        try:
            app(["report", *shlex.split(line.format(out=tmp_path))], standalone_mode=False)
        finally:
            release_all()
        out, told = capsys.readouterr()
        return out + told

    return run


@pytest.mark.parametrize("output", ["new/index.html", "German.HTML"])
def test_an_output_that_is_named_as_a_page_is_that_page(report, output, tmp_path):
    assert report(f"pair.safetensors --output {{out}}/{output}").splitlines()[-1] == f"{tmp_path}/{output}"
    page = tmp_path / output
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in page.parent.iterdir()] == [page.name]  # no tables


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--output {out}/a.html --static", "is the page alone; give a folder"),
        ("--output {out}/a.pdf", "expected the name of a folder, or a page that ends with .html"),
        ("--keep others.jsonl", "measure the text first .*--corpus others.jsonl --output others.safetensors"),
        ("--output letters.jsonl.old --force", "is a file; expected a folder, or a page"),
        ("--keep-profile pear.safetensors", "did you mean pair.safetensors"),
    ],
)
def test_mistakes_name_the_way_out(report, given, message, tmp_path):
    with pytest.raises(ActError, match=message):
        report(f"pair.safetensors {given}")
    assert not [*tmp_path.iterdir()]


def test_what_runs_is_looked_at_and_what_was_ranked_on_is_told(report, monkeypatch, tmp_path):
    looked = []
    monkeypatch.setattr("act.profiling.dtype_speed.warn_of_half", looked.append)
    shown = report("pair.safetensors --donor donor --target target --corpus letters.jsonl --output {out}/page")
    assert [next(model.parameters()).dtype for model in looked] == [torch.bfloat16] * 2
    assert "letters.jsonl is the text that the channels were ranked on" in shown
    assert "Sufficiency: loss, nats per token" in shown
    assert "letters.jsonl is the text" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


def test_a_doubtful_sweep_is_doubted_first(report, tmp_path):
    *_, headline, _ = report("sweep.json --output {out}/page").splitlines()
    assert headline == "No share or strength can be chosen by these figures: t has 2 records to choose by."
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    first, more = page.index("t has 2 records to choose by"), page.index("some of t were ranked on")
    assert first < more < page.index("As a picture of these records alone: Of 1 setting")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sweep.json --top 10%", "--top has no effect without a profile"),
        ("sweep.json --include down", "--include has no effect without a profile"),
        ("donor", "donor is a model; a report is of what was measured: give what act-profile pair"),
        ("letters.jsonl", r"letters\.jsonl is a text; a report is of what was measured"),
    ],
)
def test_what_has_no_effect_and_what_was_not_measured_is_refused(report, given, message):
    with pytest.raises(ActError, match=message):
        report(f"{given} --output {{out}}/page")

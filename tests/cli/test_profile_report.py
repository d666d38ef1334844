"""What a run ends with: a row for each text, what was measured, and at which speed, of which nothing is said twice."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from support import random_batches, tiny_model

import act
from act.cli.profile_report import report_profile, report_profiles


@pytest.fixture
def shown(monkeypatch, capsys):
    """The lines that are printed of profiles, on a terminal of some columns, and what goes to the log."""

    def told(profiles, columns=140):
        monkeypatch.setenv("COLUMNS", str(columns))
        if isinstance(profiles, dict):
            report_profiles(profiles, Path("out"), as_json=False)
        else:
            report_profile(profiles, Path("p.safetensors"), as_json=False)
        return capsys.readouterr().out.splitlines()

    return told


def rows(lines):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


@pytest.fixture
def texts(tokenizer):
    records = [{"prompt": f"a b {word}", "completion": f" {word} c"} for word in ("one", "two", "three")]
    return [act.Corpus.from_records(some, tokenizer) for some in (records[:2], records[2:])]


def test_a_run_that_had_nothing_left_to_read_names_no_kernels_of_sites(shown, caplog):
    pair = act.profile_pair(tiny_model("llama", 0), tiny_model("llama", 1), random_batches())
    caplog.set_level(logging.DEBUG, "act.cli")
    printed = shown(pair)
    assert "sites by what reads them" in caplog.text and not any("sites by" in line for line in printed)
    caplog.clear()
    read = replace(pair.provenance.corpora[0], paths={})
    shown(act.PairProfile(pair.moments, replace(pair.provenance, corpora=(read,))))
    assert "coverage by kind" in caplog.text and "sites by what reads them" not in caplog.text


def test_an_attribution_says_what_was_read_of_each_text(shown, texts):
    ability, kept = texts
    found = act.attribute(tiny_model("llama", 0), tiny_model("llama", 1), ability, keep={"maths": kept})
    lines = shown(found)
    tokens = [one.provenance.corpora[0].tokens for one in (found, found.kept[0])]
    assert rows(lines) == [
        ["records", "2", f"{tokens[0]}", f"{found.tokens}"],
        ["maths, to keep", "1", f"{tokens[1]}", f"{found.kept[0].tokens}"],
    ]
    assert "in the loss" in lines[2] and lines[0].strip() == "Written to p.safetensors"
    assert any(line.startswith(f"{sum(tokens)} tokens in ") and line.endswith("with native kernels") for line in lines)


@pytest.mark.parametrize("columns", [40, 140])
def test_several_texts_are_a_row_each_and_the_pass_is_told_once(shown, texts, columns):
    found = act.profile(tiny_model("llama"), dict(zip(("german", "maths"), texts, strict=True)))
    lines = shown(found, columns)
    reads = {name: one.provenance.corpora[0] for name, one in found.items()}
    said = "\n".join(lines)
    assert sum(line.startswith("940 channels") for line in lines) == 1 == said.count(" a second, with ")
    assert f"{sum(read.tokens for read in reads.values())} tokens in " in said
    if columns == 140:
        assert rows(lines) == [
            [name, str(read.records), str(read.tokens), str(read.counted), f"{name}.safetensors"]
            for name, read in reads.items()
        ]
    else:
        assert "german\n  records: 2\n" in said and "  file: maths.safetensors\n" in said
    assert len(lines) < 16


def test_a_warning_of_all_texts_is_given_once_and_another_names_its_text(shown, texts, caplog):
    found = act.profile(tiny_model("llama"), dict(zip(("german", "maths"), texts, strict=True)))
    both = {"lm_head": 3}
    for name, one in found.items():
        read = replace(one.provenance.corpora[0], irregular=both, nonfinite={"x": 1} if name == "maths" else {})
        found[name] = act.Profile(one.moments, replace(one.provenance, corpora=(read,)))
    shown(found)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [
        "sites that did not see every counted token (rows seen): lm_head (3)",
        "maths: NaN or infinite values were left out of the statistics of x (1)",
    ]

"""The table that a run ends with: what it counts is what its lines of progress counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import random_batches, tiny_model

import act
from act.cli.profile_report import report_profile


@pytest.fixture
def table(monkeypatch, capsys):
    """The rows of a profile's table, by their names."""
    monkeypatch.setenv("COLUMNS", "140")

    def shown(profile: act.Profile) -> dict[str, str]:
        report_profile(profile, Path("p.safetensors"), as_json=False)
        lines = capsys.readouterr().out.splitlines()
        cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in lines if line.count("│") == 3]
        return dict(cells)

    return shown


def test_a_run_that_had_nothing_left_to_read_names_no_kernels_of_sites(table):
    pair = act.profile_pair(tiny_model("llama", 0), tiny_model("llama", 1), random_batches())
    assert "sites by what reads them" in table(pair)
    read = replace(pair.provenance.corpora[0], paths={})
    resumed = act.PairProfile(pair.moments, replace(pair.provenance, corpora=(read,)))
    assert "sites by what reads them" not in table(resumed)


def test_an_attribution_says_what_was_read_of_each_text(table, tokenizer):
    records = [{"prompt": f"a b {word}", "completion": f" {word} c"} for word in ("one", "two", "three")]
    ability, kept = (act.Corpus.from_records(some, tokenizer) for some in (records[:2], records[2:]))
    found = act.attribute(tiny_model("llama", 0), tiny_model("llama", 1), ability, keep=kept)
    rows = table(found)
    assert rows["records"] == "2, and 1 of what to keep"
    assert rows["tokens that the loss is over"] == f"{found.tokens}, and {found.kept[0].tokens} of what to keep"

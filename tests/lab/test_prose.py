"""``act-profile demo`` on real prose: what ships with it, what it shows, and what a whole run recovers."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
from command_line import act_profile

from act.cli.demo import command
from act.evaluation.kept import KEPT
from act.lab import prose

METHODS = {"attribution", "match-contrast", "match", "paired", "weight-diff", "random", "interpolation"}


@pytest.fixture(scope="module")
def few():
    """A run on few texts, with the steps that it told."""
    steps: list[str] = []
    whole = prose.texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "texts", lambda ability, split: whole(ability, split)[:6])
        patch.setattr(prose, "SHARES", (0.02, 0.1, 0.3))
        return prose.run(steps.append), steps


def test_target_and_donor_are_the_ends_of_both_scales(few):
    result, _ = few
    assert (result.before.recovered.value, result.before.kept.value) == (0, 1)
    assert (result.donor.recovered.value, result.donor.kept.value) == (1, 0)
    assert result.before.bits["german"] > result.donor.bits["german"] + 0.2
    assert result.before.bits["mathematics"] < result.donor.bits["mathematics"] - 0.2


def test_every_method_is_chosen_and_tested_in_the_same_way(few):
    result, steps = few
    assert set(result.methods) == METHODS
    assert {step.split(": ")[1] for step in steps if "choosing" in step} == METHODS
    assert all(method.share in (0, 0.02, 0.1, 0.3) for method in result.methods.values())
    moved = result.moved["attribution"]
    assert len(moved) == round(result.methods["attribution"].share * moved.rule.ranked)
    assert set(result.read) == {"target", *METHODS, "donor"}


def test_the_models_continue_the_first_test_texts(few):
    result, _ = few
    for ability, written in result.written.items():
        first, *_ = prose.texts(ability, "test")
        assert first.startswith(written.prompt) and len(written.prompt) >= prose.PROMPT_CHARACTERS
        assert set(written.by_model) == {"target", "mended", "donor"} and all(written.by_model.values())


@pytest.fixture
def shown(few, monkeypatch, tmp_path):
    """The command on that run."""
    monkeypatch.setattr(prose, "run", lambda say: few[0])
    return partial(command, report=tmp_path / "page")


def test_the_command_shows_the_texts_then_the_table(few, shown, capsys):
    shown()
    printed = capsys.readouterr().out
    assert printed.index(few[0].written["german"].prompt.split()[0]) < printed.index("German recovered")
    assert "the paper's: paired" in printed and "control: weight-diff" in printed


def test_it_ends_with_the_path_of_a_report(few, shown, capsys, tmp_path):
    shown()
    assert capsys.readouterr().out.rstrip().endswith(str(tmp_path / "page" / "index.html"))
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    headline = re.search(r'id="verdict-title">.*?<bdi>(.*?)</bdi>', page)[1]
    assert "German" in headline and few[0].written["german"].by_model["mended"].split()[0] in page
    for name in METHODS - {"interpolation"}:
        assert f"{name}: " in page  # what it moved


def test_json_has_the_fields_of_the_demo_before_and_more(few, shown, capsys):
    shown(as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert set(result) >= {"before", "after", "donor", "controls", "seconds", "report", "finders", "written"}
    assert set(result["finders"]) | set(result["controls"]) == METHODS
    for figures in (result[name] for name in ("before", "after", "donor")):
        assert set(figures) == {"forgotten", "retained"}
    for figures in (*result["finders"].values(), *result["controls"].values()):
        assert all(0 <= figures[ability] <= 1 for ability in ("forgotten", "retained"))


def test_most_is_the_largest_size_that_keeps_enough():
    for enough in range(6):
        assert prose.most((1, 2, 3, 4, 5), lambda size, enough=enough: size <= enough) == enough


def test_an_unknown_language_is_refused(tmp_path):
    result = act_profile("demo", "--language", "Klingon", cwd=tmp_path)
    assert result.returncode == 2 and "expected prose (German help pages" in result.stderr


def test_what_ships_is_small_and_says_whose_text_it_is():
    files = [path for path in prose.PROSE.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 3_000_000
    assert sum(path.stat().st_size for path in files) < 12_000_000
    assert "MPL-2.0" in (prose.PROSE / "README.md").read_text(encoding="utf-8")


def test_no_text_is_in_two_splits():
    files = sorted(path.name.removesuffix(".jsonl.gz").split("-") for path in prose.PROSE.glob("*.jsonl.gz"))
    found = [text for ability, split in files for text in prose.texts(ability, split)]
    assert len(files) == 5 and len(found) == len(set(found)) > 100


@pytest.mark.slow
def test_the_whole_demo_recovers_more_than_every_control(tmp_path):
    result = act_profile("demo", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["report"] == "act-demo/index.html" and [path.name for path in tmp_path.iterdir()] == ["act-demo"]
    best = max(figures["forgotten"] for figures in found["controls"].values())
    assert found["after"]["forgotten"] > 1.2 * best and found["after"]["forgotten"] > 0.4
    without_gradients = max(found["finders"][name]["forgotten"] for name in ("match", "match-contrast"))
    assert without_gradients > found["controls"]["interpolation"]["forgotten"]
    assert found["after"]["retained"] > KEPT - 0.03

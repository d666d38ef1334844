"""``act-profile demo --language invented``, as a user types it: what it recovers, and its controls."""

from __future__ import annotations

import json
import subprocess

import pytest
from command_line import act_profile

from act.cli.demo import command
from act.lab import demo
from act.lab.frontier import Point, best_keeping
from act.lab.models import CHECKPOINTS, load
from act.report.page import Page
from act.report.write import write


def act_profile_demo(folder, *arguments: str) -> subprocess.CompletedProcess:
    return act_profile("demo", "--language", "invented", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder of a run, and its JSON."""
    folder = tmp_path_factory.mktemp("demo")
    write(None, folder / "act-demo", page=Page("of an earlier run"))
    result = act_profile_demo(folder, "--json")
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


def test_json_has_the_promised_fields(shown):
    _, result = shown
    assert set(result) >= {"before", "after", "donor", "controls", "seconds"}
    assert set(result["controls"]) == {"random", "weight-diff", "interpolation"}
    for figures in (result["before"], result["after"], result["donor"], *result["controls"].values()):
        assert set(figures) == {"forgotten", "retained"}
        assert all(0 <= value <= 1 for value in figures.values())


def test_the_transfer_recovers_the_forgotten_and_keeps_the_retained(shown):
    _, result = shown
    assert result["donor"]["forgotten"] > 0.95 and result["before"]["forgotten"] < 0.05
    assert result["after"]["forgotten"] > 0.25 + result["before"]["forgotten"]
    assert result["after"]["forgotten"] > 0.2 + result["controls"]["random"]["forgotten"]
    assert result["after"]["retained"] > 0.95 * result["before"]["retained"]


def test_a_report_is_left_and_the_default_one_is_replaced(shown):
    folder, result = shown
    assert result["report"] == "act-demo/index.html" and [path.name for path in folder.iterdir()] == ["act-demo"]
    page = (folder / result["report"]).read_text(encoding="utf-8")
    assert "of an earlier run" not in page and "German came back, and clearly more than with" in page


def test_the_figures_are_shown_as_a_table(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run", lambda say: few)
    command(language="invented", report=tmp_path / "page")
    printed = capsys.readouterr().out
    assert "forgotten (German)" in printed and "random channels" in printed
    assert f"{100 * few.figures('act')['forgotten']:.1f}" in printed
    assert printed.rstrip().endswith(str(tmp_path / "page" / "index.html"))


def test_a_folder_of_the_user_is_not_replaced(tmp_path):
    (tmp_path / "act-demo").mkdir()
    (tmp_path / "act-demo" / "mine.txt").write_text("precious")
    for more in ([], ["--report", "act-demo"]):
        result = act_profile_demo(tmp_path, *more)
        assert result.returncode == 2 and "holds mine.txt, not written by act-profile" in result.stderr
    (tmp_path / "page").mkdir()
    result = act_profile_demo(tmp_path, "--report", "page")
    assert result.returncode == 2 and "exists already" in result.stderr


@pytest.fixture(scope="module")
def few():
    """A run on few records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TEST_RECORDS", 64)
        return demo.run()


def test_controls_are_of_equal_size_and_figures_repeat(few, monkeypatch):
    assert len({len(channels) for channels in few.moved.values()}) == 1
    monkeypatch.setattr(demo, "TEST_RECORDS", 64)
    again = demo.run()
    assert {name: again.figures(name) for name in again.read} == {name: few.figures(name) for name in few.read}


def _solved(model, exams) -> dict[str, float]:
    return {ability: exam(model) for ability, exam in exams.items()}


@pytest.mark.slow
def test_the_interpolation_is_the_best_of_validation_records():
    (donor, tokenizer), (target, _) = load(CHECKPOINTS / "base"), load(CHECKPOINTS / "target")
    exams = demo._exams(tokenizer, "validation")
    tried = {
        strength: Point(**_solved(demo._interpolated(donor, target, strength), exams))
        for strength in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
    }
    assert best_keeping(tried, Point(**_solved(target, exams))) == demo.INTERPOLATION


def test_interpolation_at_its_ends_is_the_models_themselves():
    (donor, _), (target, _) = load(CHECKPOINTS / "base"), load(CHECKPOINTS / "target")
    for strength, end in ((0.0, target), (1.0, donor)):
        mixed = demo._interpolated(donor, target, strength)
        assert all((a == b).all() for a, b in zip(mixed.parameters(), end.parameters(), strict=True))

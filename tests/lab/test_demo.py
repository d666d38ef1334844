"""``act-profile demo --language invented``, as a user types it: what it recovers, and its controls."""

from __future__ import annotations

import json
import subprocess

import pytest
from command_line import act_profile
from support import chosen

from act.cli.demo import command
from act.lab import demo
from act.lab.frontier import Point, best_keeping
from act.lab.models import CHECKPOINTS, load
from act.models.channels import ChannelSpace


def act_profile_demo(folder, *arguments: str) -> subprocess.CompletedProcess:
    return act_profile("demo", "--language", "invented", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder of a run, and its JSON."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "act-demo.png").write_text("of an earlier run")
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


def test_the_picture_is_saved_and_the_default_is_replaced(shown):
    folder, result = shown
    picture = folder / result["picture"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in folder.iterdir()] == [picture.name]


def test_the_figures_are_shown_as_a_table(shown, tmp_path, monkeypatch, capsys):
    _, result = shown
    target, _ = load(CHECKPOINTS / "target")
    figures = {name: result[name] for name in ("before", "after", "donor", "controls", "seconds")}
    ended = demo.Demo(**figures, channels=chosen(ChannelSpace.from_model(target), demo.TOP))
    monkeypatch.setattr(demo, "run", lambda say: ended)
    command(language="invented", picture=tmp_path / "map.png")
    table = capsys.readouterr().out
    assert "forgotten (German)" in table and "random channels" in table
    assert f"{100 * result['after']['forgotten']:.1f}" in table


def test_a_picture_of_the_user_is_not_replaced(tmp_path):
    (tmp_path / "mine.png").write_text("precious")
    result = act_profile_demo(tmp_path, "--picture", "mine.png")
    assert result.returncode == 2 and "exists already" in result.stderr
    assert (tmp_path / "mine.png").read_text() == "precious"


def test_controls_are_of_equal_size_and_figures_repeat(monkeypatch):
    sizes = []
    real = demo._figures_after
    monkeypatch.setattr(demo, "TEST_RECORDS", 64)
    monkeypatch.setattr(demo, "_figures_after", lambda *given: sizes.append(len(given[3])) or real(*given))
    first, second = demo.run(), demo.run()
    assert len(sizes) == 6 and len(set(sizes)) == 1
    assert (first.after, first.controls) == (second.after, second.controls)


@pytest.mark.slow
def test_the_interpolation_is_the_best_of_validation_records():
    (donor, tokenizer), (target, _) = load(CHECKPOINTS / "base"), load(CHECKPOINTS / "target")
    exams = demo._exams(tokenizer, "validation")
    tried = {
        strength: Point(**demo._figures(demo._interpolated(donor, target, strength), exams))
        for strength in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
    }
    assert best_keeping(tried, Point(**demo._figures(target, exams))) == demo.INTERPOLATION


def test_interpolation_at_its_ends_is_the_models_themselves():
    (donor, _), (target, _) = load(CHECKPOINTS / "base"), load(CHECKPOINTS / "target")
    for strength, end in ((0.0, target), (1.0, donor)):
        mixed = demo._interpolated(donor, target, strength)
        assert all((a == b).all() for a, b in zip(mixed.parameters(), end.parameters(), strict=True))

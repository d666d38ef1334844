"""The table of a sweep: what each figure is, its error, what guesses find, and which settings stand out."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from act.cli.going_on import evaluations_beside, going_on
from act.cli.signals import Terminated
from act.cli.sweep_output import Swept
from act.core.errors import ActError
from act.evaluation.choice import figure, figure_error, recovered
from act.evaluation.evaluate import Evaluation
from act.evaluation.kept import kept_of
from act.evaluation.sweep import Setting, Sweep
from act.ranking.rule import Rule
from act.report.page import Page
from act.report.sources import read


def judged(text: str, right: str) -> Evaluation:
    """A choice among four, with right answers where there is a 1."""
    found = torch.tensor([one == "1" for one in right])
    each = torch.ones(len(right), dtype=torch.float64)
    known = {"right": found, "chance": 0.25, "majority": 0.375}
    return Evaluation("m", "f", text, text, "choice", each, each.long(), **known)


def likely(text: str, nll: float) -> Evaluation:
    values = torch.tensor([nll - 0.1, nll + 0.1], dtype=torch.float64)
    return Evaluation("m", "f", text, text, "nll", values, torch.ones(2, dtype=torch.int64))


def swept(answers: dict[tuple[float, float], tuple[str, float]]) -> Swept:
    """A sweep from the right answers of one text and the loss of another, by share and strength."""
    texts = {place: {"de": judged("de", right), "ma": likely("ma", nll)} for place, (right, nll) in answers.items()}
    rows = [
        Setting(*place, int(1000 * place[0]), {name: figure(one) for name, one in found.items()})
        for place, found in texts.items()
    ]
    errors = [{name: figure_error(one) for name, one in found.items()} for found in texts.values()]
    return Swept(
        Sweep(tuple(rows)),
        {"random": Sweep((rows[0], rows[1]))},
        texts[0.0, 0.0],
        {"de": judged("de", "11110000"), "ma": likely("ma", 2.0)},
        dict(zip(map(id, rows), errors, strict=True)),
        {"de": "german", "ma": "maths"},
        ["ma"],
    )


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")


def test_a_table_says_what_each_figure_is_and_which_settings_stand_out(wide, capsys):
    found = swept(
        {
            (0.0, 0.0): ("10000000", 1.0),
            (0.05, 0.4): ("11000000", 1.02),
            (0.05, 1.0): ("11000000", 1.02),  # no better than half as far
            (0.1, 1.0): ("11110000", 2.0),
        }
    )
    found.print()
    said = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in said.splitlines()]
    assert "german: right choices, %" in said and "maths: log-likelihood, nats per token" in said
    assert "donor 50.0 ± 18.9 -2.000 ± 0.100" in lines and "* target 12.5 ± 12.5 -1.000 ± 0.100" in lines
    assert "* 5% 0.4 50 25.0 ± 16.4 -1.020 ± 0.100" in lines and "5% 1 50 25.0 ± 16.4 -1.020 ± 0.100" in lines
    assert "majority 37.5" in lines and "chance 25.0" in lines and "Control: random" in said
    assert "Of 3 settings, 5 % of the channels at strength 0.4 recover german best and keep 95% of the rest" in said
    assert [line for line in lines if line.startswith(("It ", "The best of"))] == [*found.verdict.details]
    assert "The best of random brings german to 25.0 %, and keeps 98%: the ranked channels bring no more." in lines
    worse = replace(found, controls={"random": Sweep((found.found.rows[0], replace(found.found.rows[0], top=0.05)))})
    assert worse.verdict.details[-1] == "The best of random brings german to 12.5 %, and keeps 100%."
    best = found.to_json()["best"]
    assert (best["top"], best["strength"], best["de"], best["de_se"]) == (
        0.05,
        0.4,
        0.25,
        pytest.approx(0.1637, abs=1e-4),
    )


def test_a_control_is_held_to_what_the_channels_are_held_to(wide):
    found = swept({(0.0, 0.0): ("10000000", 1.0), (0.05, 0.4): ("11000000", 1.02)})
    start, other = found.found.rows[0], {"de": 0.5, "ma": -2.0}
    near = replace(found.found.rows[1], strength=0.2, figures={"de": 0.375, "ma": -1.2})
    far = replace(near, strength=1.0, figures=other)  # as good as the donor, and as bad
    found = replace(found, controls={"interpolation": Sweep((start, near, far))})
    assert found.verdict.details[-1] == (
        "No setting of interpolation keeps 95%; that which keeps most brings german to 37.5 %, and keeps 80%."
    )


@pytest.mark.parametrize(
    ("right", "loss", "headline", "advice"),
    [
        ("11110000", 2.0, "No setting keeps 95%", "Try smaller shares and strengths, or a ranking that spares"),
        ("10000000", 1.0, "None of 1 setting brings german back", "Try larger shares and strengths, or another score."),
        (
            "10000000",
            2.0,
            "None of 1 setting brings german back",
            "Try smaller shares and strengths, or another score.",
        ),
    ],
)
def test_a_sweep_without_a_good_setting_says_what_to_try(wide, capsys, right, loss, headline, advice):
    found = swept({(0.0, 0.0): ("10000000", 1.0), (0.05, 2.0): (right, loss + 1e-6)})
    found.print()
    last = capsys.readouterr().out.splitlines()[-1]
    assert found.best is None and found.to_json()["best"] is None and found.verdict.headline.startswith(headline)
    assert found.verdict.advice[0].startswith(advice) and last == found.verdict.advice[0]


@pytest.mark.parametrize(("end", "told"), [(KeyboardInterrupt(), True), (Terminated(15), True), (ActError("x"), False)])
def test_an_interruption_says_that_nothing_is_kept_without_an_output(caplog, end, told):
    caplog.set_level(logging.INFO, "act.cli")
    with pytest.raises(type(end)), going_on(evaluations_beside(None)):
        raise end
    said = "no evaluation is kept: only with an --output or a --report does the same command go on"
    assert (said in caplog.text) == told


def test_a_doubtful_sweep_is_a_picture_and_recommends_nothing(wide, capsys):
    found = swept({(0.0, 0.0): ("10000000", 1.0), (0.05, 0.4): ("11000000", 1.02)})
    assert found.best
    found = replace(found, doubts=["german is the text that the channels were ranked on"])
    found.print()
    said = capsys.readouterr().out
    assert (
        "a picture of these records" in said and "recover german best" not in said and found.to_json()["best"] is None
    )


def test_a_sweep_says_by_what_it_ranked(wide, capsys):
    found = swept({(0.0, 0.0): ("10000000", 1.0), (0.05, 0.4): ("11000000", 1.02)})
    for rule, chosen, said in (
        (
            Rule("paired", top=0.2),
            False,
            "ranked by paired, not normalized (paired is what --score is by default here)",
        ),
        (Rule("attribution", top=0.2, cost="none"), True, "ranked by attribution, at no cost, not normalized"),
        (Rule("match", top=0.2, normalize="std"), True, "ranked by match, normalized by std"),
    ):
        ranked = replace(found, found=replace(found.found, rule=rule), chosen_score=chosen)
        ranked.print()
        assert said in capsys.readouterr().out.splitlines() and ranked.to_json()["rule"]["score"] == rule.score


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_tables_of_a_sweep_have_one_layout(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    given = {(0.0, 0.0): ("10000000", 1.0), (0.05, 0.4): ("11000000", 1.02)}
    swept(given).print()
    said = capsys.readouterr().out
    first, second = said.split("Control: random")
    assert ("━" in first) == ("━" in second) and "\n-\n" not in said and "*\n" not in said
    assert ("\n  strength: 0.4" in first) == ("\n  strength: 0.4" in second)


def test_long_names_of_texts_leave_a_table_at_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names = {"de": "x" * 30, "ma": "maths-of-a-school-for-ever.txt"}
    found = replace(swept({(0.0, 0.0): ("10000000", 1.0), (0.05, 0.4): ("11000000", 1.02)}), names=names)
    found.print()
    said = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in said.splitlines()]
    assert "* 5% × 0.4 25.0 ± 16.4 -1.020 ± 0.100" in lines and "strength: 0.4" not in said
    assert "setting: the share, 5% (50 channels), × the strength" in lines
    assert f"{'x' * 30}: right choices, %" in lines
    table = said.partition("┗")[0] if "┗" in said else said.partition("*:")[0]
    assert "maths-of-a-" in table and names["ma"] not in table and max(map(len, table.splitlines())) <= 80


def test_what_is_recovered_is_what_a_choice_means_in_table_verdict_and_file(wide, capsys, tmp_path):
    texts = [{"de": likely("de", nll), "ma": likely("ma", 1.0)} for nll in (4.0, 2.0, 3.5)]
    target, donor, result = texts
    before, after = (
        Setting(top, top, round(top), {name: figure(one) for name, one in found.items()})
        for top, found in ((0, target), (1, result))
    )
    errors = {id(one): {"de": 0.1, "ma": 0.1} for one in (before, after)}
    names = {"de": "german", "ma": "maths"}
    found = Swept(Sweep((before, after)), {}, target, donor, errors, names, ["ma"], {id(after): result})
    share = recovered(target["de"], donor["de"], result["de"])
    assert share.value == pytest.approx(0.25)
    found.print()
    said = capsys.readouterr().out
    assert str(share) in said and "recovered: a share of what the target lacks beside the donor" in said
    data = found.to_json()
    assert [row["recovered"] for row in data["rows"]] == [None, share.value]
    assert data["rows"][1]["kept"] == 1 and data["best"]["recovered_se"] == share.error

    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(data))
    given = read([path])
    assert list(given.sweeps[0][1][1].figures) == ["de", "ma"]
    again = Page("a page", settings={"act": given.sweeps[0][1]}, keep=given.keep, keeping=given.keeping).verdict
    assert again.details == found.verdict.details
    assert again.details[0] == "It recovers 25% of what the target lacks beside the donor."

    found = replace(found, donor={"de": likely("de", 4.0), "ma": donor["ma"]})  # no better than the target
    found.print()
    said = capsys.readouterr().out
    assert "recovered: not known, since the donor is not clearly better than the target on german" in said
    assert said.count("recovered") == 1 and found.to_json()["rows"][1]["recovered"] is None


def test_where_nothing_changes_no_setting_has_a_star(wide, capsys):
    found = swept(dict.fromkeys([(0.0, 0.0), (0.05, 1.0), (0.1, 1.0)], ("10000000", 1.0)))
    found.print()
    said = capsys.readouterr().out
    assert "*" not in said and "no setting differs from the target in any figure" in said
    assert found.to_json()["best"] is None and len(found.to_json()["frontier"]) == 3


def test_kept_is_what_a_choice_means_in_table_verdict_and_file(wide, capsys, tmp_path):
    """0.97 of what the target gained over the donor, where its probability of a token falls to 0.925."""
    models = {name: likely("ma", nll) for name, nll in (("target", 2.774), ("donor", 5.780), ("result", 2.852))}
    before, after = (
        Setting(top, top, round(top), {"de": right, "ma": figure(models[name])})
        for top, right, name in ((0, 0.125, "target"), (1, 0.5, "result"))
    )
    answers = [
        {"de": judged("de", right), "ma": models[name]}
        for right, name in (("10000000", "target"), ("11110000", "donor"))
    ]
    errors = {id(one): {"de": 0.1, "ma": 0.01} for one in (before, after)}
    names = {"de": "german", "ma": "maths"}
    found = Swept(Sweep((before, after)), {}, *answers, errors, names, ["ma"], {id(after): {"ma": models["result"]}})
    kept = kept_of(models["target"], models["donor"], models["result"])
    assert round(kept.value, 3) == 0.974 == round(found.keeping["ma"].share(after.figures["ma"]), 3)
    found.print()
    shown = capsys.readouterr().out
    assert str(kept) in shown and "kept: a share of the target's gain over the donor" in shown
    assert found.best == after and "and keep 95% of the rest" in found.verdict.headline
    assert (
        "keeps 97% of what is to be kept, at the least: of the target's gain over the donor"
        in found.verdict.details[-1]
    )

    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(found.to_json()))
    given = read([path])
    again = Page("a page", settings={"act": given.sweeps[0][1]}, keep=given.keep, keeping=given.keeping).verdict
    assert again.details == found.verdict.details
    unknown = Page("a page", settings={"act": given.sweeps[0][1]}, keep=given.keep).verdict
    assert unknown.headline.startswith("No setting keeps 95% of the likelihood of a token, since no donor is known")

"""The page of a report: what it says, whatever it is given, and that nothing in a name becomes a tag."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from html import escape

import pytest
import torch
from support import tiny_model

import act
from act.core.errors import ActError
from act.evaluation.sweep import Setting
from act.report.build import build, measure
from act.report.page import Page, write_page
from act.report.results import Results
from act.report.sources import read, results_of, roles_of
from act.report.verdict import verdict_on
from act.report.warnings import warnings_of
from act.report.write import write

NASTY = (
    "<script>alert(1)</script>",
    "\"quoted' & <b>bold</b>",
    "emoji 🧠🔥",
    "\u202eright to left\u202e עברית",
    "{{ 7 * 7 }} {% raw %}",
    "line\u2028end </script> <!--",
)


def summary(model, corpus, match=None, nll=None, records=200):
    error = None if match is None else (match * (1 - match) / records) ** 0.5
    return {
        "model": model, "model_fingerprint": "f", "corpus": corpus, "metric": "exact", "records": records,
        "tokens": 2 * records, "nll_per_token": nll, "nll_per_token_se": None if nll is None else 0.01,
        "nll_per_record": nll, "nll_per_record_se": None, "match": match, "match_se": error, "cut": 0,
    }  # fmt: skip


def comparison(before, after, corpus, difference=None, p=None, nll=None):
    return {
        "before": before, "after": after, "corpus": corpus, "nll_per_token_difference": nll,
        "nll_per_token_difference_se": None if nll is None else 0.01, "nll_p": None if nll is None else p,
        "match_difference": difference, "match_difference_se": None if difference is None else 0.02,
        "match_p": None if difference is None else p, "gained": 0, "lost": 0,
    }  # fmt: skip


def results(control=0.1, p=0.0001, kept=0.88, spared=0.87, german="German", english="English"):
    figures = {"target": (0.0, 0.885), "act": (0.36, kept), "donor 1": (1.0, 0.75), "random": (control, spared)}
    return Results(
        [summary(model, text, value) for model, both in figures.items() for text, value in zip((german, english), both, strict=True)],
        [
            comparison("target", "act", german, 0.36, 1e-9),
            comparison("target", "act", english, kept - 0.885, 0.8),
            comparison("random", "act", german, 0.36 - control, p),
        ],
        roles_of(figures),
        [english],
        {german: 0.05},
    )  # fmt: skip


@pytest.fixture(scope="module")
def profiles(tokenizer):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    texts = {"one": ["a b c", "d e"], "other": ["What is two plus three?"]}
    return [
        act.profile_pair(donor, target, act.Corpus.from_records([{"text": t} for t in kept], tokenizer, count="all"))
        for kept in texts.values()
    ]


@pytest.fixture(scope="module")
def report(profiles):
    return build(measure(profiles, NASTY[:2], top=0.1), top=0.1)


def figures_of(html):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)[1])


@pytest.mark.parametrize(
    ("given", "tone", "headline"),
    [
        (results(), "good", "German came back, and clearly more than with the control."),
        (results(control=0.5, p=1e-6), "bad", "A simpler change does better on German: random."),
        (results(control=0.35, p=0.6), "mixed", "German came back, but not shown to be better than random."),
        (results(kept=0.5), "mixed", "but only 56 % of what was to be kept is left"),
        (results(control=0.5, p=1e-6, spared=0.6), "mixed", "more came back with random, at a higher cost"),
    ],
    ids=["good", "beaten", "unclear", "costly", "beaten at a cost"],
)
def test_the_verdict_says_what_the_statistics_allow(given, tone, headline):
    verdict = verdict_on(given)
    assert verdict.tone == tone and headline in verdict.headline
    assert (
        "act on German: 36.0 ± 3.4 % right answers (target 0.0 ± 0.0 %, donor 100.0 ± 0.0 %; guessing gives 5.0 %)."
        in verdict.details
    )
    assert verdict.advice
    (row,) = verdict.controls
    assert (row.text, row.method, row.control) == ("German", "act", "random") and row.gain.endswith(" points")
    (kept,) = [line for line in verdict.details if "keeps" in line]
    assert re.match(r"act keeps [\d.]+ ± 2.3 % of the target's right answers on English \(", kept)
    html = Page("x", results=given).html()
    assert f"<td>{row.gain}</td><td>{escape(row.p)}</td><td>{row.keeps}</td>" in html


def test_a_verdict_on_several_abilities_begins_with_the_worst():
    german, finnish = results(), results(control=0.5, p=1e-6, german="Finnish")
    both = replace(
        german,
        figures=[*german.figures, *(one for one in finnish.figures if one["corpus"] == "Finnish")],
        comparisons=[*german.comparisons, *(one for one in finnish.comparisons if one["corpus"] == "Finnish")],
    )
    verdict = verdict_on(both)
    assert verdict.tone == "bad"
    assert verdict.headline == (
        "A simpler change does better on Finnish: random. German came back, and clearly more than with the control."
    )
    assert not any("light tune" in line for line in verdict.advice)


def test_a_recipe_that_is_content_with_less_is_judged_by_that():
    figures = [{**one, "model": one["model"]} for one in results(kept=0.5).figures]
    given = {"results": figures, "comparisons": results(kept=0.5).comparisons, "donors": [], "keep": ["English"]}
    strict, content = (results_of({**given, "sweep": swept}) for swept in (None, {"least_kept": 0.5, "chosen": {}}))
    assert verdict_on(strict).tone == "mixed" and verdict_on(content).tone == "good"
    tried = [
        Setting(0.0, 0.0, 0, {"German": 0.0, "English": 1.0}),
        Setting(0.1, 1.0, 9, {"German": 0.8, "English": 0.6}),
    ]
    told = [
        Page("x", settings={"act": tried}, keep=["English"], **least).verdict.headline
        for least in ({}, {"least_kept": 0.555})
    ]
    assert "No setting keeps 95%" in told[0] and "and keep 55.5% of the rest" in told[1]


def test_nobody_is_told_to_rank_as_they_did():
    given = results(control=0.5, p=1e-6)
    assert "attribution" in verdict_on(given, "paired").advice[0]
    assert "attribution" not in " ".join(verdict_on(given, "attribution").advice)


def test_a_verdict_compares_with_every_control_in_either_direction():
    given = results()
    turned = [
        {**one, "before": one["after"], "after": one["before"], "match_difference": -one["match_difference"]}
        for one in given.comparisons
    ]
    assert verdict_on(replace(given, comparisons=turned)) == verdict_on(given)
    unpaired = verdict_on(replace(given, comparisons=given.comparisons[:2]))
    assert unpaired.tone == "mixed" and unpaired.controls[0].p == "not compared record by record"


def test_a_tuned_result_is_judged_by_the_controls_that_it_was_compared_with():
    given = results()
    renamed = {"act": "act + tune", "random": "random + tune"}
    figures = [{**one, "model": renamed.get(one["model"], one["model"])} for one in given.figures]
    comparisons = [
        {**one, **{side: renamed.get(one[side], one[side]) for side in ("before", "after")}}
        for one in given.comparisons
    ]
    figures.append(summary("random", "German", 0.2))
    roles = roles_of(["target", "act + tune", "donor 1", "random", "random + tune", "tune only"])
    assert roles["act + tune"] == "method" and roles["tune only"] == "control"
    assert verdict_on(replace(given, figures=figures, comparisons=comparisons, roles=roles)).tone == "good"


def test_a_transfer_is_judged_beside_its_tune_each_by_its_own_controls():
    untuned, tuned = results(control=0.5, p=1e-6), results()
    renamed = {"act": "act + tune", "random": "random + tune"}
    figures = [*untuned.figures] + [
        {**one, "model": renamed[one["model"]]} for one in tuned.figures if one["model"] in renamed
    ]
    comparisons = [*untuned.comparisons] + [
        {**one, **{side: renamed.get(one[side], one[side]) for side in ("before", "after")}}
        for one in tuned.comparisons
    ]
    roles = roles_of([one["model"] for one in figures])
    both = verdict_on(replace(untuned, figures=figures, comparisons=comparisons, roles=roles), swept=True)
    assert both.tone == "bad" and both.headline == (
        "act: A simpler change does better on German: random. "
        "act + tune: German came back, and clearly more than with the control."
    )
    rows = [(row.method, row.control, row.gain[:5]) for row in both.controls]
    assert rows == [("act", "random", "\N{MINUS SIGN}14.0"), ("act + tune", "random + tune", "+26.0")]
    said = " ".join(both.advice)
    assert "not tried yet" in said and "act-profile sweep" not in said and "light tune" not in said


def test_likelihoods_gain_where_their_loss_falls():
    texts = [summary(model, "German", nll=nll) for model, nll in (("target", 3.0), ("act", 2.0), ("random", 2.9))]
    found = Results(
        texts,
        [
            comparison("target", "act", "German", nll=-1.0, p=1e-4),
            comparison("random", "act", "German", nll=-0.9, p=1e-4),
        ],
        roles_of(["target", "act", "random"]),
    )
    assert found.gain("act", "random", "German").value == pytest.approx(0.9)
    assert found.kept("act", "German").share == pytest.approx(2.718, rel=1e-3)
    assert verdict_on(found).tone == "good"


def test_what_is_kept_of_a_likelihood_is_a_share_of_what_the_target_gained():
    """As :mod:`act.evaluation.choice` has it; a loss that the errors do not show is no cost."""
    texts = [summary(model, "maths", nll=nll) for model, nll in (("target", 1.0), ("act", 1.12), ("donor 1", 3.0))]
    pairs = [
        comparison("target", "act", "maths", nll=0.12, p=1e-3),
        comparison("target", "donor 1", "maths", nll=2.0, p=1e-6),
    ]
    found = Results(texts, pairs, roles_of(["target", "act", "donor 1"]), ["maths"])
    kept = found.kept("act", "maths")
    assert (kept.share, kept.error) == (pytest.approx(0.94), pytest.approx(0.005))
    assert str(kept) == "94.0 ± 0.5 % of the target's gain over donor 1"
    assert kept.below(0.955) and not kept.below(0.949)


def test_a_page_of_everything_is_whole(report, profiles, tmp_path):
    channels = {name: act.rank(profiles[0], score, 0.1) for name, score in (("act", "paired"), ("random", "random"))}
    settings = {"act": [Setting(0, 0, 0, {"g": 0.1, "e": 0.9}), Setting(0.05, 1, 47, {"g": 0.4, "e": 0.8})]}
    page = Page(NASTY[0], "act-profile report x", report, channels, {"act": 1.0}, {}, results(), settings, ["e"])
    write_page(page, tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    data = figures_of(html)
    assert not re.search(r'<script[^>]+src=|<link[^>]+href="(?!data:)|@import|url\(', html.split("<script")[0])
    assert [section.title for section in page.sections] == [
        "Before and after", "Shares and strengths", "Where it lies", "Concentration", "Overlap", "Overlap of what was moved",
    ]  # fmt: skip
    assert all(chart["alt"] and chart["title"] for chart in data["charts"])
    names = [chart.name for chart in page.charts]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names)
    assert len(data["channels"]["row"]) > 0 and data["channels"]["abilities"] == list(NASTY[:2])
    assert (
        html.count("alert(1)") and "<script>alert" not in html and "{{" not in html.split("vega")[0].replace("{{ 7", "")
    )
    with pytest.raises(ActError, match="exists already"):
        write_page(page, tmp_path / "index.html")


@pytest.mark.parametrize("name", [*NASTY, "", "\udc80", "x" * 3000])
def test_names_of_any_kind_stay_text(name):
    page = Page(name, name, results=results(german=name or "text"), warnings=[name], provenance=[(name, name)])
    html = page.html().encode("utf-8", "replace").decode()
    assert html.count("<script") == page.html().count("</script>")
    body = html.partition('id="figures"')[0]
    assert "<b>bold" not in body and "<script>alert" not in body
    assert figures_of(html)["charts"]


def test_no_name_turns_the_sentence_around_it():
    forced, hebrew = "evil\u202ename", "\u05e2\u05d1\u05e8\u05d9\u05ea"
    page = Page(forced, forced, results=results(german=forced, english=hebrew), warnings=[f"{hebrew}: 3 records"])
    html = page.html()
    assert not re.search("[\u202a-\u202e]|u202[a-e]", html.partition('id="figures"')[0] + json.dumps(figures_of(html)))
    assert "evil\ufffdname came back" in html and f"\u2068{hebrew}\u2069: 3 records" in html
    assert any(f"\u2068{hebrew}\u2069 (to keep)" == chart.title for chart in page.charts)
    assert f"<bdi>\u2068{hebrew}\u2069 (to keep)</bdi>" in html  # once


def test_parts_may_be_absent(report, profiles):
    channels = {"act": act.rank(profiles[0], "paired", 0.1)}
    for given in ({}, {"report": report}, {"moved": channels}, {"results": results()}, {"results": Results([])}):
        assert Page("x", **given).html().endswith("</html>\n")
    one = {"act": [Setting(0, 0, 0, {"g": 0.1}), Setting(0.05, 1, 47, {"g": 0.4})]}
    page = Page("x", settings=one)
    (chart,) = page.charts  # one point is no curve
    assert (chart.name, chart.columns["setting"], chart.columns["gained"]) == (
        "settings-g",
        ["target", "5 % × 1"],
        [10.0, 40.0],
    )
    assert "10.0 % before, 40.0 % after" in page.verdict.headline
    assert Page("x", settings={"act": one["act"][:1]}).verdict is None


def test_figures_of_a_sweep_are_shown_in_their_unit():
    def charts(*figures, keep=("e",)):
        tried = [Setting(top, 1, 9, one) for top, one in zip((0, 0.05, 0.1), figures, strict=True)]
        return Page("x", settings={"act": tried}, keep=keep).charts

    frontier, curve = charts({"g": 0, "e": 1}, {"g": -0.02, "e": 1.001}, {"g": 0.34, "e": 1.0005})
    assert [chart.columns["gained"] for chart in (frontier, curve)] == [[0.0, -2.0, 34.0], [-2.0, 34.0]]
    assert frontier.columns["left"] == [100.0, 100.1, 100.0]  # four digits
    across = frontier.spec["encoding"]["x"]
    assert across["title"] == "e (to keep), %" and across["scale"]["domain"] == pytest.approx([99.5495, 100.5505])
    assert frontier.spec["encoding"]["y"]["scale"] == {"zero": False}
    nats, _ = charts({"g": -3, "e": -1}, {"g": -2, "e": -1.2}, {"g": -1.5, "e": -1.4})
    assert nats.columns["gained"] == [-3, -2, -1.5]
    assert nats.spec["encoding"]["y"]["title"] == "g (the ability), nats per token"


def test_a_patch_alone_has_a_map(profiles):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    channels = act.rank(profiles[0], "paired", 1.0)
    patch = act.transfer(donor, target, channels, 1.0)
    (chart,) = Page("x", patches={NASTY[0]: patch}).charts
    assert sum(chart.columns["values"]) == len(patch)
    assert {*chart.columns["kind"]} == {site.kind for site, _ in channels.space.split(channels.index)}
    assert {*chart.columns["place"]} == {"in", "0", "1", "out"}
    assert not Page("x", patches={"nothing": act.Patch([], patch.provenance)}).charts


def test_a_contrast_with_what_is_to_be_kept(profiles):
    (one,) = measure(profiles[:1], ["one"], keep=profiles[1:], top=0.1)
    assert one.top.rule.contrast
    best = act.rank(profiles[0], "paired", 0.1, keep=profiles[1])
    assert torch.equal(one.top.index, best.index)
    build([one], top=0.1)


def test_forty_abilities(profiles):
    (one,) = measure(profiles[:1], ["one"], top=0.1)
    many = [replace(one, name=f"ability {number}", ability=f"ability {number}") for number in range(40)]
    page = Page("x", report=build(many, top=0.1))
    data = figures_of(page.html())
    assert len(data["channels"]["row"]) <= 24_000 and len({*data["channels"]["ability"]}) == 40
    assert sum(chart.group == "map" for chart in page.charts) == 40


def test_what_is_unusual_of_many_is_said_once(profiles):
    (one,) = measure(profiles[:1], ["one"], keep=profiles[1:], top=1.0)
    names = ("a", "b", "c", "d", "e")
    many = build([replace(one, name=name, ability=name) for name in names], top=1.0)
    (told,) = [line for line in warnings_of(many) if "score of 0 or below" in line]
    assert told.startswith("a: ") and told.endswith(". Likewise b, c, d and 1 more.")
    (alone,) = [line for line in warnings_of(build([one], top=1.0)) if "score of 0 or below" in line]
    assert alone == told.partition(" Likewise")[0].replace("a: ", "one: ")


def test_what_a_file_holds_is_told_from_its_content(profiles, tmp_path):
    given = results()
    plain = {"results": given.figures, "comparisons": given.comparisons}
    files = {
        "recipe.json": {**plain, "donors": []},
        "evaluation.json": plain,
        "sweep.json": {"rows": [{"top": 0.0, "strength": 0.0, "channels": 0, "g": 0.1}], "frontier": [], "keep": ["g"]},
    }
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    profiles[0].save(tmp_path / "pair.safetensors")
    channels = act.rank(profiles[0], count=3)
    channels.save(tmp_path / "channels.safetensors")
    found = read([*map(tmp_path.joinpath, files), tmp_path / "pair.safetensors", tmp_path / "channels.safetensors"])
    assert (len(found.profiles), len(found.sets), len(found.sweeps), len(found.results)) == (1, 1, 1, 2)
    recipe, evaluation = (one for _, one in found.results)
    assert recipe.roles["random"] == "control" and recipe.keep == ["English"]
    assert evaluation.roles["target"] == "target" and evaluation.roles["random"] == "method"
    assert found.keep == ["g"]


BAD = {
    "missing": (None, "no such file"),
    "empty": (b"", "is empty"),
    "text": (b"hello", "neither a file of act-profile nor JSON"),
    "a list": (b"[1, 2]", "holds no JSON object"),
    "a page": (b"<!DOCTYPE html>\n<html>", "is a page to look at in a browser; give what it was made from"),
    "a report": (b'{"concentration": [], "overlaps": []}', "a report that act-profile has made; give what it was made"),
    "an error": (b'{"error": "no such model: x", "exit_code": 2}', r"a command that failed \(no such model: x\)"),
    "other JSON": (b'{"a": 1}', "not of a sweep, an evaluation or a recipe"),
    "a sweep of nothing": (b'{"rows": [], "frontier": []}', "do not have the same figures"),
    "a sweep with text": (b'{"rows": [{"top": "x"}], "frontier": []}', "is damaged"),
    "NaN": (b'{"rows": [{"top": NaN}], "frontier": []}', "NaN where a number belongs"),
    "results of nothing": (b'{"results": [{"model": 1}], "comparisons": []}', "is damaged"),
    "binary": (bytes(range(256)), "neither a file of act-profile nor JSON"),
    "cut": (b"\x10\x00\x00\x00\x00\x00\x00\x00{\"a\"", "truncated or damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_other_files_are_refused_in_one_sentence(content, message, tmp_path):
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ActError, match=message) as refused:
        read([path])
    assert str(path) in str(refused.value)
    if content is None:
        path.with_name("givne").touch()
        with pytest.raises(ActError, match=f"did you mean {path.with_name('givne')}"):
            read([path])


def test_a_folder_that_is_no_recipe_s_is_refused(tmp_path):
    with pytest.raises(ActError, match="a folder without report"):
        read([tmp_path])
    (tmp_path / "report.json").write_text('{"concentration": [], "overlaps": []}')
    with pytest.raises(ActError, match=f"has made; open {tmp_path / 'index.html'}, or give"):
        read([tmp_path])
    (tmp_path / "index.html").write_text("<!DOCTYPE html>")
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(ActError, match=f"give its folder, {tmp_path}$"):
        read([tmp_path / "index.html"])


def test_sets_of_another_architecture_are_refused(report, profiles, tokenizer):
    wide = act.profile_pair(
        tiny_model("qwen2"),
        tiny_model("qwen2", seed=1),
        act.Corpus.from_records([{"text": "a"}], tokenizer, count="all"),
    )
    with pytest.raises(ActError, match="of another architecture"):
        Page("x", report=report, moved={"act": act.rank(wide)}).html()


def test_pictures_as_files_are_named_by_what_they_show(report, tmp_path):
    page = Page("x", results=results())
    files = write(None, tmp_path / "out", page=page, static=True)
    assert files == [
        "index.html",
        "results-English.pdf",
        "results-English.svg",
        "results-German.pdf",
        "results-German.svg",
    ]
    assert (tmp_path / "out" / "results-German.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "out" / "results-German.svg").read_text(encoding="utf-8")


def test_the_vendored_library_has_no_end_of_script(report):
    html = Page("x", results=results()).html()
    assert html.count("</script>") == html.count("<script")


def test_the_level_of_chance_is_that_of_the_records():
    known = {**summary("m", "t", 0.5), "chance": 0.2, "majority": 0.25}
    plain = {"results": [known, summary("m", "u", 0.5)], "comparisons": []}
    page = Page("x", results=results_of(plain))
    assert page.results.chance == {"t": 0.25}
    assert [("chance" in chart.columns, "guessing" in chart.note) for chart in page.charts] == [
        (True, True),
        (False, False),
    ]


def task(model, name, value, metric="acc", chance=0.25, se=0.02):
    figures = {"value": value, "se": se, "chance": chance, "documents": 400}
    return {"model": model, "task": name, "metric": metric, **figures}


def test_tasks_of_the_harness_are_shown_beside_chance_and_told():
    def change(name, difference, p):
        return {
            "before": "old",
            "after": "new",
            "task": name,
            "metric": "acc",
            "difference": difference,
            "se": 0.01,
            "p": p,
        }

    plain = {
        "results": [],
        "comparisons": [],
        "tasks": [
            task(*one) for one in (("old", "arc", 0.3), ("old", "copa", 0.6), ("new", "arc", 0.5), ("new", "copa", 0.5))
        ]
        + [task("new", "wiki", 21.5, "word_perplexity", None, None)],
        "task_comparisons": [change("arc", 0.2, 1e-5), change("copa", -0.1, 0.4)],
    }
    page = Page("x", results=results_of(plain))
    accuracy, perplexity = page.charts
    assert (accuracy.name, perplexity.name) == ("tasks-acc", "tasks-word-perplexity")
    assert accuracy.columns["change"] == [None, None, 0.2, -0.1] and accuracy.columns["chance"] == [0.25] * 4
    assert accuracy.columns["high"] == [0.32, 0.62, 0.52, 0.52] and "over old" in accuracy.headings.values()
    assert not {"chance", "change"} & perplexity.columns.keys() and "upright" not in perplexity.note
    told = "new in tasks: of 2 figures, 1 clearly higher than the target's, 0 clearly lower."
    assert page.verdict.headline == told and page.verdict.tone == "open"
    assert "Tasks of lm-evaluation-harness" in page.html()
    both = results_of({**plain, "results": [summary(name, "t", value) for name, value in (("old", 0.2), ("new", 0.6))],
                       "comparisons": [comparison("old", "new", "t", 0.4, 1e-6)]})  # fmt: skip
    verdict = verdict_on(both)
    assert verdict.headline.startswith("t came back") and told in verdict.details


@pytest.mark.parametrize("name", NASTY)
def test_tasks_of_any_name_stay_text(name):
    plain = {"results": [], "comparisons": [], "tasks": [task(name, name, 0.5, name)]}
    html = Page("x", results=results_of(plain)).html()
    assert "<script>alert" not in html and figures_of(html)["charts"]


def test_a_page_to_send_names_no_folder_of_whoever_made_it(tmp_path):
    models, text = ("/home/me/models/old/", "/home/me/models/new"), "/home/me/test.jsonl"
    plain = {
        "results": [summary(name, text, value) for name, value in zip(models, (0.2, 0.6), strict=True)],
        "comparisons": [comparison(*models, text, 0.4, 1e-6)],
        "keep": [],
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(plain))
    ((_, found),) = read([tmp_path / "evaluation.json"]).results
    assert (found.models, found.texts, found.roles) == (
        ["old", "new"],
        ["test.jsonl"],
        {"old": "target", "new": "method"},
    )
    command = "act-profile report /home/me/evaluation.json --output /home/me/page"
    html = Page("x", command, results=found, provenance=[("target", "/home/me/models/old (b2)")]).html()
    assert "/home/me" not in html and "act-profile report evaluation.json --output page" in html
    assert "test.jsonl came back" in html


def test_results_without_roles_are_still_shown():
    plain = {"results": [summary("m", "t", 0.5)], "comparisons": []}
    page = Page("x", results=results_of(plain))
    assert page.verdict is None and len(page.charts) == 1
    assert list(itertools.chain(page.results.texts)) == ["t"]


def test_an_evaluation_says_which_texts_are_to_be_kept():
    plain = {"results": [summary(name, text, 0.5) for name in ("a", "b") for text in ("t", "u")], "comparisons": []}
    assert results_of(plain).keep == []
    assert results_of({**plain, "keep": ["u"]}).keep == ["u"]
    assert results_of({**plain, "keep": ["u"]}, keep=[]).keep == []

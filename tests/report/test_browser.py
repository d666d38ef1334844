"""Pages in a real browser: that they work as a person uses them, ask for nothing, and are accessible."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from support import tiny_model
from test_page import NASTY, results

import act
from act.evaluation.sweep import Setting
from act.report.build import build, measure
from act.report.page import Page, Sample, write_page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM.exists():
        if os.environ.get("ACT_REQUIRE_BROWSER"):
            pytest.fail(f"ACT_REQUIRE_BROWSER is set, and there is no {CHROMIUM}")
        pytest.skip(f"no {CHROMIUM}, in which pages are opened")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"), executable_path=CHROMIUM, args=FLAGS, accept_downloads=True
        )
        yield context
        context.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a page; afterwards, nothing was printed to the console, and nothing was asked for but the file."""
    said = []

    def open_page(page: Page, width: int = 1200, **media):
        write_page(page, tmp_path / "index.html")
        tab = browser.new_page()
        tab.set_default_timeout(30_000)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or said.append(asked.url))
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(**media)
        tab.goto((tmp_path / "index.html").as_uri())
        tabs.append(tab)
        return tab

    tabs = []
    yield open_page
    for tab in tabs:
        tab.close()
    assert not said


@pytest.fixture(scope="module")
def whole_page(tokenizer):
    """Everything that a report may show, with names that would break a careless page."""
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    texts = [["a b c", "d e"], ["What is two plus three?"]]
    corpora = [act.Corpus.from_records([{"text": text} for text in kept], tokenizer, count="all") for kept in texts]
    profiles = [act.profile_pair(donor, target, corpus) for corpus in corpora]
    measured = measure(profiles, NASTY[:2], top=0.1)
    losses = {NASTY[2]: lambda model: float(model(torch.arange(8)[None]).logits.detach().std())}
    report = build(measured, top=0.1, model=donor, losses=losses)
    moved = {name: act.rank(profiles[0], score, 0.1) for name, score in (("act", "paired"), (NASTY[3], "random"))}
    settings = [Setting(top, 1, 1, {NASTY[2]: top, NASTY[3]: 0.9 - top}) for top in (0, 0.05, 0.1)]
    patches = {name: act.transfer(donor, target, moved["act"], 1.0) for name in NASTY[:1]}
    return Page(
        NASTY[0], NASTY[1], report, moved, {"act": 1.0}, patches, results(german=NASTY[2], english=NASTY[3]),
        {NASTY[4]: settings}, [NASTY[3]], list(NASTY), [(name, name) for name in NASTY],
        [Sample(name, name, {name: name for name in NASTY}) for name in NASTY],
    )  # fmt: skip


def test_a_person_uses_a_page(whole_page, visit, tmp_path):
    tab = visit(whole_page)
    assert tab.title() == NASTY[0] and tab.locator("h1").inner_text() == NASTY[0]

    tab.locator('figure[data-group="map"]').scroll_into_view_if_needed()  # only then it is drawn
    tab.locator('figure[data-group="map"] svg .mark-rect path').first.hover()
    assert "chosen" in tab.locator("#tip").inner_text()
    tab.locator('figure[data-group="map"] svg .mark-rect path').nth(1).click()
    count = tab.locator("#count")
    assert re.match(r"\d+ channels", count.inner_text()) and tab.locator("[name=kind]").input_value()

    tab.locator("#filters [type=reset]").click()
    tab.wait_for_function("document.querySelector('[name=kind]').value === ''")
    everything = count.inner_text()
    tab.locator("[name=text]").fill("q_proj")
    assert count.inner_text() != everything
    assert all("q_proj" in name for name in tab.locator("#table tbody td:first-child").all_inner_texts())

    score = tab.locator('#table th[data-key="score"]')
    assert score.get_attribute("aria-sort") == "descending"
    score.locator("button").focus()
    tab.keyboard.press("Enter")
    scores = [float(cell) for cell in tab.locator("#table tbody td:nth-child(5)").all_inner_texts()]
    assert score.get_attribute("aria-sort") == "ascending" and scores == sorted(scores)

    with tab.expect_download() as download:
        tab.locator("#export").click()
    download.value.save_as(tmp_path / "channels.csv")
    with (tmp_path / "channels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows][: len(scores)] == scores

    tab.locator("#ability").select_option(index=1)
    assert NASTY[1] in tab.locator('figure[data-group="map"] h3').inner_text()
    shown = tab.locator('figure[data-group="map"] .picture')
    (alt,) = {chart.alt for chart in whole_page.charts if chart.group == "map" and chart.of == NASTY[1]}
    assert (shown.get_attribute("role"), shown.get_attribute("aria-label")) == ("img", alt)
    tab.locator("details.numbers summary").first.click()
    tab.locator("details.numbers table td").first.wait_for()  # the browser tells of the opening a moment later
    assert tab.locator("details.numbers table tr").count() > 1

    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    tab.locator("#theme").click()
    assert tab.evaluate(ground) != light and tab.locator('.picture[data-drawn="dark"]').count()


def test_a_page_is_accessible_and_fits_a_telephone(whole_page, visit):
    tab = visit(whole_page, 360, color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")  # which draws every picture
    assert tab.locator(".picture").count() == tab.locator('.picture[data-drawn="light"]').count()
    labels = "[...document.querySelectorAll('.picture')].map((one) => [one.dataset.chart, one.role, one.ariaLabel])"
    for number, role, label in tab.evaluate(labels):  # which the chart library has a label of its own for
        assert (role, label) == ("img", whole_page.charts[int(number)].alt)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    alike = {"exclude": [[".picture > *"], ["tbody tr:nth-child(n + 4)"]]}  # hidden from readers, or as the rows before
    for scheme, options in (("dark", {}), ("light", {"runOnly": ["color-contrast"]})):
        tab.emulate_media(color_scheme=scheme)
        found = Axe().run(tab, context=alike, options={**options, "resultTypes": ["violations"]}).response["violations"]
        places = [(one["id"], one["nodes"][0]["html"][:200], one["impact"]) for one in found]
        assert not [one for one in places if one[2] in ("serious", "critical")]
    tab.emulate_media(color_scheme="dark", media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(tab.pdf()) > 20_000


def test_a_page_of_results_paints_at_once(visit):
    tab = visit(Page("x", results=results()))
    painted = "performance.getEntriesByName('first-contentful-paint')"
    tab.wait_for_function(f"{painted}.length > 0")  # told once the frame is shown, which may be after the load event
    paint = tab.evaluate(f"{painted}[0].startTime")
    assert paint < 3000  # a second on an empty machine; tests share theirs

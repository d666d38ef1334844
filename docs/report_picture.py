"""Take docs/report.png, of the demo's page in Chromium: ``python docs/report_picture.py``.

The picture carries a digest of the figures that it shows, by which a test knows that they are the committed ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "report.png"
FIGURES = ROOT / "benchmarks" / "results" / "demo-cpu.json"
CHROMIUM = "/usr/bin/chromium"
DIGEST = "figures"
"""The text of the PNG file that has the digest."""
LEFT_OUT = ("What the models write", "Shares and strengths")
"""Sections between the verdict and the map that the picture has no room for."""
LAST = "Where the channels of German lie"
WIDTH, BELOW = 1180, 12


def digest(demo: Mapping[str, Any]) -> str:
    """A digest of what ``act-profile demo --json`` has found, to the digits that its table shows."""
    methods = {**demo["finders"], **demo["controls"]}
    shown = {
        name: [f"{values[name][of]:.2f}" for values in (methods, demo["errors"]) for of in ("forgotten", "retained")]
        + [f"{demo['moved'][name]:.2f}"]
        for name in sorted(methods)
    }
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def taken(page: Path) -> bytes:
    """A PNG file of a page, from its top to the map of the channels."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        tab.goto(page.as_uri())
        for title in LEFT_OUT:
            tab.locator("section").filter(has=tab.get_by_role("heading", name=title, exact=True)).evaluate(
                "section => section.remove()"
            )
        figure = tab.locator("figure").filter(has_text=LAST).first
        figure.scroll_into_view_if_needed()  # pictures are drawn when they are seen
        figure.locator("svg").first.wait_for()
        tab.evaluate("scrollTo(0, 0)")
        bottom = figure.evaluate("figure => figure.getBoundingClientRect().bottom")
        shot: bytes = tab.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom + BELOW})
        browser.close()
    return shot


def main() -> None:
    """Run the demo, and take the picture of its page."""
    from PIL import Image, PngImagePlugin

    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "act", "demo", "--json", "--report", "act-demo"]
        made = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE)
        found = digest(json.loads(made.stdout))
        if found != digest(json.loads(FIGURES.read_text(encoding="utf-8"))):
            sys.exit(f"the demo finds other figures than {FIGURES}; measure these again, or look why")
        shot = taken(Path(folder, "act-demo", "index.html").resolve())
    said = PngImagePlugin.PngInfo()
    said.add_text(DIGEST, found)
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").save(PICTURE, optimize=True, pnginfo=said)


if __name__ == "__main__":
    main()

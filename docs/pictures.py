"""Draw the pictures of docs/concepts.md: ``python docs/pictures.py`` writes one SVG file each into docs/concepts/."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "concepts"
STYLE = """
svg { color-scheme: light dark; font: 13px system-ui, sans-serif; }
.ink { fill: light-dark(#222, #ddd); } .soft { fill: light-dark(#666, #aaa); font-size: 12px; }
.line { stroke: light-dark(#666, #aaa); fill: none; stroke-width: 1.2; }
.box { fill: light-dark(#f2f4f8, #2b2f38); stroke: light-dark(#9aa4b5, #667083); }
.target { fill: light-dark(#dbe6f6, #27415f); } .donor { fill: light-dark(#fbe3d0, #6b3f1d); }
.chosen { fill: light-dark(#e07b39, #e08a50); } .cell { stroke: light-dark(#fff, #1e2129); }
"""
# What does not know light-dark() takes the colour before it.
STYLE = re.sub(r"([a-z]+): light-dark\((#\w+), #\w+\)", r"\1: \2; \g<0>", STYLE)


@dataclass
class Picture:
    """What is drawn, from the back to the front, on an area of ``width`` by ``height``.

    Attributes:
        says: what it shows, for those who do not see it.
    """

    name: str
    says: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, label: str = "", kind: str = "box") -> None:
        """A box with a label in its middle."""
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" class="box {kind}"/>')
        if label:
            self.text(x + width / 2, y + height / 2 + 4.5, label)

    def text(self, x: float, y: float, label: str, kind: str = "ink", anchor: str = "middle") -> None:
        """A line of text."""
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{html.escape(label)}</text>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through points, with a head at its end."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" class="line" marker-end="url(#head)"/>')

    def cells(self, x: float, y: float, rows: int, columns: int, chosen: set[int], size: int = 14) -> None:
        """A matrix, with some rows in another colour."""
        for row in range(rows):
            kind = "chosen" if row in chosen else "target"
            for column in range(columns):
                place = f'x="{x + column * size}" y="{y + row * size}" width="{size}" height="{size}"'
                self.parts.append(f'<rect {place} class="cell {kind}"/>')

    def curve(self, points: list[tuple[float, float]]) -> None:
        """A line through points, and a dot at each."""
        self.parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" class="line"/>')
        self.parts += [f'<circle cx="{x}" cy="{y}" r="3.5" class="chosen"/>' for x, y in points]

    def svg(self) -> str:
        """The file."""
        head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        head += '<path d="M0,0 L8,4 L0,8" class="line"/></marker>'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">',
                f"<title>{html.escape(self.says)}</title>",
                f"<style>{STYLE}</style><defs>{head}</defs>",
                *self.parts,
                "</svg>\n",
            ]
        )


def pictures() -> Iterator[Picture]:
    """All pictures, in the order of the page."""
    yield _channel()
    yield _profile()
    yield _pair()
    yield _ranking()
    yield _transfer()
    yield _choice()


def _channel() -> Picture:
    one = Picture("channel", "A channel is one output of a module, with the parameter row that makes it", 640, 190)
    one.text(90, 24, "input of up_proj")
    one.box(30, 36, 120, 26, "one row a token")
    one.cells(255, 36, 8, 8, {5})
    one.text(311, 24, "weight of up_proj")
    one.text(311, 172, "row 5", "soft")
    one.arrow((150, 49), (248, 80))
    one.cells(470, 36, 8, 1, {5})
    one.text(477, 24, "output")
    one.arrow((374, 113), (462, 113))
    one.text(500, 118, "channel 5 of this site:", "ink", "start")
    one.text(500, 135, "one number a token", "soft", "start")
    return one


def _profile() -> Picture:
    one = Picture("profile", "Statistics are added up while the model runs; no activation is kept", 640, 170)
    for number, label in enumerate(("embed", "layer 0", "layer 1", "…", "norm")):
        one.box(30 + 122 * number, 30, 92, 34, label)
        if number:
            one.arrow((30 + 122 * number - 30, 47), (30 + 122 * number - 2, 47))
        one.arrow((76 + 122 * number, 64), (76 + 122 * number, 104))
    one.box(30, 106, 580, 28, "moments: 7 numbers a channel, float64, one arena", "target")
    one.text(320, 155, "count · mean · M2 · sum |x| · max |x| · positive · not finite", "soft")
    one.text(320, 20, "one forward over the corpus, counted tokens only", "soft")
    return one


def _pair() -> Picture:
    one = Picture("pair", "Donor and target advance together, site by site, on the same tokens", 640, 220)
    for row, (label, kind) in enumerate((("donor", "donor"), ("target", "target"))):
        one.text(20, 58 + 112 * row, label, "ink", "start")
        for number in range(3):
            one.box(110 + 180 * number, 36 + 112 * row, 110, 34, f"site {number}", kind)
            if number:
                one.arrow((40 + 180 * number, 53 + 112 * row), (108 + 180 * number, 53 + 112 * row))
    for number in range(3):
        x = 165 + 180 * number
        one.arrow((x, 70), (x, 94))
        one.arrow((x, 148), (x, 126))
        one.box(x - 62, 96, 124, 28, "pair_moments")
    one.text(320, 20, "each waits for the other: memory of two models and one site", "soft")
    one.text(320, 208, "three blocks: of the donor, of the target, of donor − target", "soft")
    return one


def _ranking() -> Picture:
    one = Picture(
        "ranking", "A score gives each channel of all modules one number, and the best share is taken", 640, 200
    )
    scores = [5, 9, 3, 30, 12, 7, 44, 4, 8, 52, 6, 15, 3, 38, 10, 5, 21, 4, 60, 7, 9, 3, 33, 6]
    for number, score in enumerate(scores):
        kind = "chosen" if score > 31 else "target"
        x = 40 + 23 * number
        one.parts.append(f'<rect x="{x}" y="{140 - 1.8 * score}" width="16" height="{1.8 * score}" class="{kind}"/>')
    one.parts.append('<line x1="34" x2="600" y1="83" y2="83" class="line" stroke-dasharray="4 4"/>')
    one.text(606, 87, "top 25 %", "soft", "start")
    for number, label in enumerate(("embed", "layer 0", "layer 1", "head")):
        one.text(105 + 140 * number, 162, label)
    one.text(
        320,
        186,
        "one flat index over the channels of all sites; each scored for the ability, against what is to be kept",
        "soft",
    )
    one.width = 680
    return one


def _transfer() -> Picture:
    one = Picture("transfer", "The chosen rows of the target move towards the donor's; the patch keeps both", 640, 190)
    for x, label, chosen in ((40, "target", set[int]()), (250, "donor", {1, 4, 5}), (460, "mended", {1, 4, 5})):
        one.cells(x, 36, 8, 8, chosen)
        one.text(x + 56, 24, label)
    one.text(203, 96, "+ strength ×")
    one.text(410, 96, "=")
    one.text(
        320,
        178,
        "target[row] += strength · (donor[row] − target[row]);  a patch holds the rows before and after",
        "soft",
    )
    return one


def _choice() -> Picture:
    one = Picture("choice", "Of all shares and strengths, the one that recovers most while it keeps enough", 640, 240)
    one.arrow((70, 200), (70, 24))
    one.arrow((70, 200), (600, 200))
    one.text(78, 24, "kept", "ink", "start")
    one.text(600, 222, "recovered", "ink", "end")
    frontier = [(110.0, 46.0), (210.0, 50.0), (320.0, 58.0), (405.0, 70.0), (470.0, 108.0), (520.0, 168.0)]
    for x, y in ((150, 66), (190, 92), (260, 80), (300, 118), (350, 104), (390, 150), (440, 160)):
        one.parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" class="soft"/>')
    one.curve(frontier)
    one.parts.append('<line x1="70" x2="600" y1="76" y2="76" class="line" stroke-dasharray="4 4"/>')
    one.text(596, 70, "95 % kept", "soft", "end")
    one.parts.append('<circle cx="405" cy="70" r="8" class="line"/>')
    one.text(405, 46, "chosen")
    return one


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for picture in pictures():
        (FOLDER / f"{picture.name}.svg").write_text(picture.svg(), encoding="utf-8")

"""The texts that a model was made by, by their fingerprints on its card: figures on them say nothing of other text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from act.data.parts import Part, whole_of
from act.data.records import Source
from act.editing.card_results import without_results

FOUND = "## How the channels were found"
"""The heading of the section on that."""

_MARKS = "`'\".,;:()[]"
Use = Literal["ranked", "chosen", "trained"]
"""What a text was used for: to find channels or choose share and strength, texts to keep included; or to train on."""

_SAID: dict[Use, str] = {
    "ranked": "Fingerprints of these texts",
    "chosen": "Fingerprints of these records",
    "trained": "Fingerprints of what it was trained on",
}
_LINE = {use: re.compile(rf"^{said}: (.*)$", re.MULTILINE) for use, said in _SAID.items()}
_FINGERPRINT = re.compile(r"`([^`]+)`")


def fingerprints_said(use: Use, texts: Mapping[str, Iterable[str | None]]) -> str:
    """The line of a card with the fingerprints of texts, given by their names; empty if none is known.

    >>> from act.editing.card_texts import fingerprints_said
    >>> fingerprints_said("ranked", {"german.jsonl": ["0af3"], "batches": []})
    'Fingerprints of these texts: `0af3` (german.jsonl).'
    """
    each = [f"`{one}` ({name})" for name, fingerprints in texts.items() for one in fingerprints if one]
    return f"{_SAID[use]}: {', '.join(each)}." if each else ""


def uses_of(card: Path | None, source: Source) -> list[Use]:
    """What a text, or a half of it, was used for when a model was made, as the model's card says.

    The text is that which ``source`` is a part of, such as its first records. A card that has no fingerprints of what
    channels were found by is asked for its name.

    Args:
        card: the file; None, or none that is there: nothing is known.
        source: the records.
    """
    if card is None or not card.is_file():
        return []
    said = without_results(card.read_text(encoding="utf-8", errors="replace"))
    whole = whole_of(source)
    halves = (Part(whole, residues=(half,), of=2) for half in (0, 1))
    known = {one.fingerprint for one in (source, whole, *halves)} - {""}
    listed = {use: [one for found in line.findall(said) for one in _FINGERPRINT.findall(found)]
              for use, line in _LINE.items()}  # fmt: skip
    uses = [use for use, fingerprints in listed.items() if not known.isdisjoint(fingerprints)]
    if not listed["ranked"] and is_named(said, source.place or source.name):
        uses.insert(0, "ranked")
    return uses


def is_named(card: str, place: str) -> bool:
    """Whether the text of a card names a text, by the last part of its place, among those that channels were found by.

    >>> from act.editing.card_texts import is_named
    >>> is_named("## How the channels were found\\n\\nOn german.jsonl.", "other/german.jsonl")
    True
    """
    words = {Path(word.strip(_MARKS)).name for word in card.partition(FOUND)[2].split()}
    return Path(place).name in words

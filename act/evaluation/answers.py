"""Answers as people write them: the final number of a solution, the letter of a choice."""

from __future__ import annotations

import re
from decimal import Decimal

_DIGITS = r"\d(?:[\d,\u00a0\u202f]*\d)?(?:\.\d+)?"
_NUMBER = re.compile(rf"(?<![\w.,])[-\u2212]?{_DIGITS}|{_DIGITS}")
_FINAL = re.compile(rf"####\s*[^\d\s\-\u2212]*\s*([-\u2212]?{_DIGITS})")
_OPTION = re.compile(r"^\s*\(?([A-Z])[.):](?=\s|$)", re.MULTILINE)
_LETTER = re.compile(r"\s*\(?([A-Z])(?![^\W_])")


THOUGHT = "</think>"
"""Ends what a reasoning model thinks before its answer."""


def said(text: str) -> str:
    """What follows the thoughts of a reasoning model; all of the text if there are none."""
    return text.rpartition(THOUGHT)[2]


def number(text: str) -> Decimal | None:
    """The number after the first ``####`` (as in GSM8K), else the last number of the text, else None.

    Digits of any script are read; a comma or a hard space before exactly three digits groups thousands, another comma
    is a decimal sign; a full stop is always a decimal sign.
    """
    final = _FINAL.search(text)
    found = [final.group(1)] if final else _NUMBER.findall(text)
    return _value(found[-1]) if found else None


def is_number(text: str) -> bool:
    """Whether the text gives a ``#### N``, or is nothing but a number."""
    return bool(_FINAL.search(text) or _NUMBER.fullmatch(text.strip()))


def options(prompt: str) -> str:
    """The letters of the last list of options in a prompt, one per line (``A. …``, ``(B) …``), such as ``"ABCD"``."""
    letters = ""
    for letter in _OPTION.findall(prompt):
        letters = letters + letter if letters and ord(letter) == ord(letters[-1]) + 1 else letter
    return letters if letters.startswith("A") and len(letters) > 1 else ""


def letter(answer: str) -> str | None:
    """The letter that an answer begins with, if it stands alone; else None."""
    match = _LETTER.match(answer)
    return match.group(1) if match else None


def _value(text: str) -> Decimal:
    plain = re.sub(r"[,\u00a0\u202f](?=\d{3}(?:\D|$))", "", text.replace("\u2212", "-"))
    return Decimal(plain.replace(",", ".") if plain.count(",") == 1 else re.sub(r"[,\u00a0\u202f]", "", plain))

"""Comparing plain data."""

from __future__ import annotations

from typing import Any


def first_difference(found: Any, expected: Any, path: str = "") -> str | None:
    """Describe where two plain values first differ; None if they are equal."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = f"{path} {key}".strip() or "the corpus"
            different = first_difference(found.get(key), expected.get(key), inner)
            if different:
                return different
        return None
    found = list(found) if isinstance(found, tuple) else found
    return None if found == expected else f"{path}: {_shown(found)} there, {_shown(expected)} here"


def _shown(value: Any) -> str:
    return "not given" if value is None else f"{value!r:.60}"

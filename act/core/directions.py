"""Writing directions: a name never turns the sentence that it stands in, on a page or in a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REPLACED = "\ufffd"
"""What stands for a character that would turn what follows; readers see that something is there."""
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")  # embeddings, overrides and isolates, and their ends
_LETTER = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001efff]"
_LEFTWARD = re.compile(rf"{_LETTER}(?:[\W\d_]*{_LETTER})*")  # from the first letter to the last, with what is between
_ISOLATED = re.compile(f"\u2068(?P<run>{_LEFTWARD.pattern})\u2069")


def straight(text: str) -> str:
    """A text without the characters that change the direction of what follows.

    >>> from act.core.directions import straight
    >>> straight("evil\\u202ename") == "evil\\ufffdname"
    True
    """
    return text if text.isascii() else _TURNING.sub(REPLACED, text)


def isolated(text: str) -> str:
    """As :func:`straight`, and words of right-to-left scripts order only themselves, not the figures beside them.

    >>> from act.core.directions import isolated
    >>> isolated("\\u05d0\\u05d1: 3 %") == "\\u2068\\u05d0\\u05d1\\u2069: 3 %"
    True
    >>> isolated(isolated("\\u05d0: 3 %")) == isolated("\\u05d0: 3 %")
    True
    """
    if text.isascii():
        return text
    bare = _ISOLATED.sub(r"\g<run>", text)  # so that what is isolated already stays as it is
    return _LEFTWARD.sub("\u2068\\g<0>\u2069", straight(bare))


def isolated_in(data: Any) -> Any:
    """Plain data with every text in it isolated, whatever its depth; keys stay as they are."""
    if isinstance(data, str):
        return isolated(data)
    if isinstance(data, Mapping):
        return {key: isolated_in(value) for key, value in data.items()}
    return [isolated_in(value) for value in data] if isinstance(data, list | tuple) else data

"""What somebody may have meant: the nearest of some names, and of the files in a folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

_SHORT = {
    **dict.fromkeys(("fp32", "f32", "float", "full"), "float32"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
}
"""Other names of types, too far from ours for a comparison of letters."""


def meant(given: str, names: Iterable[str], most: int = 1) -> str:
    """The end of an error message that offers the nearest names; empty if none is near.

    >>> from act.core.near import meant
    >>> meant("anwser", ["answer", "predict", "all"]), meant("fp32", ["auto", "float32"]), meant("xyz", ["answer"])
    ('; did you mean answer?', '; did you mean float32?', '')
    """
    known = [*names]
    short = _SHORT.get(given.lower().removeprefix("torch."))
    near = [short] if short in known else difflib.get_close_matches(given, known, most)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def near_path(place: str) -> str | None:
    """What lies in the folder of a missing place and has almost its name, as that was given; None if nothing does."""
    parent, name = os.path.split(place.rstrip("/"))
    try:
        there = {each.lower(): each for each in os.listdir(parent or ".") if not each.startswith(".")}
    except OSError:
        return None
    stem, ending = os.path.splitext(name.lower())
    alike = {os.path.splitext(each)[0]: each for each in there if os.path.splitext(each)[1] == ending}
    near = [alike[one] for one in difflib.get_close_matches(stem, alike, 1)]  # by what differs, not by a common ending
    near = near or difflib.get_close_matches(name.lower(), there, 1, 0.8)
    return os.path.join(parent, there[near[0]]) if near else None


def is_local(place: str) -> bool:
    """Whether a name that is not there is that of a file or folder, since the folder around it is there.

    What is named ``checkpoints/last`` beside a folder ``checkpoints`` is never asked of the hub, nor is ``last/``.
    """
    parent = Path(place).parent
    return place.startswith((".", "/", "~")) or place.endswith("/") or (parent != Path() and parent.is_dir())

"""Places on this machine as others should read them: by their last part, without the folders of whoever works here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

_QUOTED = re.compile(r"(?P<quote>['\"`])(?P<name>[\w.-]*=)?(?P<place>/[^'\"`\n]*/[^'\"`\n]*)(?P=quote)")
_ABSOLUTE = re.compile(r"(?<![\w/.:~<)\]}-])/(?:[^\s/'\"`|<>]+/)+[^\s/'\"`|<>,;:)\]}]*")


def last_parts(places: Iterable[str]) -> dict[str, str]:
    """Each place by its last part, or by as many of its parts as tell it from the others, without a slash at its end.

    >>> from act.core.places import last_parts
    >>> last_parts(["/mine/de/test.jsonl", "/mine/fr/test.jsonl", "org/name"])
    {'/mine/de/test.jsonl': 'de/test.jsonl', '/mine/fr/test.jsonl': 'fr/test.jsonl', 'org/name': 'name'}
    """
    every, found = list(dict.fromkeys(places)), dict[str, str]()
    for place in every:
        parts = PurePath(place).parts
        for count in range(1, len(parts) + 1):
            found[place] = "/".join(parts[-count:]) if count < len(parts) else place.rstrip("/") or place
            if not any(PurePath(other).parts[-count:] == parts[-count:] for other in every if other != place):
                break
    return {place: found.get(place, place) for place in every}


def absolute_in(text: str) -> list[str]:
    """The absolute paths that a text has, each once; the addresses of a network are none.

    >>> from act.core.places import absolute_in
    >>> absolute_in("act-profile run --corpus de=/mine/de.jsonl '/my texts/fr.jsonl', see https://example.org/a/b")
    ['/my texts/fr.jsonl', '/mine/de.jsonl']
    """
    quoted = [one["place"] for one in _QUOTED.finditer(text)]
    return list(dict.fromkeys([*quoted, *_ABSOLUTE.findall(_QUOTED.sub("", text))]))


def without_folders(text: str, places: Iterable[str] = ()) -> str:
    """A text with its absolute paths as their last parts.

    Args:
        places: absolute paths to replace; by default those that the text has.

    >>> from act.core.places import without_folders
    >>> without_folders("act-profile tune --model /mine/base/ --corpus '/my texts/de.jsonl' --output out")
    "act-profile tune --model base --corpus 'de.jsonl' --output out"
    """
    short = last_parts(places or absolute_in(text))
    for place in sorted(short, key=len, reverse=True):
        text = text.replace(place, short[place])
    return text

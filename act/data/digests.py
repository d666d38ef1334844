"""Whether two texts are the same, in whatever files they lie: told by what their records say."""

from __future__ import annotations

import hashlib
import json
from itertools import islice

from act.core.errors import ActError
from act.data.records import Entry, Source, plain

FIRST = 1000
"""Records that are compared, of texts of any size."""


def digest(entry: Entry) -> bytes:
    """What a record says, whatever file it lies in; nothing if it cannot be read."""
    if isinstance(entry.record, ActError):
        return b""
    return hashlib.sha256(json.dumps(entry.record, sort_keys=True, default=plain).encode()).digest()[:16]


def same_text(one: Source, other: Source) -> bool:
    """Whether two sources have one content, or the same first :data:`FIRST` records in any order.

    So a copy, compressed, with other ends of lines or in another format, is the same text.

    >>> from act.data.digests import same_text
    >>> from act.data.records import Memory
    >>> same_text(Memory([{"text": "a"}, {"text": "b"}]), Memory([{"text": "b"}, {"text": "a"}]))
    True
    """
    if one.fingerprint and one.fingerprint == other.fingerprint:
        return True
    first, second = ({digest(entry) for entry in islice(source.read(), FIRST)} - {b""} for source in (one, other))
    return bool(first) and first == second

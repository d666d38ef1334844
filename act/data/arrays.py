"""Records in one JSON array, read one by one, so that a large file takes no more memory than a record."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from act.core.errors import ActError

BLOCK = 1 << 20  # characters that are read at once
_SPACE = re.compile(r"[ \t\r\n]*")
_END = re.compile(r"[ \t\r\n]*[,\]]")  # behind an item of an array: it was read whole


def items(file: BinaryIO, longest: int) -> Iterator[Any]:
    """The items of a JSON array; or of objects one after the other, as a file of JSON lines with another name has them.

    Args:
        file: the file, in UTF-8.
        longest: characters of the largest item.

    Raises:
        ActError: what the file begins with, or goes on with, is no item; an item is too large.
        UnicodeDecodeError: the rest of the file cannot be read.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    held, place, count, decoder = text.read(BLOCK), 0, 0, json.JSONDecoder()
    place = _behind_space(held, 0)
    if place == len(held):
        raise ActError("the file is empty")
    array = held[place : place + 1] == "["
    if not array and held[place : place + 1] != "{":
        raise ActError("expected a JSON array of objects")
    place += array
    while True:
        place = _behind_space(held, place)
        if array and count and held[place : place + 1] == ",":
            place = _behind_space(held, place + 1)
        if held[place : place + 1] == "]" and array:
            return
        try:
            item, end = decoder.raw_decode(held, place)
            whole = not array or bool(_END.match(held, end))
        except json.JSONDecodeError as error:
            item, end, whole, problem = None, place, False, error.msg
        else:
            problem = "neither a comma nor a bracket follows"
        if whole:
            yield item
            count, place = count + 1, end
            continue
        if len(held) - place > longest:
            raise ActError(f"item {count + 1} has more than {longest >> 20} MiB; break it into several records")
        more = text.read(BLOCK)
        if not more:
            if place == len(held) and not array:
                return
            raise ActError(f"item {count + 1} is no JSON ({problem})")
        held, place = held[place:] + more, 0


def _behind_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place

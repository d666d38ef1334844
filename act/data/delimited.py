"""Records in CSV and TSV files, whose first row names the columns; every value is a text."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from act.core.errors import ActError

DELIMITERS = ",;\t"


def delimited(file: BinaryIO, longest: int, delimiter: str | None = None) -> Iterator[tuple[str, Any]]:
    """The rows below the header, each with its place, as a mapping or as its error; a value may span several lines.

    Args:
        file: the file, in UTF-8.
        longest: bytes of the largest value; beyond them reading ends.
        delimiter: what separates values; None: which of ``,``, ``;`` and tabs the header has most of.

    Raises:
        ActError: the header is no list of different names.
        csv.Error, UnicodeDecodeError: the rest of the file cannot be read.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    first = text.readline(longest)
    if not first:
        raise ActError("the file is empty")
    found = delimiter or max(DELIMITERS, key=first.count)
    csv.field_size_limit(max(longest, csv.field_size_limit()))
    names = next(csv.reader([first], delimiter=found), [])
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not names or repeated or not all(map(str.strip, names)):
        why = f"it has {repeated[0]!r:.60} twice" if repeated else f"it begins with {first.strip()!r:.60}"
        raise ActError(f"the first row must name the columns, and {why}; add a header")
    rows = csv.reader(text, delimiter=found)
    for row in rows:
        if not row:
            continue
        place = f"line {rows.line_num + 1}"
        if len(row) == len(names):
            yield place, dict(zip(names, row, strict=True))
        else:
            yield (
                place,
                ActError(
                    f"the row has {len(row)} values and the header names {len(names)} columns; put values with a "
                    "delimiter or a line break in double quotes"
                ),
            )

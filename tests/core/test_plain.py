"""JSON within limits, and the sentence about what does not fit."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from act.core.plain import MOST, Natural, checked, parsed_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "more than 40 levels deep"),
        ("[" * 100_000, "levels deep"),
        ('{"a":' * 41 + "1" + "}" * 41, "more than 40 levels deep"),
        (f"[{'[],' * MOST}[]]", "objects and lists"),
        ("9" * 5000, "thousands of digits"),
        ('{"a": NaN}', "holds NaN where a number belongs"),
        ("[-Infinity]", "holds -Infinity"),
        (b'{"a": "\xff"}', "utf-8"),
        ("{", "Expecting"),
    ],
    ids=range(9),
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parsed_json(text)


def test_what_is_read():
    assert parsed_json(b'{"a": [1, 2.5, "\xc3\xbc", "[[[[", null]}') == {"a": [1, 2.5, "ü", "[[[[", None]}
    assert parsed_json("[" * 40 + "]" * 40)


@pytest.mark.parametrize("value", [True, 1.0, "1", -1, 2**60, None, [1], float("nan")])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(ValueError, match=r"^counts\.1 is .*: input should be"):
        checked(TypeAdapter(dict[str, list[Natural]]), {"counts": [3, value]})

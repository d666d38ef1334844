"""Plain data from files that anyone may have written: JSON within limits, and the types that check it."""

from __future__ import annotations

import json
import reprlib
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")

DEEPEST = 40  # levels of nesting; what is written here has at most 10
MOST = 2_000_000  # objects and lists: ten for each of 200,000 sites, and less than 1 GB as objects of Python
LARGEST = 2**53  # integers up to here are exact as float64, too

Natural = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
"""A count, or the number of an item, from 0."""
Positive = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Label = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A name that messages quote, such as that of a module."""
Location = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""A path or hub id: no path holds a NUL."""
Flag = Annotated[bool, Field(strict=True)]


def parsed_json(text: str | bytes) -> Any:
    """The data of a JSON text.

    Raises:
        ValueError: it is not JSON in UTF-8; it is nested deeper than :data:`DEEPEST`, has more than :data:`MOST`
            objects and lists, an integer of thousands of digits, or NaN or an infinite number.
    """
    opening = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(map(text.count, opening)) > MOST:  # type: ignore[arg-type]
        raise ValueError(f"it holds more than {MOST:,} objects and lists")
    try:
        data = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        if "digits" in str(error):
            raise ValueError("it holds an integer of thousands of digits") from None
        raise
    if too_deep(data):
        raise ValueError(_TOO_DEEP)
    return data


def too_deep(data: Any) -> bool:
    """Whether data is nested deeper than :data:`DEEPEST`."""
    level = [data]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


_TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


def _no_number(constant: str) -> None:
    raise ValueError(f"it holds {constant} where a number belongs")


def checked(schema: TypeAdapter[T], data: Any) -> T:
    """The data as a ``schema`` describes it.

    Raises:
        ValueError: it does not fit; the message names the place and what was expected there.
    """
    try:
        return schema.validate_python(data)
    except ValidationError as error:
        raise ValueError(mistake(error)) from error


def mistake(error: ValidationError) -> str:
    """The first mistake that pydantic found, as a phrase."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place[:80] or 'it'} is {reprlib.repr(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"

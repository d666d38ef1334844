"""Names that become file names: of abilities, wherever they enter (a label, an option, a file that is read)."""

from __future__ import annotations

import unicodedata

from act.core.errors import ActError

LONGEST = 50  # characters of up to 4 bytes: file names, also of temporary copies, have at most 255 bytes
_UNPRINTABLE = ("Cc", "Zl", "Zp")  # control characters and separators of lines


def require_name(what: str, name: object) -> str:
    """A name that can stand in a path as it is, in any script.

    A separator is refused, not escaped, so that a file is called what the report calls it.

    Raises:
        ActError: it is no string, empty, too long, or half a character; it has a slash, backslash or control character,
            or begins with a dot or a space.

    >>> from act.core.names import require_name
    >>> require_name("the ability", "数学 (5+)")
    '数学 (5+)'
    >>> require_name("the ability", "C++/Rust")
    Traceback (most recent call last):
    act.core.errors.ActError: the ability is 'C++/Rust'; expected a valid file name: ...
    """
    if not isinstance(name, str):
        raise ActError(f"{what} is {name!r:.60}; expected a name")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        half = name[error.start]
        raise ActError(f"{what} has half a character, {half!r} at position {error.start}; repair it") from error
    wrong = any(each in "/\\" or unicodedata.category(each) in _UNPRINTABLE for each in name)
    if wrong or not 1 <= len(name) <= LONGEST or name[0] == "." or name[0].isspace():
        raise ActError(
            f"{what} is {name!r:.60}; expected a valid file name: at most {LONGEST} characters, without slashes, and "
            "no dot or space in front"
        )
    return name

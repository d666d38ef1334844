"""Names that become file names: of abilities and shards, wherever they enter (a label, an option, a file)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatchcase

from act.core.errors import ActError

LONGEST = 50  # characters of up to 4 bytes: file names, also of temporary copies, have at most 255 bytes
_BRACKETS = re.compile(r"(?<=[A-Za-z_])\[(\d+|\*|[A-Za-z_]+(?=\]$))\]")
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, separators of lines


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
    if not is_part(name) or len(name) > LONGEST or name[0] == "." or name[0].isspace():
        raise ActError(
            f"{what} is {name!r:.60}; expected a valid file name: at most {LONGEST} characters, without slashes, and "
            "no dot or space in front"
        )
    return name


def is_part(name: str) -> bool:
    """Whether a name can be one part of a path: up to 255 bytes without separators or control characters, no dots only.

    >>> from act.core.names import is_part
    >>> [is_part(name) for name in ("model.safetensors", "..", "a/b", "")]
    [True, False, False, False]
    """
    odd = any(each in "/\\" or unicodedata.category(each) in _UNPRINTABLE for each in name)
    return not odd and name not in (".", "..") and 1 <= len(name.encode(errors="surrogatepass")) <= 255


def matches(name: str, pattern: str) -> bool:
    """Whether the name of a site or parameter matches a pattern: ``*``, ``?``, and ``[abc]``.

    ``[3]``, the number of an expert, and ``[gate]`` at the end, the role of a part, are themselves.

    >>> from act.core.names import matches
    >>> matches("layers.0.mlp.experts[3].gate", "*.experts[3].*"), matches("layers.0.mlp", "layers.[0-3].*")
    (True, True)
    >>> matches("layers.0.qkv_proj[q]", "*.qkv_proj[q]")
    True
    """
    return name == pattern or fnmatchcase(name, _BRACKETS.sub(r"[[]\1[]]", pattern))


def names_in(given: str | Iterable[str]) -> list[str]:
    """What an ``include`` or ``exclude`` lists; a single string is one name.

    >>> from act.core.names import names_in
    >>> names_in("head"), names_in(("q", "*.mlp.*"))
    (['head'], ['q', '*.mlp.*'])
    >>> names_in([3])
    Traceback (most recent call last):
    act.core.errors.ActError: [3] is no list of module kinds or patterns of site names
    """
    names = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not all(isinstance(name, str) for name in names):
        raise ActError(f"{given!r:.60} is no list of module kinds or patterns of site names")
    return names

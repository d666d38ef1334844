"""The exceptions of the package, and helpers for their messages."""

from __future__ import annotations

from collections.abc import Iterable


class ActError(ValueError):
    """An error that the user can fix.

    The message says in one sentence what was given, what was expected and what to do. The CLI prints it and exits with
    code 2.
    """


class BadRecord(ActError):
    """A corpus record that cannot be read, or whose answer cannot be separated from its prompt."""


class Interrupted(ActError):
    """The run was told to stop and stopped between two batches; the CLI exits with code 130."""


def brief(error: BaseException, length: int = 200) -> str:
    """The message of an error on one line, cut to ``length`` characters, or its type if it has no message."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def require_choice(what: str, given: object, choices: Iterable[str]) -> None:
    """Raise :class:`ActError`, which lists the ``choices``, unless ``given`` is one of them."""
    known = tuple(choices)
    if given not in known:
        raise ActError(f"{what} is {given!r}; {one_of(known)}")


def one_of(choices: Iterable[str]) -> str:
    """The end of an error message that lists what was expected."""
    return f"expected one of {', '.join(choices)}"


def require_type(what: str, given: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise :class:`ActError` unless ``given`` is of a ``kind``; ``expected`` describes it and says where to get it."""
    if not isinstance(given, kind):
        raise ActError(f"{what} is of type {type(given).__name__}; expected {expected}")

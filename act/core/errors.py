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
        raise ActError(f"{what} is {given!r}; expected one of {', '.join(known)}")

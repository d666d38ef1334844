"""The exceptions of the package, and the phrases that their messages share."""

from __future__ import annotations

from collections.abc import Iterable


class ActError(ValueError):
    """An error the user can fix: what was given, what was expected and what to do, in one sentence.

    The CLI prints it and exits with code 2.
    """


class BadRecord(ActError):
    """A record of a corpus that cannot be read, or whose answer cannot be told from its prompt."""


class Interrupted(ActError):
    """The run was told to stop, and did so between two batches; the CLI exits with code 130."""


def brief(error: BaseException, length: int = 200) -> str:
    """The message of an error on one line, cut to ``length`` characters; its type where it has no message."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def require_choice(what: str, given: object, choices: Iterable[str]) -> None:
    """Raise :class:`ActError` unless ``given`` is one of the ``choices``, and list them."""
    known = tuple(choices)
    if given not in known:
        raise ActError(f"{what} is {given!r}; expected one of {', '.join(known)}")

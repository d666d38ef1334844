"""The exceptions of the package, and helpers for their messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral, Real

from act.core.near import meant


class ActError(ValueError):
    """An error that the user can fix.

    The message says in one sentence what was given, what was expected and what to do. The CLI prints it and exits with
    code 2.
    """


class BadRecord(ActError):
    """A corpus record that cannot be read, or whose answer cannot be separated from its prompt."""


class Missing(ActError):
    """An input that is not there; ``near`` is what may have been meant by it, if anything."""

    def __init__(self, said: str, near: str | None = None) -> None:
        super().__init__(f"{said}; did you mean {near}?" if near else said)
        self.said, self.near = said, near


class Unreachable(ActError):
    """Something of the hub that its cache does not have, while the hub cannot be reached."""


class Interrupted(ActError):
    """The run was told to stop and stopped between two batches; the CLI exits with code 130."""


_typed = False


def speak_of_options() -> None:
    """Let messages name options as they are typed after ``act-profile``, as long as this process lives."""
    global _typed
    _typed = True


def option(typed: str, argument: str) -> str:
    """What a message calls a setting: the option on the command line, the argument in Python.

    >>> from act.core.errors import option
    >>> option("--number 5", "count=5")
    'count=5'
    """
    return typed if _typed else argument


def brief(error: BaseException, length: int = 200) -> str:
    """The first sentences of an error's message, on one line, or its type if it has no message.

    They have at most ``length`` characters if the first one has; of a sentence over three times that, the beginning.
    """
    text = " ".join(str(error).split())
    if len(text) > length:
        ends = [found.end() for found in re.finditer(r"[.!?](?= [A-Z`'\"(])", text)]
        end = max((end for end in ends if end <= length), default=min([*ends, len(text)]))
        text = text[:end] if end <= 3 * length else f"{text[:length].rsplit(' ', 1)[0]} …"
    return text.rstrip(".") or type(error).__name__


def require_choice(what: str, given: object, choices: Iterable[str]) -> None:
    """Raise :class:`ActError`, which lists the ``choices`` and offers the nearest, unless ``given`` is one of them."""
    known = tuple(choices)
    if given not in known:
        raise ActError(f"{what} is {given!r}; {one_of(known)}{meant(str(given), known)}")


def one_of(choices: Iterable[str]) -> str:
    """The end of an error message that lists what was expected."""
    return f"expected one of {', '.join(choices)}"


def require_number(what: str, given: object, *, whole: bool = False) -> None:
    """Raise :class:`ActError` unless ``given`` is a number, and a whole one if that is asked; True is none."""
    if isinstance(given, bool) or not isinstance(given, Integral if whole else Real):
        raise ActError(f"{what} is {given!r}; expected a {'whole number' if whole else 'number, such as 0.1'}")


def require_several(what: str, given: object) -> None:
    """Raise :class:`ActError` if ``given`` is one number or text where a list of them is expected."""
    if isinstance(given, (str, Real)):
        raise ActError(f"{what} is {given!r}; expected a list, such as [{given!r}]")


def require_type(what: str, given: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise :class:`ActError` unless ``given`` is of a ``kind``; ``expected`` describes it and says where to get it."""
    if not isinstance(given, kind):
        raise ActError(f"{what} is of type {type(given).__name__}; expected {expected}")

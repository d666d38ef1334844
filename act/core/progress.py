"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are in all (0: unknown).

It is called when work begins, too, so that the time left is known once the first is done.
"""


def silent(what: str, done: int, total: int) -> None:
    """A :data:`Progress` that tells nobody."""

"""Ctrl-C and SIGTERM held back until what is being done can end well."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Held:
    """The signal that came, if one did."""

    number: int | None = None


@contextlib.contextmanager
def held_signals() -> Iterator[Held]:
    """Hold back SIGINT and SIGTERM during the block, for it to look at; a second signal takes effect at once.

    Outside the main thread, where Python handles none, nothing is held back.
    """
    held = Held()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return

    def note(number: int, frame: Any) -> None:
        held.number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield held
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

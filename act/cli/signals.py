"""SIGTERM, SIGHUP and Ctrl-C end a command as an error does: what it was writing is removed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


_pressed = threading.Event()


def interrupted() -> bool:
    """Whether Ctrl-C came in :func:`raised`, also where a library has made another error of it, or none."""
    return _pressed.is_set()


class Terminated(SystemExit):
    """A signal told the process to end; its exit code is that of a shell for a process that the signal has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise :class:`Terminated` when such a signal comes during the block, once; signals ignored before stay so.

    Ctrl-C is remembered, and raised as Python does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # nothing disturbs the clearing up
        raise Terminated(number)

    def press(number: int, frame: FrameType | None) -> None:
        _pressed.set()
        signal.default_int_handler(number, frame)

    _pressed.clear()
    before = {each: signal.getsignal(each) for each in SIGNALS if signal.getsignal(each) is signal.SIG_DFL}
    for each in before:
        signal.signal(each, end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.default_int_handler
        signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

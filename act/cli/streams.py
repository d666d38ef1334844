"""What stdout and stderr take: text of any script, names of any bytes, and a reader that has seen enough."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from act.core.directions import straight

_closed: set[int] = set()


def prepare() -> None:
    """Make stdout and stderr ready for what commands print.

    A file or pipe gets UTF-8 in any locale, unless ``PYTHONIOENCODING`` says otherwise. A path is written as the bytes
    that it has. No name changes the direction of what follows. Where nobody reads any more, the command goes on to its
    end without printing, so that what it makes is whole, and its exit code its own.
    """
    codecs.register_error("names", _bytes_of_names)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            own = stream.isatty() or "PYTHONIOENCODING" in os.environ
            stream.reconfigure(encoding=stream.encoding if own else "utf-8", errors="names")
        _guard(stream)


def unread() -> bool:
    """Whether whoever read stdout has seen enough, so that what only prints can end."""
    return bool(_closed) and sys.stdout.fileno() in _closed


def names_read(text: str) -> str:
    """A text in which names that were read in a locale without their characters are what they are in UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:  # bytes that are no text in any locale
        return text


def _bytes_of_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes for what Python made of the bytes of a path (PEP 383), and escapes for what an encoding cannot write."""
    assert isinstance(error, UnicodeEncodeError)
    escaped = bytearray()
    for character in error.object[error.start : error.end]:
        code = ord(character)
        escaped += bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else character.encode("ascii", "backslashreplace")
    return bytes(escaped), error.end


def _guard(stream: TextIO) -> None:
    write, flush = stream.write, stream.flush

    def unless_closed(do: Callable[..., Any], *given: str) -> None:
        try:
            do(*given)
        except BrokenPipeError:
            descriptor = stream.fileno()
            _closed.add(descriptor)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)

    def guarded(text: str) -> int:
        unless_closed(write, straight(text))
        return len(text)

    stream.write = guarded  # type: ignore[method-assign]
    stream.flush = lambda: unless_closed(flush)  # type: ignore[method-assign]

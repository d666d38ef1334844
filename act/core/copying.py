"""Copies of files: clones that share blocks until one side is written to, where the filesystem can, else bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from pathlib import Path
from typing import BinaryIO

_FICLONE = 0x40049409  # of Linux: share all blocks of another file
_AT_ONCE = 1 << 26  # bytes, so that a copy stops soon
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Stopped(Exception):
    """A copy was told to stop."""


def copy_file(source: Path, destination: Path, stop: threading.Event | None = None, *, clone: bool = True) -> None:
    """Copy the bytes of a file to a new one, which gets the mode that the umask gives.

    Args:
        stop: once it is set, the copy ends.
        clone: whether the copy may share blocks with its source. One that is then written to through a memory map
            should not: where the disk has no block left for it, the system ends the process.

    Raises:
        Stopped: ``stop`` was set.
        OSError: the source cannot be read, or the destination not be written.
    """
    with source.open("rb") as there, destination.open("wb") as here:
        if clone and _cloned(there, here):
            return
        done = _sent(there, here, stop)
        there.seek(done)
        here.seek(done)
        while block := there.read(_AT_ONCE):
            _require_going(stop)
            here.write(block)


def _cloned(source: BinaryIO, destination: BinaryIO) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        fcntl.ioctl(destination.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


def _sent(source: BinaryIO, destination: BinaryIO, stop: threading.Event | None) -> int:
    """Let the system copy; returns how many bytes it did."""
    done = 0
    try:
        while sent := os.sendfile(destination.fileno(), source.fileno(), done, _AT_ONCE):
            done += sent
            _require_going(stop)
    except OSError as error:
        if error.errno in _FULL:
            raise
    return done


def _require_going(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped

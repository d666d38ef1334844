"""Renames that replace nothing, and that replace a folder at once."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sys
from pathlib import Path

log = logging.getLogger(__name__)

_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)  # EPERM: of sandboxes


def move_new(source: Path, destination: Path) -> None:
    """Rename a file or folder to a name that does not exist.

    Where the filesystem cannot rename without replacing, a file is linked to its name first; a folder is checked just
    before it is renamed, and a log message says so.

    Raises:
        FileExistsError: the name exists.
    """
    try:
        _renameat2(source, destination, _NOREPLACE)
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    if not source.is_dir():
        try:
            os.link(source, destination)
        except FileExistsError:
            raise
        except OSError:  # no links, either
            pass
        else:
            source.unlink()
            return
    log.warning(
        "the filesystem of %s cannot rename without replacing, so whether the name is free was checked just before",
        destination,
    )
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    os.rename(source, destination)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False, with nothing done, where the filesystem cannot."""
    try:
        _renameat2(one, other, _EXCHANGE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _renameat2(source: Path, destination: Path, flags: int) -> None:
    """The system call of Linux, which Python's os does not have."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux") or not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here = -100  # AT_FDCWD
    if libc.renameat2(here, os.fsencode(source), here, os.fsencode(destination), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(destination))

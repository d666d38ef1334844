"""A folder of this user's own for what can be computed again: small files, of which those unused for longest go."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from act.core.errors import ActError, brief

log = logging.getLogger(__name__)

OFF = "off"
_KEPT, _UNFINISHED = ".act-cache", ".act-unfinished"  # endings of the files here; all others are somebody's own
_ABANDONED = 86_400  # seconds after which nobody finishes a file any more
_said: set[str] = set()  # what was reported in this process, once


class UserCache:
    """Files in a folder that belongs to this user and that nobody else can write to; files of others are left alone.

    Nothing here fails for want of the folder: what cannot be kept is not, and one log message says so.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes

    @classmethod
    def named(cls, name: str, variable: str, most_bytes: int) -> UserCache | None:
        """The folder ``act-profile/name`` in the user's cache (``$XDG_CACHE_HOME``, by default ``~/.cache``).

        Args:
            variable: an environment variable that names another folder, or says :data:`OFF`: then there is none.

        Raises:
            ActError: the variable is something else.
        """
        chosen = os.environ.get(variable, "")
        if chosen.lower() == OFF:
            return None
        if chosen:
            folder = os.path.expanduser(chosen)
            if not os.path.isabs(folder):
                raise ActError(f"{variable} is {chosen}; give it the whole path of a folder, or {OFF}")
            return cls(Path(folder), most_bytes)
        base = os.environ.get("XDG_CACHE_HOME", "")
        home = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
        return cls(Path(home, "act-profile", name), most_bytes) if os.path.isabs(home) else None  # a user has no home

    def find(self, name: str) -> Path | None:
        """The file of that name; None if there is none that only this user can have written."""
        path = self._path(name)
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                return None
            if not (_is_private(self.folder.stat(), self.folder) and _is_private(found, path)):
                return None
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # in use
        return path

    def keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Put a file in the place of an earlier one, in one step; ``write`` fills the new one."""
        try:
            there = next(place for place in (self.folder, *self.folder.parents) if place.exists())
            if os.geteuid() == 0 and not _is_own(there.stat(), there):
                return  # root in the home of another user, who could then keep nothing there
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_private(self.folder.stat(), self.folder):
                return
            descriptor, unfinished = tempfile.mkstemp(suffix=_UNFINISHED, dir=self.folder)  # for this user only
            os.close(descriptor)
            try:
                write(Path(unfinished))
                os.chmod(unfinished, 0o600)
                os.replace(unfinished, self._path(name))
            finally:
                Path(unfinished).unlink(missing_ok=True)
            self._remove_oldest()
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else brief(error)
            _say_once(f"nothing is kept in {self.folder} for the next run: {reason}")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there and can be."""
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self.folder / (name + _KEPT)

    def _remove_oldest(self) -> None:
        """Remove what is more than fits, of its own files only; another process may do the same meanwhile."""
        found = []
        for path in self.folder.glob(f"*{_UNFINISHED}"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED:
                    path.unlink()
        for path in self.folder.glob(f"*{_KEPT}"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.most_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def _is_private(found: os.stat_result, path: Path) -> bool:
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _say_once(f"others may write to {path}, so it is not used; take that right away (chmod go-w)")
        return False
    return _is_own(found, path)


def _is_own(found: os.stat_result, path: Path) -> bool:
    if found.st_uid != os.geteuid():
        _say_once(f"{path} belongs to another user, so it is not used")
        return False
    return True


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.warning(message)

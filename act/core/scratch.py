"""Folders for what is being written: beside the output, locked while their process lives, removed after it died."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from act.core.errors import ActError
from act.core.locks import Busy, Owner, lock, unlock

log = logging.getLogger(__name__)

NAME_MAX = 255  # bytes of a file name, on every common filesystem
REPLACED = "replaced"  # in a scratch folder: what must go back to its place if the process dies
_LOCK, _SCRATCH = ".act-lock", ".act-tmp-"  # the second is followed by what tempfile chooses
_PATTERN = re.compile(r"\.(?P<stem>.+)\.act-(lock|tmp-[a-z0-9_]{8})", re.DOTALL)

_locks: dict[Path, tuple[int, int]] = {}  # lock file -> its descriptor, and how many blocks of this process hold it
_made: list[Path] = []  # folders that were made for outputs; those that stay empty are removed again
_changing: set[Path] = set()  # lock files that are being made or removed, which a signal may cut short
_guard = threading.RLock()


def companion(path: Path, ending: str, *, room: int = 0, hidden: bool = False) -> Path:
    """A file beside ``path`` of the same name with an ending; a name that would be too long is shortened.

    Args:
        room: how many more bytes may be added to the name.
        hidden: whether the name begins with a dot.
    """
    most = NAME_MAX - len(os.fsencode(ending)) - room
    whole = os.fsencode(f"{'.' if hidden else ''}{path.name}")
    if len(whole) > most:
        digest = hashlib.sha256(whole).hexdigest()[:12]
        whole = whole[: most - len(digest) - 1].decode("utf-8", "ignore").encode() + f"~{digest}".encode()
    return path.absolute().parent / (os.fsdecode(whole) + ending)


@contextlib.contextmanager
def reserved(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Make this process the only one that writes ``path`` during the block; it may enter again.

    What processes that died have left beside ``path`` is removed, and what they had moved away is put back.

    Args:
        wait: wait for another process that writes it, instead of raising.

    Raises:
        ActError: another process writes ``path``; nothing can be written there.
    """
    reserve(path, wait=wait)
    try:
        yield
    finally:
        _release(_lock_of(path))


def reserve(path: Path, *, wait: bool = False) -> None:
    """As :func:`reserved`, until :func:`release_all` or the end of the process; the folders on the way are made."""
    _make_folders(path)
    place, said = _lock_of(path), False
    while True:
        try:
            with _guard:
                if place in _locks:
                    descriptor, count = _locks[place]
                    _locks[place] = descriptor, count + 1
                else:
                    _changing.add(place)
                    try:
                        _locks[place] = lock(place), 1
                    except (Busy, OSError):
                        _changing.discard(place)
                        raise
                    _changing.discard(place)
                    _sweep(place)
            return
        except Busy as busy:
            if not wait:
                raise ActError(f"{busy} is writing {path}; wait until it has ended, or choose another output") from None
            if not said:
                log.warning("waiting for %s, which writes %s", busy, path)
                said = True
        except OSError as error:
            raise ActError(f"cannot write {path}: {error.strerror}; choose another output") from error
        time.sleep(0.2)


def _make_folders(path: Path) -> None:
    """Make the folders on the way to an output."""
    missing = [folder for folder in path.absolute().parents if not os.path.isdir(folder)]
    there = missing[-1] if missing else path
    if missing and os.path.lexists(there):
        raise ActError(f"cannot write {path}: {there} is no folder; choose another output")
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            _made.append(folder)
    except OSError as error:
        raise ActError(
            f"cannot write {path}: {folder} cannot be made ({error.strerror}); choose another output"
        ) from error


def clear(path: Path) -> None:
    """Remove what processes that died have left beside ``path``, unless another process writes it now."""
    with contextlib.suppress(ActError), reserved(path):
        pass


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A new folder on the filesystem of ``path``, which this process has reserved; removed when the block ends.

    Raises:
        ActError: it cannot be made.
    """
    place = _lock_of(path)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=_stem(place) + _SCRATCH, dir=place.parent))
    except OSError as error:
        raise ActError(f"cannot write {path}: {error.strerror}; choose another output") from error
    try:
        yield scratch
    finally:
        _remove(scratch)


def sweep(folder: Path) -> None:
    """Remove from a folder what processes that died while writing have left, whatever they wrote."""
    stems = {found["stem"] for entry in _entries(folder) if (found := _PATTERN.fullmatch(entry))}
    for stem in sorted(stems):
        place = folder.absolute() / f".{stem}{_LOCK}"
        with _guard, contextlib.suppress(Busy, OSError):
            if place not in _locks:
                descriptor = lock(place)
                _sweep(place)
                unlock(place, descriptor)


def release_all() -> None:
    """Remove every scratch folder and lock of this process, whatever ended the blocks that made them.

    So are folders that were made for an output that was not written.
    """
    for place in [*_locks]:
        _sweep(place)
        descriptor, _ = _locks.pop(place)
        unlock(place, descriptor)
    while _changing:
        place = _changing.pop()
        try:
            unlock(place, lock(place))
        except Busy as busy:
            if busy.owner == Owner.here():  # locked, and its descriptor lost on the way
                place.unlink(missing_ok=True)
    while _made:
        with contextlib.suppress(OSError):  # something is in it
            _made.pop().rmdir()


def _release(place: Path) -> None:
    with _guard:
        descriptor, count = _locks.get(place, (0, 0))
        if count > 1:
            _locks[place] = descriptor, count - 1
        elif count:
            _changing.add(place)
            del _locks[place]
            unlock(place, descriptor)
            _changing.discard(place)


def _lock_of(path: Path) -> Path:
    """One for every way to write the path; with room for the name of the scratch folder."""
    path = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    return companion(
        Path(os.path.realpath(path.absolute().parent), f".{path.name}"), _LOCK, room=len(_SCRATCH) + 8 - len(_LOCK)
    )


def _sweep(place: Path) -> None:
    """Remove the scratch folders that belong to a lock, which this process holds."""
    for entry in _entries(place.parent):
        found = _PATTERN.fullmatch(entry)
        if found and f".{found['stem']}" == _stem(place) and entry != place.name:
            _remove(place.parent / entry)


def _stem(place: Path) -> str:
    return place.name.removesuffix(_LOCK)


def _remove(scratch: Path) -> None:
    """Remove a scratch folder, after what was moved into it, and not yet replaced, is back in its place."""
    replaced = scratch / REPLACED
    for entry in _entries(replaced):
        if not os.path.lexists(scratch.parent / entry):
            (replaced / entry).rename(scratch.parent / entry)
            log.warning("%s was put back, which an interrupted run had moved away", scratch.parent / entry)
    with contextlib.suppress(OSError):
        replaced.rename(scratch / "removing")  # so that no half of it is ever put back
    for _ in range(10):  # a thread that is being stopped may still add a file
        shutil.rmtree(scratch, ignore_errors=True)
        if not scratch.exists():
            return
        time.sleep(0.05)


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _in_a_fork() -> None:
    """A forked process holds nothing: it closes its copies of the locks, and removes nothing when it ends."""
    global _guard
    _guard = threading.RLock()  # another thread may have held it
    for descriptor, _ in _locks.values():
        os.close(descriptor)
    _locks.clear()
    _made.clear()


os.register_at_fork(after_in_child=_in_a_fork)
atexit.register(release_all)

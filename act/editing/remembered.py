"""Diagonals of stored parameters from earlier runs, kept in the user's cache, so that a checkpoint is read once.

A diagonal is believed only while the files that it was read from have the identity that they had before they were
read: path, device, inode, size, times to the nanosecond, and a hash of the header. A time tells of a write only if the
clock has moved on since the last one, and a program that writes through a memory map may do so until the system has
written its pages back before another time shows it. So nothing is kept of files written to in the last minute, or in
the future, and nothing is believed that was kept in the future, as where a clock went backwards. What a transfer has
written itself is kept at once: no other program had the files, the clock of their filesystem has moved on, and the
target was the same from before its first byte was copied until the last was read (:class:`act.editing.copies.Copy`).

What this does not see: a write after which all times were set back, ctime too, as only root can, or where a filesystem
has none; and writes through a map of a file that lies in memory. Rows that are read anyway are compared with what is
kept (:meth:`act.editing.stored.Parameters.require`).
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import xxhash
from pydantic import TypeAdapter

from act.core.errors import ActError, brief
from act.core.plain import Natural, checked
from act.core.tensor_files import load_tensors, taken, understood, write_tensors
from act.core.user_cache import UserCache
from act.editing.pieces import Layout
from act.models.fingerprint import Diagonal

log = logging.getLogger(__name__)

T = TypeVar("T")
_Known = tuple[Diagonal, list[str]]  # of a parameter, and the shards that it lies in

SCHEMA = "act-fingerprints/1"
VARIABLE = "ACT_FINGERPRINTS"
_MOST_BYTES = 500_000_000  # of all checkpoints together; one of 8 GB takes about 10 MB
SETTLED = 60 * 10**9  # ns since the last write; a system writes pages back, and sees the next write, within 35 s

_wrong: set[str] = set()  # entries that did not fit in this process


class FileIdentity(NamedTuple):
    """What tells a file from another, or from itself before a write; times in ns."""

    path: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int
    header: str

    @classmethod
    def of(cls, path: Path, found: os.stat_result, header: bytes) -> FileIdentity:
        """The identity of an open file, whose safetensors header was read after ``found``."""
        return cls(
            os.path.realpath(path),
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            xxhash.xxh3_128_hexdigest(header),
        )

    @property
    def last_write(self) -> int:
        """The later of its times."""
        return max(self.modified, self.changed)


class Outdated(Exception):
    """A checkpoint has other values than those that its kept diagonals are of."""

    def __init__(self, remembered: Remembered) -> None:
        super().__init__(f"the kept fingerprint of {remembered.folder} does not fit its values")
        self.remembered = remembered


def believed(call: Callable[[], T]) -> T:
    """What a call returns; it is repeated without what is kept of a checkpoint whenever that proves wrong."""
    while True:
        try:
            return call()
        except Outdated as outdated:
            outdated.remembered.forget()


def fingerprint_cache() -> UserCache | None:
    """The folder in which fingerprints are remembered; None if there is none.

    Raises:
        ActError: :data:`VARIABLE` is neither a folder nor :data:`act.core.user_cache.OFF`.
    """
    return UserCache.named("fingerprints", VARIABLE, _MOST_BYTES)


class Remembered:
    """What is known of the diagonals of a checkpoint's parameters: from earlier runs, and from this one.

    Attributes:
        folder: the checkpoint, for messages.
        files: the identity of each shard before any value of it was read.
        since: when that was, in ns.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileIdentity], since: int) -> None:
        self.folder, self.files, self.since = folder, dict(files), since
        self._settled = {name for name, one in files.items() if one.last_write <= since - SETTLED}
        self._cache = fingerprint_cache()
        self._name = xxhash.xxh3_128_hexdigest(repr((SCHEMA, sorted(one.path for one in self.files.values()))).encode())
        self._earlier: dict[str, _Known] | None = None
        self._reading = threading.Lock()  # a donor is read in two threads
        self._new: dict[str, _Known] = {}
        self._changed = False

    def earlier(self, layout: Layout, dtype: torch.dtype | None = None) -> Diagonal | None:
        """The diagonal of a parameter that an earlier run has read, with its values as loaded in a type, if in one."""
        with self._reading:
            if self._earlier is None:
                self._earlier = self._read()
        found, _ = self._earlier.get(_key(layout, dtype), (None, []))
        return found if found is not None and found.shape == layout.shape else None

    def add(
        self, layout: Layout, shards: Collection[str], diagonal: Diagonal, dtype: torch.dtype | None = None
    ) -> None:
        """Keep the diagonal of a parameter that lies in some shards.

        Raises:
            Outdated: an earlier one is another.
        """
        earlier = self.earlier(layout, dtype)
        if earlier is not None and not earlier.same(diagonal):
            raise Outdated(self)
        if self._cache is not None:
            self._new[_key(layout, dtype)] = diagonal, sorted(shards)
            self._changed = True

    def linked(self, files: Mapping[str, FileIdentity]) -> None:
        """Accept the identities of shards that this process has linked to, of which no more than the ctime differs."""
        for name, one in files.items():
            if one._replace(changed=0) == self.files[name]._replace(changed=0):
                self._changed |= one != self.files[name]
                self.files[name] = one

    @property
    def in_use(self) -> bool:
        """Whether anything is known from earlier runs, or is to be kept for later ones."""
        return bool(self._earlier) or self._changed

    def require_unchanged(self, files: Mapping[str, FileIdentity]) -> None:
        """Raise :class:`Outdated` if the files are no longer those of before, and something earlier is known."""
        if self._earlier and files != self.files:
            raise Outdated(self)

    def forget(self) -> None:
        """Keep nothing of what earlier runs have read, and say so."""
        log.warning("%s; it is computed from all values again", Outdated(self))
        _wrong.add(self._name)
        self._earlier = {}
        if self._cache is not None:
            self._cache.remove(self._name)

    def save(self, files: Mapping[str, FileIdentity], *, written: int | None = None) -> None:
        """Keep for later runs what has been read of those files that have not changed meanwhile.

        Args:
            files: the identities now.
            written: this process has written the files, and the clock of their filesystem shows this time, in ns.
        """
        if self._cache is None or not self._changed:
            return
        self._changed = False
        made = self.since if written is None else time.time_ns()
        settled = self._settled if written is None else {n for n, one in self.files.items() if one.last_write < written}
        usable = {name for name, one in self.files.items() if name in settled and files.get(name) == one}
        known = {**(self._earlier or {}), **self._new}
        known = {key: (one, shards) for key, (one, shards) in known.items() if usable.issuperset(shards)}
        if not known:
            return
        diagonals = [diagonal for diagonal, _ in known.values()]
        tensors = {
            "values": torch.cat([one.values for one in diagonals]),
            "sums": torch.cat([one.sums.flatten() for one in diagonals]),
        }
        header = {
            "made": made,
            "files": {name: list(self.files[name]) for name in sorted(usable)},
            "diagonals": [[key, list(one.shape), shards] for key, (one, shards) in known.items()],
        }
        self._cache.keep(self._name, lambda path: write_tensors(path, tensors, SCHEMA, header))

    def _read(self) -> dict[str, _Known]:
        path = self._cache.find(self._name) if self._cache and self._name not in _wrong else None
        if self._cache is None or path is None:
            return {}
        try:
            tensors, header = load_tensors(path, SCHEMA)
            with understood(path):
                found = dict(self._believed(tensors, checked(_HEADER, header)))
        except ActError as error:
            log.warning("fingerprints of %s are computed again: %s", self.folder, brief(error))
            self._cache.remove(self._name)
            return {}
        return found

    def _believed(self, tensors: Mapping[str, torch.Tensor], kept: _Header) -> Iterator[tuple[str, _Known]]:
        shapes = [shape for _, shape, _ in kept.diagonals]
        steps, rows = [_values_in(shape) for shape in shapes], [math.prod(_sums_in(shape)) for shape in shapes]
        values = taken(tensors, "values", (torch.float32,), (sum(steps),)).split(steps)
        sums = taken(tensors, "sums", (torch.int32,), (sum(rows),)).split(rows)
        same = {name for name, one in self.files.items() if kept.files.get(name) == one}
        if kept.made > time.time_ns():
            return
        for (key, shape, shards), one, some in zip(kept.diagonals, values, sums, strict=True):
            if same.issuperset(shards):
                yield key, (Diagonal(shape, one, some.view(_sums_in(shape))), shards)


@dataclass(frozen=True)
class _Header:
    """The header of an entry: when it was made, of which files, and a key, shape and shards for each diagonal."""

    made: int
    files: dict[str, FileIdentity]
    diagonals: list[tuple[str, tuple[Natural, ...], list[str]]]


_HEADER = TypeAdapter(_Header)


def _key(layout: Layout, dtype: torch.dtype | None) -> str:
    """A name for a parameter by what its values are: where they are stored, and the type they are loaded in."""
    return xxhash.xxh3_64_hexdigest(repr((layout, str(dtype))).encode())


def _values_in(shape: tuple[int, ...]) -> int:
    return 0 if 0 in shape else max(shape, default=1)


def _sums_in(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] if len(shape) > 1 and 0 not in shape else (0,)

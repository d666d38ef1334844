"""Hashes of files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import xxhash


class Digest(Protocol):
    """A hash that is being computed, of hashlib or xxhash."""

    def update(self, data: bytes, /) -> None: ...


def feed(digest: Digest, path: Path) -> None:
    """Add the content of a file to a hash; raises OSError if it cannot be read."""
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)


def hash_of(path: Path, without: str = "") -> str:
    """A hash of the name and the content of a file, or of all files in a folder except that called ``without``.

    At the speed of the disk: for noticing damage, not an attack.
    """
    digest = xxhash.xxh3_128()
    files = [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())
    for file in files:
        if file.name != without:
            name, size = file.relative_to(path.parent).as_posix(), file.stat().st_size
            digest.update(f"{name}\n{size}\n".encode(errors="surrogateescape"))
            feed(digest, file)
    return digest.hexdigest()

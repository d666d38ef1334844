"""What the stages have made, kept for later runs with a hash beside each result, so that a changed one is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

from act.core.errors import ActError
from act.core.files import written_whole
from act.core.hashes import hash_of

ENDING = ".xxh3"


class Kept:
    """The results of earlier runs; each is read once before it is used."""

    def __init__(self) -> None:
        self._whole: set[Path] = set()

    def has(self, path: Path) -> bool:
        """Whether a file or folder is there as :meth:`add` found it; one that was never added is removed.

        Raises:
            ActError: it was changed since.
        """
        if path in self._whole:
            return True
        if not path.exists():
            return False
        if not _beside(path).is_file():  # the run was killed before it could add it
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            return False
        if _beside(path).read_bytes() != hash_of(path).encode():
            raise ActError(f"{path} is not as the recipe made it; delete it, so that it is made again (or restore it)")
        self._whole.add(path)
        return True

    def add(self, path: Path) -> None:
        """Keep a file or folder that was made."""
        with written_whole(_beside(path), force=True) as temporary:
            temporary.write_text(hash_of(path), encoding="ascii")
        self._whole.add(path)

    def drop(self, path: Path) -> None:
        """Remove a file or folder that is no longer needed, if it is there."""
        self._whole.discard(path)
        _beside(path).unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_kept(path: Path) -> bool:
    """Whether a result was kept; its content is not read."""
    return path.exists() and _beside(path).is_file()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ENDING)

"""Files of other systems (``s3://``, ``gs://``, ``hf://`` and all that fsspec knows), read as they are needed."""

from __future__ import annotations

import glob
import io
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from act.core.errors import ActError, Missing, brief


class Remote:
    """A file that fsspec reads, with as much of a :class:`pathlib.Path` as the readers of records ask for."""

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path
        self._named = PurePosixPath(path)

    def __str__(self) -> str:
        return str(self._system.unstrip_protocol(self._path))

    @property
    def suffix(self) -> str:
        """The last ending of its name."""
        return self._named.suffix

    @property
    def suffixes(self) -> list[str]:
        """All endings of its name."""
        return self._named.suffixes

    @property
    def parent(self) -> PurePosixPath:
        """The folder around it, whose files are none of this machine."""
        return PurePosixPath(str(self)).parent

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its bytes, of which no more are transferred than are read, up to a buffer."""
        return cast("BinaryIO", io.BufferedReader(self._system.open(self._path, mode), 1 << 20))

    def mark(self) -> str:
        """A hash of what its system says of it, such as its size, date and tag: nothing is read."""
        return str(self._system.ukey(self._path))


File = Path | Remote


def is_remote(place: str) -> bool:
    """Whether a place is on another system, by its form.

    >>> from act.data.remote import is_remote
    >>> is_remote("s3://bucket/german/*.parquet"), is_remote("org/name"), is_remote("german.jsonl")
    (True, False, False)
    """
    return "://" in place


def remote_files(place: str) -> list[Remote]:
    """The file at a place, those in a folder, or those of a glob, in order of their names.

    Raises:
        ActError: nothing is there; a package is missing; the system refuses, or cannot be reached.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = place.partition("://")[0]
    try:
        system, root = url_to_fs(place)
        if glob.has_magic(root):
            found = [path for path in system.glob(root) if system.isfile(path)]
        else:
            found = [root] if system.isfile(root) else system.find(root)
    except ImportError as error:
        package = str(known_implementations[protocol]["class"]).partition(".")[0]
        way = brief(error) if package == "fsspec" else f"pip install {package}"
        raise ActError(f"cannot read the corpus {place}: what reads {protocol}:// is not installed; {way}") from error
    except FileNotFoundError:
        found = []
    except Exception as error:  # the systems of fsspec pass on the errors of their own libraries
        raise ActError(
            f"cannot read the corpus {place}: {brief(error)}; correct the place, set the credentials for {protocol}:// "
            "in the environment, or copy it here"
        ) from error
    if not found:
        raise Missing(f"no such corpus: {place}; there is no such file or folder")
    return [Remote(system, path) for path in sorted(found)]

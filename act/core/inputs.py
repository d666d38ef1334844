"""No output may take the place of an input, however the input was given."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from act.core.errors import ActError

_HUB_ID = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(:[\w.-]+){0,2}")


def require_not_input(output: Path, inputs: Iterable[str | Path]) -> None:
    """Raise :class:`ActError` if ``output`` is one of the ``inputs``, lies inside one, or contains one.

    Args:
        inputs: files, folders, globs and hub ids. Links are followed, those in a folder too, so the blobs of the hub's
            cache are inputs with the snapshot that names them.
    """
    places = _names(output)
    for one in inputs:
        for held in _files_of(one):
            if any(_meet(place, name) for place in places for name in _names(held)) or _same(output, held):
                raise ActError(f"the output {output} would overwrite the input {one}; choose another output")


def _files_of(given: str | Path) -> Iterator[Path]:
    """What exists of an input."""
    path, text = Path(given), str(given)
    if os.path.lexists(path):
        yield path
        yield from _links_in(path)
        return
    yield from map(Path, glob.iglob(text, recursive=True))
    if found := _HUB_ID.fullmatch(text):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders = (Path(HF_HUB_CACHE, f"{kind}--{found['owner']}--{found['name']}") for kind in ("models", "datasets"))
        yield from (folder for folder in folders if folder.exists())


def _links_in(folder: Path) -> Iterator[Path]:
    """The symbolic links below a folder."""
    for root, folders, files in os.walk(folder):
        yield from (path for name in (*folders, *files) if (path := Path(root, name)).is_symlink())


def _names(path: Path) -> set[Path]:
    """A path as it was given, and with every link followed."""
    return {Path(os.path.abspath(path)), Path(os.path.realpath(path))}


def _meet(place: Path, held: Path) -> bool:
    return place == held or held in place.parents or place in held.parents


def _same(output: Path, held: Path) -> bool:
    """Whether both are one file: also two hard links to it."""
    with contextlib.suppress(OSError):
        return os.path.samefile(output, held)
    return False

"""No output may take the place of an input, however the input was given."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from act.core.errors import ActError

_HUB_ID = re.compile(r"(?P<name>([\w.-]+/)?[\w.-]+)((:[\w.-]+){0,2}|@[\w./-]+)")
_ADAPTER = "adapter_config.json"


def require_not_input(output: Path, inputs: Iterable[str | Path]) -> None:
    """Raise :class:`ActError` if ``output`` is one of the ``inputs``, lies inside one, or contains one.

    Args:
        inputs: files, folders, globs and hub ids. Links are followed, those in a folder too, so the blobs of the hub's
            cache are inputs with the snapshot that names them; so is the base model of an adapter.
    """
    places = _names(output)
    for one in inputs:
        for what, path in _held(one):
            names = _names(path)
            if places & names or _same(output, path):
                raise ActError(f"the output {output} would overwrite {what}; choose another output")
            if any(name in place.parents for place in places for name in names):
                raise ActError(f"the output {output} lies in {what}, where nothing is written; choose another output")
            if any(place in name.parents for place in places for name in names):
                raise ActError(
                    f"the output {output} would take the place of a folder with {what}; choose another output"
                )


def _held(given: str | Path) -> Iterator[tuple[str, Path]]:
    """What exists of an input, and of the models it stands on, each with what to call it."""
    yield from ((f"the input {given}", path) for path in _files_of(given))
    for base in _bases(given):
        yield from ((f"{base}, the base model of the adapter {given}", path) for path in _stored(base))


def _files_of(given: str | Path) -> Iterator[Path]:
    """What exists of an input."""
    if not os.path.lexists(given):
        yield from map(Path, glob.iglob(str(given), recursive=True))
    yield from _stored(given)


def _stored(name: str | Path) -> Iterator[Path]:
    """What a path or hub id names, and the links in it."""
    if os.path.lexists(name):
        yield Path(name)
        yield from _links_in(Path(name))
    else:
        yield from _cached(str(name))


def _cached(identifier: str) -> Iterator[Path]:
    """The folders of a hub id in the hub's cache."""
    if found := _HUB_ID.fullmatch(identifier):
        from huggingface_hub.constants import HF_HUB_CACHE

        name = found["name"].replace("/", "--")
        folders = (Path(HF_HUB_CACHE, f"{kind}--{name}") for kind in ("models", "datasets"))
        yield from (folder for folder in folders if folder.exists())


def _bases(model: str | Path) -> list[str]:
    """The models that an adapter stands on: its base, and the base of that."""
    names = [str(model)]
    for name in names:  # grows meanwhile
        for folder in [Path(name)] if os.path.lexists(name) else _cached(name):
            for config in (folder / _ADAPTER, *folder.glob(f"snapshots/*/{_ADAPTER}")):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # loading tells
                    base = json.loads(config.read_bytes())["base_model_name_or_path"]
                    if isinstance(base, str) and base not in names:
                        names.append(base)
    return names[1:]


def _links_in(folder: Path) -> Iterator[Path]:
    """The symbolic links below a folder."""
    for root, folders, files in os.walk(folder):
        yield from (path for name in (*folders, *files) if (path := Path(root, name)).is_symlink())


def _names(path: Path) -> set[Path]:
    """A path as it was given, and with every link followed."""
    return {Path(os.path.abspath(path)), Path(os.path.realpath(path))}


def _same(output: Path, held: Path) -> bool:
    """Whether both are one file: also two hard links to it."""
    with contextlib.suppress(OSError):
        return os.path.samefile(output, held)
    return False

"""Which files of a model folder hold its weights: those that transformers would load, in its order of preference."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from act.core.errors import ActError, brief
from act.core.names import is_part

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class RenamedWeights(ActError):
    """What is stored is not what the model has, by name or by type; only loading the model makes it so."""


class WeightFiles(NamedTuple):
    """The shards by name, sorted, relative to the folder, and the index that lists them, if there is one."""

    shards: list[str]
    listed_in: str | None = None


def weight_files(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    """The safetensors files of a model: the file that its configuration names, a single file, or those of an index.

    Raises:
        RenamedWeights: there are weights, but no safetensors.
        ActError: no weights; an index that is damaged, or that names a file outside the folder.
    """
    named = config.get("transformers_weights")
    if isinstance(named, str):
        _require_inside(folder, named, folder / "config.json")
        return _of_index(folder, named) if named.endswith(".index.json") else WeightFiles([named])
    if (folder / SINGLE).is_file():
        return WeightFiles([SINGLE])
    if (folder / INDEX).is_file():
        return _of_index(folder, INDEX)
    other = next((path.name for path in sorted(folder.glob("*.bin"))), None)
    if other:
        raise RenamedWeights(
            f"{folder} holds {other} and no safetensors; "
            "to work on its files, load the model and save it again with save_pretrained"
        )
    raise ActError(f"{folder} holds no weights; expected .safetensors files")


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ActError: the file is missing, not JSON, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ActError(f"{path} is not JSON ({brief(error)}); download or save the model again") from error
    if not isinstance(found, dict):
        raise ActError(f"{path} holds {type(found).__name__}, expected a JSON object; download or save the model again")
    return found


def _of_index(folder: Path, index: str) -> WeightFiles:
    places = read_mapping(folder / index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise ActError(f"{folder / index} has no weight_map from tensors to files; download or save the model again")
    shards = sorted({*places.values()})
    for file in shards:
        _require_inside(folder, file, folder / index)
    return WeightFiles([str(PurePosixPath(file)) for file in shards], index)


def _require_inside(folder: Path, file: str, where: Path) -> None:
    """Raise :class:`ActError` for a name that leads out of the folder, by itself or through a link.

    A snapshot in the hub's cache may lead to the blobs of its repository.
    """
    place = PurePosixPath(file)
    plain = all(map(is_part, place.parts))
    root = folder.resolve()
    root = root.parent.parent if root.parent.name == "snapshots" else root
    if not plain or not place.parts or not Path(os.path.realpath(folder / file)).is_relative_to(root):
        raise ActError(
            f"{where} names {file!r:.200}, which is not a file inside the folder; "
            "copy the file there, or download the model again"
        )

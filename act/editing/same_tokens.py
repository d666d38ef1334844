"""Whether two model folders number their tokens alike, seen from their files alone."""

from __future__ import annotations

import filecmp
from pathlib import Path

from act.core.errors import ActError
from act.editing.weight_files import read_mapping

_ENDINGS = (".json", ".txt", ".model", ".tiktoken", ".bpe", ".spm", ".py")
_NO_TOKENS = ("config.json", "generation_config.json")
_DECIDING = ("model_type", "tokenizer_class", "auto_map")


def same_tokenizer_files(one: Path, other: Path) -> bool:
    """Whether both folders have a ``tokenizer.json``, and every file that may decide a tokenizer, to the byte.

    Then no tokenizer needs to be loaded, which takes seconds. False says nothing: two other files may agree, too.
    """
    try:
        names = _deciding(one)
        if "tokenizer.json" not in names or names != _deciding(other):
            return False
        configurations = [read_mapping(folder / "config.json") for folder in (one, other)]
        first, second = ([config.get(key) for key in _DECIDING] for config in configurations)
        return first == second and not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])
    except (OSError, ActError):
        return False


def _deciding(folder: Path) -> set[str]:
    names = {path.name for path in folder.iterdir() if path.name.endswith(_ENDINGS)}
    return {name for name in names if name not in _NO_TOKENS and not name.endswith(".index.json")}

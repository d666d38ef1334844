"""Files of tensors with a JSON header: the format of profiles, channel sets, patches and checkpoints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from act.core.errors import ActError
from act.core.files import written_whole

SCHEMA_KEY, HEADER_KEY = "schema", "header"


def save_tensors(
    path: Path, tensors: dict[str, torch.Tensor], schema: str, header: dict[str, Any], *, force: bool = False
) -> None:
    """Write one safetensors file whose metadata holds the schema (``name/version``) and a JSON header."""
    with written_whole(path, force=force) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={SCHEMA_KEY: schema, HEADER_KEY: json.dumps(header)},
        )


def load_tensors(
    path: Path, schema: str, *, header_only: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors (none with ``header_only``) and the header of a file that :func:`save_tensors` wrote.

    Raises:
        ActError: the file is missing, truncated, not a safetensors file, of another kind or of another schema version.
    """
    kind = schema.partition("/")[0]
    if not path.is_file():
        raise ActError(f"no such file: {path}; expected an {kind} file")
    if not _begins_as_safetensors(path):
        raise ActError(f"{path} is not a safetensors file; expected an {kind} file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get(SCHEMA_KEY, "an unknown schema")
            if found != schema:
                same_kind = found.partition("/")[0] == kind
                advice = "make it again with this version" if same_kind else f"give an {kind} file"
                raise ActError(f"{path} holds {found}, expected {schema}; {advice}")
            names = [] if header_only else file.keys()
            return {name: file.get_tensor(name) for name in names}, json.loads(metadata[HEADER_KEY])
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ActError(f"{path} is truncated or damaged ({error}); make it again") from error


def _begins_as_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) < 9 or start[8:] == b"{"  # a file this short is reported as damaged


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn errors raised while a file's header and tensors are used into an :class:`ActError`."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ActError(f"{path} is damaged: header and tensors do not fit ({error!r:.200}); make it again") from error

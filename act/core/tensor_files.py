"""Files of tensors with a JSON header: the format of profiles, channel sets, patches and checkpoints.

A hash of header and tensors is stored beside them and checked on reading; files of earlier versions have none. What a
hash cannot tell, that the content makes sense, is for the reader of each kind to check.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from act.core.errors import ActError, Missing, brief, option
from act.core.files import written_whole
from act.core.near import near_path
from act.core.plain import parsed_json

SCHEMA_KEY, HEADER_KEY, HASH_KEY = "schema", "header", "xxh3"


class _Kind(NamedTuple):
    """What people call a kind of file, which command makes one, and what reads it in Python."""

    called: str
    made: str
    reader: str


_KINDS = {
    "act-profile": _Kind("a profile", "act-profile pair, attribute or run", "act.load"),
    "act-attribution": _Kind("an attribution", "act-profile attribute", "act.load"),
    "act-channels": _Kind("a channel set", "act-profile rank", "act.ChannelSet.load"),
    "act-patch": _Kind("a patch", "act-profile transfer --output patch.safetensors", "act.Patch.load"),
}
_RANKED = ("act-profile", "act-attribution")
_LOOKED_AT = 1000  # files of a folder
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def save_tensors(
    path: Path, tensors: dict[str, torch.Tensor], schema: str, header: dict[str, Any], *, force: bool = False
) -> None:
    """Write one safetensors file whose metadata holds the schema (``name/version``), a JSON header and hashes."""
    with written_whole(path, force=force) as temporary:
        write_tensors(temporary, tensors, schema, header)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], schema: str, header: dict[str, Any]) -> None:
    """As :func:`save_tensors`, in place: for a path that is about to be renamed."""
    written = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header)
    hashes = f"{_hash_of_text(schema, text)} {_hash_of_tensors(written)}"
    save_file(written, path, metadata={SCHEMA_KEY: schema, HEADER_KEY: text, HASH_KEY: hashes})


def load_tensors(
    path: Path, schema: str, *, header_only: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors (none with ``header_only``) and the header of a file that :func:`save_tensors` wrote.

    Raises:
        ActError: the file is missing, truncated, not a safetensors file, of another kind or of another schema version,
            or not as it was written.
    """
    kind = schema.partition("/")[0]
    require_tensor_file(path, _called(kind), [kind])
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get(SCHEMA_KEY, "an unknown schema")
            if found != schema:
                if (other := found.partition("/")[0]) in _KINDS and kind in _KINDS and other != kind:
                    raise ActError(_of_another_kind(path, other, kind))
                if metadata.keys().isdisjoint((SCHEMA_KEY, HEADER_KEY, HASH_KEY)):
                    raise ActError(
                        f"{path} is no file of act-profile, but tensors of something else, as weights are; give "
                        f"{_called(kind)}"
                    )
                advice = "make it again with this version" if other == kind else f"give {_called(kind)}"
                raise ActError(f"{path} holds {found:.60}, expected {schema}; {advice}")
            if HEADER_KEY not in metadata or not metadata.keys() <= {SCHEMA_KEY, HEADER_KEY, HASH_KEY}:
                raise ValueError("its metadata is not of this kind")
            header = parsed_json(metadata[HEADER_KEY])
            hashes = metadata[HASH_KEY].split(" ") if HASH_KEY in metadata else None
            names = [] if header_only else file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            if hashes is not None:
                now = [_hash_of_text(schema, metadata[HEADER_KEY])]
                now += hashes[1:] if header_only else [_hash_of_tensors(tensors)]
                if hashes != now:
                    raise ValueError("it is not as it was written: its hash differs")
            return tensors, header
    except ActError:
        raise
    except OSError as error:
        raise ActError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise ActError(f"{path} is truncated or damaged ({brief(error)}); make it again") from error


def require_tensor_file(path: Path, expected: str, kinds: Sequence[str]) -> None:
    """Raise :class:`ActError` unless ``path`` is a safetensors file; of a folder, files of these kinds are named.

    Args:
        expected: what was expected there, in words.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        if not os.path.isdir(path):
            raise Missing(f"no such file: {path}; expected {expected}", near_path(str(path)))
        kinds = _RANKED if "act-profile" in kinds else kinds
        first, *others = [str(path / each.name) for each in files_in(path, kinds)] or [""]
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        one_of = (
            f" one of those in it: {', '.join([first, *others[:2]])}{more}" if others else f" the one in it: {first}"
        )
        raise ActError(f"{path} is a folder; expected {expected}" + (f"; give{one_of}" if first else ""))
    try:
        if _begins_as_safetensors(path):
            return
    except OSError as error:
        raise ActError(f"cannot read {path}: {error.strerror or error}") from error
    raise ActError(f"{path} is not a safetensors file; expected {expected}")


def files_in(folder: Path, kinds: Collection[str]) -> list[Path]:
    """The files of some kinds in a folder, by name; of very many files, the first are looked at."""
    there = sorted(each for each in folder.iterdir() if each.suffix == ".safetensors")
    return [each for each in there[:_LOOKED_AT] if kind_of(each) in kinds]


def _called(kind: str) -> str:
    return _KINDS[kind].called if kind in _KINDS else f"an {kind} file"


def _of_another_kind(path: Path, found: str, expected: str) -> str:
    """What is wrong with a file of one of the :data:`_KINDS`, and how to come to what was expected."""
    one, other = _KINDS[found], _KINDS[expected]
    if expected == "act-channels" and found in _RANKED:
        typed = f"make one of it: act-profile rank {shlex.quote(str(path))} --output channels.safetensors"
        return f"{path} is {one.called}, expected {other.called}; {option(typed, 'make one of it with act.rank')}"
    typed = f"{other.made} makes one"
    return f"{path} is {one.called}, expected {other.called}; {option(typed, f'{one.reader} reads this one')}"


def kind_of(path: Path) -> str | None:
    """The kind of a file that :func:`save_tensors` wrote, such as ``act-profile``; None for any other or none."""
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get(SCHEMA_KEY, "")).partition("/")[0] or None
    except (OSError, SafetensorError, ValueError):
        return None


def _hash_of_text(schema: str, header: str) -> str:
    return xxhash.xxh3_128_hexdigest(f"{schema}\n{header}".encode())


def _hash_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, types, shapes and bytes, at the speed of memory."""
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\n{tensor.dtype}{list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    except ValueError as error:
        raise ActError(f"{path} is damaged: {error!s:.200}; make it again") from error
    except (AttributeError, LookupError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ActError(f"{path} is damaged: header and tensors do not fit ({error!r:.200}); make it again") from error


def taken(
    tensors: Mapping[str, torch.Tensor],
    name: str,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
) -> torch.Tensor:
    """A tensor of a file, of one of the ``dtypes`` and of this ``shape``, in which None stands for any size.

    Raises:
        ValueError: it is missing, or of another type or shape.
    """
    if name not in tensors:
        raise ValueError(f"it has no tensor {name:.60}")
    found = tensors[name]
    sizes = zip(found.shape, shape, strict=False)
    fits = len(found.shape) == len(shape) and all(wanted in (None, size) for size, wanted in sizes)
    if found.dtype not in dtypes or not fits:
        wanted = f"{[('any' if size is None else size) for size in shape]} of {' or '.join(map(str, dtypes))}"
        raise ValueError(f"its tensor {name:.60} is {list(found.shape)} of {found.dtype}, expected {wanted}")
    return found


def indices(tensors: Mapping[str, torch.Tensor], name: str, end: int | None = None) -> torch.Tensor:
    """An int64 vector of a file that holds sorted, distinct numbers from 0 to below ``end``.

    Raises:
        ValueError: it does not.
    """
    found = taken(tensors, name, (torch.int64,), (None,))
    if (found < 0).any() or (found.diff() <= 0).any() or (end is not None and (found[-1:] >= end).any()):
        below = "" if end is None else f" below {end}"
        raise ValueError(f"its tensor {name:.60} does not hold sorted, distinct numbers{below}")
    return found

"""A model folder's weights as a mapping of tensors that stay on disk."""

from __future__ import annotations

import contextlib
import copy
import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from act.core.errors import ActError
from act.models.channels import ChannelSpace

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class StoredModel(Mapping[str, torch.Tensor]):
    """The safetensors shards of a model folder. ``stored[name]`` maps one tensor; only the pages used are read.

    Attributes:
        folder: the model folder.
        shards: file name of a shard -> names of its tensors.
        config: the model's ``config.json``.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the headers of all shards.

        Raises:
            RenamedWeights: there are weights, but no safetensors.
            ActError: no weights; a configuration, index or shard that is missing or damaged; a quantised model, whose
                stored values are not the parameters.
        """
        self.folder = Path(folder)
        self._arriving: dict[str, Future[None]] = {}
        if (self.folder / "adapter_config.json").is_file() and not (self.folder / "config.json").is_file():
            raise ActError(f"{folder} is an adapter, not a model; merge it into its model and give the result")
        if not (self.folder / "config.json").is_file():
            raise ActError(f"no such model: {folder}; expected a folder in Hugging Face format")
        self.config = _mapping(self.folder / "config.json")
        if "quantization_config" in self.config:
            raise ActError(
                f"{folder} is quantised, which can be profiled but not transferred; "
                "give the unquantised checkpoint, transfer, and quantise the result"
            )
        self._where: dict[str, tuple[Path, torch.dtype, list[int], int, int]] = {}
        self.shards: dict[str, list[str]] = {}
        for file in self._files():
            self.shards[file] = []
            for name, place in _header(self.folder / file).items():
                self._where[name] = place
                self.shards[file].append(name)

    def _files(self) -> list[str]:
        index = self.folder / INDEX
        if index.is_file():
            places = _mapping(index).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
                raise ActError(f"{index} has no weight_map from tensors to files; download or save the model again")
            return sorted(set(places.values()))
        if (self.folder / SINGLE).is_file():
            return [SINGLE]
        other = next((path.name for path in sorted(self.folder.glob("*.bin"))), None)
        if other:
            raise RenamedWeights(
                f"{self.folder} holds {other} and no safetensors; "
                "to work on its files, load the model and save it again with save_pretrained"
            )
        raise ActError(f"{self.folder} holds no weights; expected .safetensors files")

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, name: str) -> torch.Tensor:
        path, dtype, shape, start, size = self._where[name]
        if not size:
            return torch.empty(shape, dtype=dtype)
        skip = start % mmap.ALLOCATIONGRANULARITY
        writable = path.name in self._arriving
        if writable:
            self._arriving[path.name].result()
        # A private mapping gives torch a writable buffer while the file stays unchanged.
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_COPY
        with path.open("r+b" if writable else "rb") as file:
            view = mmap.mmap(file.fileno(), size + skip, access=access, offset=start - skip)
        view.madvise(mmap.MADV_RANDOM)
        return torch.frombuffer(view, dtype=dtype, count=size // dtype.itemsize, offset=skip).view(shape)

    def prefetch(self, name: str, rows: torch.Tensor | None = None) -> None:
        """Tell the system to begin reading a tensor, or some rows (sorted) of its first dimension."""
        path, _, shape, start, size = self._where[name]
        if rows is None:
            spans = [(start, size)]
        else:
            width = size // shape[0]
            first = torch.cat([rows[:1], rows[1:][rows.diff() > 1]])  # runs of neighbours are one span
            last = torch.cat([rows[:-1][rows.diff() > 1], rows[-1:]])
            spans = [
                (start + low * width, (high - low + 1) * width)
                for low, high in zip(first.tolist(), last.tolist(), strict=True)
            ]
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        with path.open("rb") as file:
            for offset, length in spans:
                os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def shard_of(self, name: str) -> str:
        """File name of the shard that holds a tensor."""
        return self._where[name][0].name

    def parameters(self, space: ChannelSpace) -> Parameters:
        """The parameters of a model with this channel space, under the names they have in the model.

        Raises:
            RenamedWeights: the checkpoint stores them under other names, or stores a tied tensor twice.
        """
        names = parameter_names(space)
        missing = [name for name in names if name not in self._where]
        twice = [
            site.name
            for site in space
            if site.tied_to and f"{site.name}.weight" in self._where and f"{site.name}.weight" not in names
        ]
        if missing or twice:
            name = (missing or twice)[0]
            raise RenamedWeights(
                f"{self.folder} {'lacks' if missing else 'stores twice'} {name}: "
                "names on disk differ from those of the parameters"
            )
        return Parameters(self, names)


class Parameters(Mapping[str, torch.Tensor]):
    """Some tensors of a checkpoint, still on disk."""

    def __init__(self, stored: StoredModel, names: Iterable[str]) -> None:
        self.stored = stored
        self._names = dict.fromkeys(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self.stored[name]

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:  # type: ignore[override]
        """Each name with its tensor, while the system reads the next one ahead."""
        names = list(self._names)
        for name, following in zip_longest(names, names[1:]):
            if following:
                self.stored.prefetch(following)
            yield name, self.stored[name]


class RenamedWeights(ActError):
    """The names of a checkpoint's tensors are not those of the model's parameters; only loading the model maps them."""


def parameter_names(space: ChannelSpace) -> list[str]:
    """The names of all parameters of a model with this channel space."""
    covered = {part.name for site in space for part in site.parameters}
    return sorted(covered | set(space.uncovered))


@contextlib.contextmanager
def copied(source: StoredModel, folder: Path, changed: Iterable[str]) -> Iterator[StoredModel]:
    """Fill ``folder`` with the files of a model: shards that hold ``changed`` tensors copied, the others hard-linked.

    Tokenizer, config, generation config, chat template and index are copied too; a README is left out. A shard
    that cannot be linked (another file system) is copied.

    Yields:
        The copy, whose tensors can be written to (those of ``changed`` only). Shards are copied in the background, in
        the order of ``changed``; reading a tensor waits for its shard. All are complete when the block ends.
    """
    touched = dict.fromkeys(source.shard_of(name) for name in changed)
    copies = copy.copy(source)
    copies.folder = folder
    copies._where = {name: (folder / place[0].name, *place[1:]) for name, place in source._where.items()}
    for path in sorted(source.folder.iterdir()):
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf")
        if path.is_dir() or path.name.lower() == "readme.md" or (weights and path.name not in source.shards):
            continue
        if path.name not in source.shards:
            _copy(path, folder)
        elif path.name not in touched:
            try:
                os.link(path.resolve(), folder / path.name)
            except OSError:
                touched[path.name] = None
    with ThreadPoolExecutor(1) as pool:
        copies._arriving = {name: pool.submit(_copy, source.folder / name, folder) for name in touched}
        try:
            yield copies
            for arriving in copies._arriving.values():
                arriving.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _copy(path: Path, folder: Path) -> None:
    shutil.copyfile(path, folder / path.name)  # by the kernel
    (folder / path.name).chmod(0o644)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ActError(f"{path} is not JSON ({error}); download or save the model again") from error
    if not isinstance(found, dict):
        raise ActError(f"{path} holds {type(found).__name__}, expected a JSON object; download or save the model again")
    return found


def _header(path: Path) -> dict[str, tuple[Path, torch.dtype, list[int], int, int]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            end = os.fstat(file.fileno()).st_size
            if not 2 <= length <= end - 8:
                raise ValueError("its header does not fit")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        places = {}
        for name, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            if stop > end:
                raise ValueError(f"{name} extends past the end of the file")
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:
                raise ActError(
                    f"{name} in {path} is {entry['dtype']}, which cannot be transferred; give an unquantised checkpoint"
                )
            places[name] = (path, dtype, entry["shape"], start, stop - start)
        return places
    except ActError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ActError(
            f"{path} is missing, truncated or damaged ({error}); download or save the model again"
        ) from error

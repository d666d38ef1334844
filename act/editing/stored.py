"""A model folder's weights as a mapping of tensors that stay on disk."""

from __future__ import annotations

import math
import mmap
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import torch

from act.core.errors import ActError, brief
from act.core.plain import parsed_json
from act.editing.weight_files import RenamedWeights, read_mapping, weight_files
from act.models.channels import ChannelSpace
from act.models.fingerprint import Diagonal, digest
from act_kernels.ops import FLOAT_DTYPES

_LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
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


class Place(NamedTuple):
    """Where a tensor lies: the shard, relative to the folder, and the first of its bytes there."""

    shard: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class StoredModel(Mapping[str, torch.Tensor]):
    """The safetensors shards of a model folder. ``stored[name]`` maps one tensor; only the pages used are read.

    Attributes:
        folder: the model folder.
        shards: name of a shard, relative to the folder -> names of its tensors.
        index: name of the index, if there is one.
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
        self.config = read_mapping(self.folder / "config.json")
        if "quantization_config" in self.config:
            raise ActError(
                f"{folder} is quantised, which can be profiled but not transferred; "
                "give the unquantised checkpoint, transfer, and quantise the result"
            )
        files, self.index = weight_files(self.folder, self.config)
        self._where: dict[str, Place] = {}
        self.shards: dict[str, list[str]] = {}
        for file in files:
            held = _header(self.folder, file)
            self.shards[file] = list(held)
            for name in held.keys() & self._where.keys():  # stored twice: transformers takes the last
                earlier = self._where[name]
                self._where[f"{name}@{earlier.shard}"] = earlier
            self._where |= held

    def arriving_in(self, folder: Path, shards: Mapping[str, Future[None]]) -> StoredModel:
        """The copy of this model in another folder: reading a tensor of ``shards`` waits for its shard to arrive.

        What is written to such a tensor is written to the file.
        """
        copies = StoredModel.__new__(StoredModel)
        vars(copies).update(vars(self), folder=folder, _arriving=dict(shards))
        return copies

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self._where[name]
        if not place.size:
            return torch.empty(place.shape, dtype=place.dtype)
        skip = place.start % mmap.ALLOCATIONGRANULARITY
        writable = place.shard in self._arriving
        if writable:
            self._arriving[place.shard].result()
        # A private mapping gives torch a writable buffer while the file stays unchanged.
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_COPY
        with (self.folder / place.shard).open("r+b" if writable else "rb") as file:
            view = mmap.mmap(file.fileno(), place.size + skip, access=access, offset=place.start - skip)
        view.madvise(mmap.MADV_RANDOM)
        flat = torch.frombuffer(view, dtype=place.dtype, count=math.prod(place.shape), offset=skip)
        return flat.view(place.shape)

    def prefetch(self, name: str, rows: torch.Tensor | None = None) -> None:
        """Tell the system to begin reading a tensor, or some rows (sorted) of its first dimension."""
        place = self._where[name]
        if rows is None:
            spans = [(place.start, place.size)]
        else:
            width = place.size // place.shape[0]
            first = torch.cat([rows[:1], rows[1:][rows.diff() > 1]])  # runs of neighbours are one span
            last = torch.cat([rows[:-1][rows.diff() > 1], rows[-1:]])
            spans = [
                (place.start + low * width, (high - low + 1) * width)
                for low, high in zip(first.tolist(), last.tolist(), strict=True)
            ]
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        with (self.folder / place.shard).open("rb") as file:
            for offset, length in spans:
                os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def shard_of(self, name: str) -> str:
        """The shard that holds a tensor."""
        return self._where[name].shard

    def dtype_of(self, name: str) -> torch.dtype:
        """The type in which a tensor is stored."""
        return self._where[name].dtype

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._where[name].shape

    @cached_property
    def loaded_dtype(self) -> torch.dtype | None:
        """The type in which transformers loads the model unless told otherwise; None if no tensor is of floats."""
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        found = getattr(torch, named.removeprefix("torch."), None) if isinstance(named, str) else None
        if isinstance(found, torch.dtype):
            return found
        return next((place.dtype for place in self._where.values() if place.dtype.is_floating_point), None)

    def parameters(self, space: ChannelSpace) -> Parameters:
        """The parameters of a model with this channel space, under the names they have in the model.

        Raises:
            RenamedWeights: the checkpoint stores them under other names.
            ActError: tensors that the space shares between two sites are stored with different values.
        """
        known = _names_of(space)
        places = {}
        for name, others in known.items():
            stored = [one for one in (name, *others) if one in self._where]
            if not stored:
                raise RenamedWeights(f"{self.folder} lacks {name}: names on disk differ from those of the parameters")
            places[name] = stored[0]
            if apart := [one for one in stored[1:] if not self.hold_the_same(stored[0], one)]:
                raise ActError(
                    f"{self.folder} stores {stored[0]} and {apart[0]} with different values, so the model does not tie "
                    "them, but the channels were chosen for models that do; profile this model, and rank again"
                )
        return Parameters(self, places)

    def named(self, names: Iterable[str]) -> Parameters:
        """The parameters of these names.

        One that is stored under the other name of a tied matrix is found if there is only one such name.

        Raises:
            ActError: the checkpoint lacks one of them.
        """
        places = {name: name for name in names if name in self._where}
        missing = [name for name in names if name not in self._where]
        others = [name for name in self._where if name not in places and len(self.shape_of(name)) > 1]
        if missing and (len(missing) > 1 or len(others) != 1):
            raise ActError(f"the patch is for another model: {self.folder} has no {missing[0]}")
        return Parameters(self, {**places, **dict(zip(missing, others, strict=False))})

    def hold_the_same(self, one: str, other: str) -> bool:
        """Whether two tensors have the same values once they are loaded, so that transformers ties them."""
        if self._where[one].shape != self._where[other].shape:
            return False
        starts = (self.loaded(name, rows=1) for name in (one, other))  # most that differ do so there
        return torch.equal(*starts) and torch.equal(self.loaded(one), self.loaded(other))

    def loaded(self, name: str, rows: int | None = None) -> torch.Tensor:
        """A tensor, or its first rows, with the values that it has once transformers has loaded it."""
        x = self[name] if rows is None else self[name][:rows]
        return x.to(self.loaded_dtype) if x.is_floating_point() else x


class Parameters(Mapping[str, torch.Tensor]):
    """The parameters of a model, still on disk.

    Attributes:
        stored: the checkpoint.
        places: the name of a parameter -> that of the tensor that holds it.
    """

    def __init__(self, stored: StoredModel, places: Mapping[str, str]) -> None:
        self.stored = stored
        self.places = dict(places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.stored[self.places[name]]

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:  # type: ignore[override]
        """Each name with its tensor, while the system reads the next one ahead."""
        names = list(self.places)
        for name, following in zip_longest(names, names[1:]):
            if following:
                self.stored.prefetch(self.places[following])
            yield name, self[name]

    def copies_of(self, name: str) -> list[str]:
        """The other tensors that hold a parameter: a checkpoint may store what is tied under each of its names.

        A tensor that is no parameter, and holds the values of a matrix that is one, is such a copy, whatever its name.
        """
        held = self.places[name]
        shape = self.stored.shape_of(held)

        def may_be(other: str) -> bool:
            both_biases = other.rpartition(".")[2] == name.rpartition(".")[2] == "bias"
            return len(shape) > 1 or both_biases or other.startswith(f"{held}@")

        return [one for one in self._others.get(shape, ()) if may_be(one) and self.stored.hold_the_same(held, one)]

    @cached_property
    def _others(self) -> dict[tuple[int, ...], list[str]]:
        """The stored tensors that are no parameter, by their shape."""
        taken, found = {*self.places.values()}, defaultdict(list)
        for name in self.stored:
            if name not in taken:
                found[self.stored.shape_of(name)].append(name)
        return found

    def rounded(self) -> list[str]:
        """The parameters whose values change when transformers loads them, in a narrower type than the stored one."""
        dtype = self.stored.loaded_dtype
        types = {name: self.stored.dtype_of(held) for name, held in self.places.items()}
        return [
            name
            for name, found in types.items()
            if dtype and found in FLOAT_DTYPES and torch.promote_types(found, dtype) != dtype
        ]

    def loaded(self, name: str) -> torch.Tensor:
        """A parameter with the values that it has once transformers has loaded it."""
        return self.stored.loaded(self.places[name])


def fingerprints(weights: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The fingerprint of weights; of a checkpoint whose values are rounded as it is loaded, also the one after that."""
    return digests(weights, {name: Diagonal.of(parameter) for name, parameter in weights.items()})


def digests(weights: Mapping[str, torch.Tensor], diagonals: Mapping[str, Diagonal]) -> tuple[str, ...]:
    """:func:`fingerprints` from the diagonals of all weights."""
    if not isinstance(weights, Parameters) or not (rounded := weights.rounded()):
        return (digest(diagonals),)
    loaded = {name: Diagonal.of(weights.loaded(name)) for name in rounded}
    return digest(diagonals), digest({**diagonals, **loaded})


def parameter_names(space: ChannelSpace) -> list[str]:
    """The names of all parameters of a model with this channel space."""
    covered = {part.name for site in space for part in site.parameters}
    return sorted(covered | set(space.uncovered))


def _names_of(space: ChannelSpace) -> dict[str, list[str]]:
    """The name of every parameter -> the others it goes by, because several sites share it."""
    names: dict[str, list[str]] = {name: [] for name in parameter_names(space)}
    for site in space:
        owner = space.site(site.tied_to) if site.tied_to else site
        for part, leaf in zip(owner.parameters[: 1 if site.tied_to else 2], ("weight", "bias"), strict=False):
            name = f"{site.name}.{leaf}"
            if name not in names and name not in names[part.name]:
                names[part.name].append(name)
    return names


def _header(folder: Path, file: str) -> dict[str, Place]:
    """Where the tensors of a shard lie.

    Raises:
        ActError: the shard is missing, truncated or damaged, or holds values that cannot be transferred.
    """
    path = folder / file
    try:
        with path.open("rb") as shard:
            length = int.from_bytes(shard.read(8), "little")
            end = os.fstat(shard.fileno()).st_size
            if not 2 <= length <= min(end - 8, _LONGEST_HEADER):
                raise ValueError("its header does not fit")
            header = parsed_json(shard.read(length))
        header.pop("__metadata__", None)
        places = {}
        for name, entry in header.items():
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:
                raise ActError(
                    f"{name} in {path} is {entry['dtype']}, which cannot be transferred; give an unquantised checkpoint"
                )
            shape, (start, stop) = entry["shape"], entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
                raise ValueError(f"shape or offsets of {name} are not numbers")
            places[name] = Place(file, dtype, tuple(shape), 8 + length + start)
            if places[name].size != stop - start or 8 + length + stop > end:
                raise ValueError(f"{name} extends past the end of the file, or its size is not that of its shape")
        return places
    except ActError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise ActError(
            f"{path} is missing, truncated or damaged ({reason}); download or save the model again"
        ) from error

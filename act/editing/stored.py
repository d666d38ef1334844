"""A model folder's weights as a mapping of tensors that stay on disk."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property, reduce
from pathlib import Path
from typing import NamedTuple

import torch

from act.core.errors import ActError, brief
from act.core.plain import parsed_json
from act.editing.pieces import Layout, Piece
from act.editing.remembered import FileIdentity, Outdated, Remembered, believed
from act.editing.renaming import Renamed, renamed
from act.editing.weight_files import RenamedWeights, read_mapping, weight_files
from act.models.channels import ChannelSpace
from act.models.fingerprint import Diagonal, digest, sums_rows
from act.models.load_errors import virtual_tokens
from act.models.sites import ParameterSlice
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
        found: the status of each shard's file before anything was read from it.
        remembered: what is known of its values from earlier runs.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the headers of all shards.

        Raises:
            RenamedWeights: there are weights, but no safetensors.
            ActError: no weights; a configuration, index or shard that is missing or damaged; a quantised model, whose
                stored values are not the parameters.
        """
        self.folder = self._origin = Path(folder)
        self._arriving: dict[str, Future[None]] = {}
        if (self.folder / "adapter_config.json").is_file() and not (self.folder / "config.json").is_file():
            merge = "it is an adapter, not a model; merge it as it is loaded (--merge)"
            raise ActError(f"{folder} cannot be edited: {virtual_tokens(self.folder) or merge}")
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
        self.found: dict[str, os.stat_result] = {}
        since, identities = time.time_ns(), {}
        for file in files:
            held, identities[file], self.found[file] = _header(self.folder, file)
            self.shards[file] = list(held)
            for name in held.keys() & self._where.keys():  # stored twice: transformers takes the last
                earlier = self._where[name]
                self._where[f"{name}@{earlier.shard}"] = earlier
            self._where |= held
        self.remembered = Remembered(self.folder, identities, since)

    def arriving_in(self, folder: Path, shards: Mapping[str, Future[None]]) -> StoredModel:
        """The copy of this model in another folder: reading a tensor of ``shards`` waits for its shard to arrive.

        What is written to such a tensor is written to the file; the others are read where they came from.
        """
        copies = StoredModel.__new__(StoredModel)
        vars(copies).update(vars(self), folder=folder, _arriving=dict(shards))
        return copies

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

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
        folder = self.folder if writable else self._origin
        with (folder / place.shard).open("r+b" if writable else "rb") as file:
            view = mmap.mmap(file.fileno(), place.size + skip, access=access, offset=place.start - skip)
        view.madvise(mmap.MADV_RANDOM)
        flat = torch.frombuffer(view, dtype=place.dtype, count=math.prod(place.shape), offset=skip)
        return flat.view(place.shape)

    def prefetch(self, name: str, spans: Iterable[tuple[int, int]] | None = None) -> None:
        """Tell the system to begin reading a tensor, or some spans ``(first, stop)`` of its values."""
        place = self._where[name]
        if place.shard in self._arriving or not hasattr(os, "posix_fadvise"):  # just written, or macOS
            return
        width = place.dtype.itemsize
        with (self._origin / place.shard).open("rb") as file:
            for first, stop in [(0, place.size // width)] if spans is None else spans:
                start, length = place.start + first * width, (stop - first) * width
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)

    def identities(self) -> dict[str, FileIdentity]:
        """The identities that the shards have now, where this model was read from."""
        return {file: _header(self._origin, file)[1] for file in self.shards}

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
        known = {name: (name, *others) for name, others in _names_of(space).items()}
        own = all(any(one in self._where for one in names) for names in known.values())
        layouts = None if own and not self._has_more(known) else self._renamed(known)
        places = {}
        for name, names in known.items():
            held = self._under_own_names(names) if layouts is None else self._under_other_names(names, layouts)
            places[name] = held[0]
            first, *others = (layout.pieces[0].stored for layout in held)
            if apart := [one for one in others if not self.hold_the_same(first, one)]:
                raise ActError(
                    f"{self.folder} stores {first} and {apart[0]} with different values, so the model does not tie "
                    "them, but the channels were chosen for models that do; profile this model, and rank again"
                )
        if layouts:
            beside = layouts.parameters.difference(*known.values())
            places |= {name: self._under_other_names([name], layouts)[0] for name in beside}
        return Parameters(self, places)

    def _has_more(self, known: Mapping[str, Sequence[str]]) -> bool:
        """Whether it may be a model of several parts, of which the parameters of these names are only one."""
        several = any(name.endswith("_config") and isinstance(part, dict) for name, part in self.config.items())
        return several and bool(self._where.keys() - {one for names in known.values() for one in names})

    def _under_own_names(self, names: Iterable[str]) -> list[Layout]:
        """The tensors of these names."""
        return [Layout.whole(name, self.shape_of(name)) for name in names if name in self._where]

    def _under_other_names(self, names: Sequence[str], renamed: Renamed) -> list[Layout]:
        """Where the parameters of these names lie.

        Raises:
            RenamedWeights: it is known of none of them.
        """
        layouts, unknown, _ = renamed
        if held := [layouts[name] for name in names if name in layouts]:
            return held
        why = next((f" ({unknown[name]})" for name in names if name in unknown), "")
        raise RenamedWeights(f"{self.folder} lacks {names[0]}: names on disk differ from those of the parameters{why}")

    def named(self, names: Iterable[str]) -> Parameters:
        """The parameters of these names.

        One that is stored under the other name of a tied matrix is found if there is only one such name.

        Raises:
            RenamedWeights: the checkpoint stores them otherwise, and it is not known how.
            ActError: the checkpoint lacks one of them.
        """
        names = list(names)
        places = {name: Layout.whole(name, self.shape_of(name)) for name in names if name in self._where}
        for renaming in (False, True):
            if renaming:
                layouts = self._renamed(names).layouts
                places = {name: layouts[name] for name in names if name in layouts}
            taken = {piece.stored for layout in places.values() for piece in layout.pieces}
            missing = [name for name in names if name not in places]
            others = [name for name in self._where if name not in taken and len(self.shape_of(name)) > 1]
            if len(missing) == len(others) == 1:
                places[missing[0]] = Layout.whole(others[0], self.shape_of(others[0]))
            elif missing:
                continue
            return Parameters(self, places)
        raise ActError(f"the patch is for another model: {self.folder} has no {missing[0]}")

    def _renamed(self, names: Iterable[str]) -> Renamed:
        """Where the model that has parameters of these names finds them."""
        stored = {name: self.shape_of(name) for held in self.shards.values() for name in held}
        return renamed(self.folder, stored, {*names})

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
        places: the name of a parameter -> which stored tensors hold it.
    """

    def __init__(self, stored: StoredModel, places: Mapping[str, Layout]) -> None:
        self.stored = stored
        self.places = dict(places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __getitem__(self, name: str) -> torch.Tensor:
        """The whole of a parameter: a view of the file, or a copy in memory if several tensors hold it."""
        layout = self.places[name]
        if len(layout.pieces) == 1:
            return layout.pieces[0].of(self.stored[layout.pieces[0].stored])
        dtypes = {self.stored.dtype_of(piece.stored) for piece in layout.pieces}
        whole = torch.empty(layout.shape, dtype=reduce(torch.promote_types, dtypes))
        for piece in layout.pieces:
            held = tuple(slice(low, low + size) for low, size in zip(piece.start, piece.shape, strict=True))
            whole[held] = piece.of(self.stored[piece.stored])
        return whole

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""
        return self.places[name].shape

    def dtype_of(self, part: ParameterSlice) -> torch.dtype:
        """The type in which a part of a parameter is stored."""
        return self.stored.dtype_of(self._holding(part)[0].stored)

    def matrix(self, part: ParameterSlice, stored: str | None = None) -> torch.Tensor:
        """A part of a parameter as ``[R, W]``, channels first: a view of its file.

        Args:
            part: the part.
            stored: read it from this copy of the tensor that holds it (:meth:`tensors_of`).

        Raises:
            RenamedWeights: it lies in several tensors.
        """
        piece, local = self._holding(part)
        return local.part_of(piece.of(self.stored[stored or piece.stored]))

    def tensors_of(self, part: ParameterSlice) -> list[str]:
        """The tensor that holds a part of a parameter, and all others that hold the same (:meth:`copies_of`)."""
        held = self._holding(part)[0].stored
        return [held, *self.copies_of(part.key, held)]

    def prefetch(self, part: ParameterSlice, rows: torch.Tensor | None = None) -> None:
        """Tell the system to begin reading a part of a parameter, or some of its rows (sorted), if these lie apart."""
        piece, local = self._holding(part)
        shape = self.stored.shape_of(piece.stored)
        view = local.part_of(piece.of(torch.empty(shape, dtype=self.stored.dtype_of(piece.stored), device="meta")))
        runs = [(0, len(view) - 1)]
        if rows is not None and view.stride(0) >= view[0].numel() and len(rows):
            first = torch.cat([rows[:1], rows[1:][rows.diff() > 1]])  # runs of neighbours are one span
            last = torch.cat([rows[:-1][rows.diff() > 1], rows[-1:]])
            runs = [*zip(first.tolist(), last.tolist(), strict=True)]
        start, step = int(view.storage_offset()), view.stride(0)
        across = sum((size - 1) * stride for size, stride in zip(view.shape[1:], view.stride()[1:], strict=True))
        spans = [(start + low * step, start + high * step + across + 1) for low, high in runs]
        self.stored.prefetch(piece.stored, spans)

    def _holding(self, part: ParameterSlice) -> tuple[Piece, ParameterSlice]:
        if found := self.places[part.key].holding(part):
            return found
        raise RenamedWeights(
            f"{self.stored.folder} stores {part.name} in parts of several tensors, of which none holds the channels"
        )

    def copies_of(self, name: str, held: str) -> list[str]:
        """The other tensors that hold what the tensor ``held`` of a parameter does, as where ties are stored twice.

        A tensor that is no parameter, and holds the values of a matrix that is one, is such a copy, whatever its name.
        """
        shape = self.stored.shape_of(held)

        def may_be(other: str) -> bool:
            both_biases = other.rpartition(".")[2] == name.rpartition(".")[2] == "bias"
            return len(shape) > 1 or both_biases or other.startswith(f"{held}@")

        found = self._others.get((shape, self._beginning(held)), ()) if shape in self._shapes_of_others else ()
        return [one for one in found if may_be(one) and self.stored.hold_the_same(held, one)]

    @cached_property
    def _others(self) -> dict[tuple[tuple[int, ...], bytes], list[str]]:
        """The stored tensors that are no parameter, by their shape and first row."""
        taken = {piece.stored for layout in self.places.values() for piece in layout.pieces}
        found = defaultdict(list)
        for name in self.stored:
            if name not in taken:
                found[self.stored.shape_of(name), self._beginning(name)].append(name)
        return found

    @cached_property
    def _shapes_of_others(self) -> set[tuple[int, ...]]:
        return {shape for shape, _ in self._others}

    def _beginning(self, name: str) -> bytes:
        """The bytes of the first values of a tensor once it is loaded; most tensors that differ do so there."""
        start = self.stored.loaded(name, rows=1 if self.stored.shape_of(name) else None).flatten()[:64]
        return start.contiguous().view(torch.uint8).numpy().tobytes()

    def diagonals(
        self, names: Iterable[str] | None = None, *, loaded: bool = False, anew: Collection[str] = ()
    ) -> dict[str, Diagonal]:
        """The diagonals of parameters: from earlier runs, else read while the system reads the next piece ahead.

        Args:
            names: which; by default all.
            loaded: with the values that they have once transformers has loaded them.
            anew: those that are read, whatever is known of them.

        Raises:
            Outdated: what an earlier run has kept is not what is read.
        """
        dtype = self.stored.loaded_dtype if loaded else None
        names = list(self.places if names is None else names)
        known = {name: self.stored.remembered.earlier(self.places[name], dtype) for name in names if name not in anew}
        found = {name: diagonal for name, diagonal in known.items() if diagonal is not None}
        names = [name for name in names if name not in found]
        pieces = [piece for name in names for piece in self.places[name].pieces]
        following = iter([*pieces[1:], None])

        def read(piece: Piece) -> torch.Tensor:
            if after := next(following):
                self.stored.prefetch(after.stored)
            return piece.of(self.stored.loaded(piece.stored) if loaded else self.stored[piece.stored])

        for name in names:
            layout = self.places[name]
            if len(layout.pieces) == 1:
                found[name] = Diagonal.of(read(layout.pieces[0]))
            else:
                found[name] = Diagonal.of_pieces(layout.shape, ((piece.start, read(piece)) for piece in layout.pieces))
            self.stored.remembered.add(layout, self._shards_of(layout), found[name], dtype)
        return found

    def unsummed(self, parts: Iterable[ParameterSlice]) -> set[str]:
        """The parameters of which parts are columns, whose values no diagonal from an earlier run can be held to."""
        return {part.key for part in parts if not sums_rows(part, len(self.shape_of(part.key)))}

    def knows(self, part: ParameterSlice) -> bool:
        """Whether an earlier run has kept the diagonal of the parameter that a part is of."""
        return self.stored.remembered.earlier(self.places[part.key]) is not None

    def require(self, part: ParameterSlice, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Raise :class:`Outdated` unless rows of a part have the values that an earlier run has kept a diagonal of."""
        known = self.stored.remembered.earlier(self.places[part.key])
        if known is not None and not known.holds(part, rows, values):
            raise Outdated(self.stored.remembered)

    def remember(self) -> None:
        """Keep for later runs which diagonals were read, of files that are still the same.

        Raises:
            Outdated: they are not, and something that an earlier run has kept of them was used.
        """
        if self.stored.remembered.in_use:
            files = self.stored.identities()
            self.stored.remembered.require_unchanged(files)
            self.stored.remembered.save(files)

    def remember_as(self, diagonals: Mapping[str, Diagonal], folder: Path, output: Path) -> None:
        """Keep for later runs the diagonals of a copy that this process has just written, alone.

        Args:
            folder, output: where it was written, and where it will lie.
        """
        files = {file: _header(folder, file)[1] for file in self.stored.shards}
        files = {file: one._replace(path=os.path.realpath(output / file)) for file, one in files.items()}
        copy = Remembered(output, files, time.time_ns())
        for name, diagonal in diagonals.items():
            layout = self.places[name]
            copy.add(layout, self._shards_of(layout), diagonal)
        copy.save(files, written=_clock_of(folder, max(one.last_write for one in files.values())))

    def _shards_of(self, layout: Layout) -> set[str]:
        return {self.stored.shard_of(piece.stored) for piece in layout.pieces}

    def rounded(self) -> list[str]:
        """The parameters whose values change when transformers loads them, in a narrower type than the stored one."""
        return [name for name, layout in self.places.items() if any(map(self._is_rounded, layout.pieces))]

    def _is_rounded(self, piece: Piece) -> bool:
        dtype, found = self.stored.loaded_dtype, self.stored.dtype_of(piece.stored)
        return dtype is not None and found in FLOAT_DTYPES and torch.promote_types(found, dtype) != dtype


def diagonals_of(weights: Mapping[str, torch.Tensor], anew: Collection[str] = ()) -> dict[str, Diagonal]:
    """The diagonals of all weights, by name; those of ``anew`` are read, whatever is known from earlier runs."""
    if isinstance(weights, Parameters):
        return weights.diagonals(anew=anew)
    return {name: Diagonal.of(parameter) for name, parameter in weights.items()}


def fingerprints(weights: Mapping[str, torch.Tensor], anew: Collection[str] = ()) -> tuple[str, ...]:
    """The fingerprint of weights; of a checkpoint whose values are rounded as it is loaded, also the one after that."""

    def read() -> tuple[str, ...]:
        found = digests(weights, diagonals_of(weights, anew))
        if isinstance(weights, Parameters):
            weights.remember()
        return found

    return believed(read)


def digests(weights: Mapping[str, torch.Tensor], diagonals: Mapping[str, Diagonal]) -> tuple[str, ...]:
    """:func:`fingerprints` from the diagonals of all weights."""
    if not isinstance(weights, Parameters) or not (rounded := weights.rounded()):
        return (digest(diagonals),)
    return digest(diagonals), digest({**diagonals, **weights.diagonals(rounded, loaded=True)})


def narrowed_digests(weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """The fingerprints that weights have once they are loaded in each narrower type than some of them are of."""
    for dtype in (torch.bfloat16, torch.float16):
        if any(values.is_floating_point() and values.itemsize > dtype.itemsize for values in weights.values()):
            yield digest({name: Diagonal.of(_narrowed(values, dtype)) for name, values in weights.items()})


def _narrowed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype) if x.is_floating_point() and x.itemsize > dtype.itemsize else x


def _clock_of(folder: Path, last: int) -> int:
    """What the clock of a filesystem shows, in ns; after a moment if it does not yet show more than ``last``."""
    for pause in (0, 0.01):
        time.sleep(pause)
        with tempfile.TemporaryFile(dir=folder) as file:
            if (now := os.fstat(file.fileno()).st_mtime_ns) > last:
                break
    return now


def parameter_names(space: ChannelSpace) -> list[str]:
    """The names of all parameters of a model with this channel space."""
    covered = {part.key for site in space for part in site.parameters}
    return sorted(covered | {space.keys.get(name, name) for name in space.uncovered})


def _names_of(space: ChannelSpace) -> dict[str, list[str]]:
    """The name of every parameter -> the others it goes by, because several sites share it."""
    names: dict[str, list[str]] = {name: [] for name in parameter_names(space)}
    for site in space:
        owner = space.site(site.tied_to) if site.tied_to else site
        for part, leaf in zip(owner.parameters[: 1 if site.tied_to else 2], ("weight", "bias"), strict=False):
            name = f"{site.name}.{leaf}"
            if name not in names and name not in names[part.key]:
                names[part.key].append(name)
    return names


def _header(folder: Path, file: str) -> tuple[dict[str, Place], FileIdentity, os.stat_result]:
    """Where the tensors of a shard lie, which file it is, and its status before it was read.

    Raises:
        ActError: the shard is missing, truncated or damaged, or holds values that cannot be transferred.
    """
    path = folder / file
    try:
        with path.open("rb") as shard:
            found = os.fstat(shard.fileno())
            length, end = int.from_bytes(shard.read(8), "little"), found.st_size
            if not 2 <= length <= min(end - 8, _LONGEST_HEADER):
                raise ValueError("its header does not fit")
            text = shard.read(length)
        header = parsed_json(text)
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
        return places, FileIdentity.of(path, found, text), found
    except ActError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise ActError(
            f"{path} is missing, truncated or damaged ({reason}); download or save the model again"
        ) from error

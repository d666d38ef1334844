"""A fingerprint of a model's weights in which every value counts, computed at the speed of memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from act.models.placement import values
from act.models.sites import ParameterSlice
from act.models.views import language_view, original

_VALUES_AT_ONCE = 1 << 16  # converted to float32 at a time, so that the copy stays in a CPU's cache


def fingerprint(model: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """A hash of every parameter: the sum of each row's bits, and one value of every row and column.

    It changes if any value changes, or if rows or columns trade places. Values count as float32, so a checkpoint
    keeps its fingerprint in a wider dtype, on several devices, offloaded, and on disk
    (:class:`act.editing.stored.StoredModel`). Cost: one pass over the weights. Parameters are taken in order of name
    (in :func:`act.models.views.language_view`).
    """
    pairs = values(language_view(original(model))) if isinstance(model, nn.Module) else model.items()
    return digest({name: Diagonal.of(parameter) for name, parameter in pairs})


class Change(Protocol):
    """Rows of a part of a parameter, int64 ``[K]``, sorted, with their values ``[K, W]`` before and after."""

    @property
    def parameter(self) -> ParameterSlice: ...
    @property
    def rows(self) -> torch.Tensor: ...
    @property
    def before(self) -> torch.Tensor: ...
    @property
    def after(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Diagonal:
    """The part of a fingerprint that comes from one parameter, on the CPU.

    Attributes:
        shape: the shape of the parameter.
        values: float32, one for each row and column, along wrapped diagonals; of a vector, all values.
        sums: int32 ``shape[:-1]``: for each row of a matrix, the bits of its values as float32, added modulo 2^32.
            Sums of integers are the same in any order and on any device.
    """

    shape: tuple[int, ...]
    values: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def of(cls, parameter: torch.Tensor) -> Diagonal:
        """The diagonal of a parameter."""
        steps = torch.arange(max(parameter.shape, default=1))
        return cls(tuple(parameter.shape), _read(parameter, steps), _sums(parameter.detach()))

    @classmethod
    def of_pieces(cls, shape: tuple[int, ...], pieces: Iterable[tuple[tuple[int, ...], torch.Tensor]]) -> Diagonal:
        """The diagonal of a parameter that lies in pieces, which are read one after the other.

        Args:
            shape: the shape of the parameter.
            pieces: where the first value of each lies in the parameter, and its values; together they cover it once.
        """
        if 0 in shape:
            return cls.of(torch.empty(shape))
        count = max(shape, default=1)
        values = torch.empty(count)
        sums = torch.zeros(shape[:-1] if len(shape) > 1 else 0, dtype=torch.int32)
        for start, piece in pieces:
            steps = torch.arange(start[0], count, shape[0]) if len(piece) == 1 else torch.arange(count)
            at = [steps % size - low for size, low in zip(shape, start, strict=True)]
            inside = torch.ones_like(steps, dtype=torch.bool)
            for place, size in zip(at, piece.shape, strict=True):
                inside &= (place >= 0) & (place < size)
            values[steps[inside]] = _at(piece, tuple(place[inside].to(piece.device) for place in at)).float().cpu()
            if len(shape) > 1:
                held = tuple(slice(low, low + size) for low, size in zip(start, piece.shape[:-1], strict=False))
                sums[held] += _sums(piece)
        return cls(shape, values, sums)

    def after(self, changes: Iterable[Change]) -> Diagonal:
        """The diagonal after rows of the parameter have changed; no value may lie in two changes."""
        values, sums = self.values.clone(), self.sums.clone()
        for change in changes:
            if len(change.rows):
                self._follow(values, sums, change)
        return replace(self, values=values, sums=sums)

    def holds(self, part: ParameterSlice, rows: torch.Tensor, values: torch.Tensor) -> bool:
        """Whether rows of a part (as in a :class:`Change`) have these values, as far as the diagonal tells.

        It has a sum of each row; of a column it knows only what lies on the diagonals.
        """
        if not len(rows):
            return True
        found = self._shaped(part, values)
        steps, at = self._sampled(part, rows.cpu(), found)
        if not _same_bits(self.values[steps], found[at].float().cpu().flatten()):
            return False
        if len(self.shape) == 1 or not sums_rows(part, len(self.shape)):
            return True
        return torch.equal(self._sums_of(part, self.sums)[self._places(part, rows.cpu())], _sums(found))

    def same(self, other: Diagonal) -> bool:
        """Whether another is equal, to the bit."""
        equal = self.shape == other.shape and torch.equal(self.sums, other.sums)
        return equal and _same_bits(self.values, other.values)

    def _follow(self, values: torch.Tensor, sums: torch.Tensor, change: Change) -> None:
        part, rows = change.parameter, change.rows.cpu()
        old, new = self._shaped(part, change.before), self._shaped(part, change.after)
        steps, at = self._sampled(part, rows, new)
        values[steps] = new[at].float().cpu().flatten()
        if len(self.shape) == 1:
            return
        if sums_rows(part, len(self.shape)):
            self._sums_of(part, sums).index_add_(0, self._places(part, rows), _sums(new) - _sums(old))
        else:  # columns: a part of every row's sum
            held = self._experts_of(part, sums)
            gained = _sums(new.movedim(0, -1)) - _sums(old.movedim(0, -1))
            held.add_(gained.view(held.shape))

    def _axis(self, part: ParameterSlice) -> int:
        return part.dim + _is_packed(part)

    def _shaped(self, part: ParameterSlice, x: torch.Tensor) -> torch.Tensor:
        """Rows ``[K, W]`` of a part, with each of the other dimensions of the parameter if it has several."""
        others = [size for dim, size in enumerate(self.shape) if dim >= _is_packed(part) and dim != self._axis(part)]
        return x.unflatten(1, others) if len(others) > 1 else x

    def _sampled(
        self, part: ParameterSlice, rows: torch.Tensor, found: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Which of the values on the diagonals lie in rows of a part, and where in these, as :meth:`_shaped`."""
        packed, axis = _is_packed(part), self._axis(part)
        first, _, step = part.span or (0, 0, 1)
        start = [0] * len(self.shape)
        if part.expert is not None:
            start[0] = part.expert * (part.rows or 1)
        start[axis] += first
        count = len(self.values)
        steps = torch.arange(start[0], count, self.shape[0]) if packed else torch.arange(count)
        row = steps % self.shape[axis] - start[axis]
        place = torch.searchsorted(rows, row // step).clamp(max=len(rows) - 1)
        inside = (rows[place] == row // step) & (row % step == 0)
        others = [dim for dim in range(int(packed), len(self.shape)) if dim != axis]
        across = [steps % self.shape[dim] - start[dim] for dim in others]
        for at, size in zip(across, found.shape[1:], strict=False):
            inside &= (at >= 0) & (at < size)
        return steps[inside], tuple(at[inside].to(found.device) for at in (place, *across))

    def _experts_of(self, part: ParameterSlice, sums: torch.Tensor) -> torch.Tensor:
        """The sums of the expert that a part belongs to, or all: a view."""
        held = sums[part.expert] if _is_packed(part) else sums
        if part.expert is not None and part.rows is not None:
            held = held.narrow(0, part.expert * part.rows, part.rows)
        return held

    def _sums_of(self, part: ParameterSlice, sums: torch.Tensor) -> torch.Tensor:
        """The sums along the dimension that the rows of a part run along: a view."""
        return self._experts_of(part, sums).movedim(part.dim, 0)

    def _places(self, part: ParameterSlice, rows: torch.Tensor) -> torch.Tensor:
        first, _, step = part.span or (0, 0, 1)
        return first + step * rows


def sums_rows(part: ParameterSlice, dims: int) -> bool:
    """Whether the diagonal of a parameter of so many dimensions sums each row of a part by itself: not columns.

    Of a vector, it has every value.
    """
    return dims == 1 or part.dim + _is_packed(part) < dims - 1


def _is_packed(part: ParameterSlice) -> bool:
    """Whether experts have a dimension of their own."""
    return part.expert is not None and part.rows is None


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))  # NaN equals itself


def digest(diagonals: Mapping[str, Diagonal]) -> str:
    """The fingerprint of a model from the diagonals of its parameters, by name."""
    whole = hashlib.sha256()
    for name in sorted(diagonals):
        one = diagonals[name]
        whole.update(f"{name}{list(one.shape)}".encode() + one.values.numpy().tobytes() + one.sums.numpy().tobytes())
    return whole.hexdigest()[:16]


def _read(parameter: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    x, steps = parameter.detach(), steps.to(parameter.device)
    if not x.numel():
        return torch.empty(0)
    return (_at(x, tuple(steps % size for size in x.shape)) if x.dim() else x[None]).float().cpu()


def _at(x: torch.Tensor, places: tuple[torch.Tensor, ...]) -> torch.Tensor:
    if x.itemsize > 1:
        return x[places]
    return x.view(torch.uint8)[places].view(x.dtype)  # older versions of PyTorch index no float8


def _sums(x: torch.Tensor) -> torch.Tensor:
    if x.dim() < 2 or not x.numel():
        return torch.empty(0, dtype=torch.int32)
    # A sum in the dtype of its terms wraps around, as intended, and needs no wider copy of the terms.
    if x.dtype == torch.float32:
        return x.view(torch.int32).sum(-1, dtype=torch.int32).cpu()
    if x.dtype == torch.bfloat16:  # the upper half of a float32
        return x.view(torch.int16).sum(-1, dtype=torch.int16).cpu().int() << 16
    parts = torch.split(x, max(1, _VALUES_AT_ONCE // x[0].numel()))
    return torch.cat([part.float().view(torch.int32).sum(-1, dtype=torch.int32).cpu() for part in parts])

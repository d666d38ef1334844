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
            values[steps[inside]] = piece[tuple(place[inside].to(piece.device) for place in at)].float().cpu()
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

    def _follow(self, values: torch.Tensor, sums: torch.Tensor, change: Change) -> None:
        part, rows = change.parameter, change.rows.cpu()
        first, _, step = part.span or (0, 0, 1)
        packed = part.expert is not None and part.rows is None
        axis = part.dim + packed
        start = [0] * len(self.shape)
        if part.expert is not None:
            start[0] = part.expert * (part.rows or 1)
        start[axis] += first

        steps = torch.arange(start[0], len(values), self.shape[0]) if packed else torch.arange(len(values))
        row = steps % self.shape[axis] - start[axis]
        place = torch.searchsorted(rows, row // step).clamp(max=len(rows) - 1)
        inside = (rows[place] == row // step) & (row % step == 0)
        others = [dim for dim in range(int(packed), len(self.shape)) if dim != axis]
        old, new = change.before, change.after
        if len(others) > 1:  # a row holds the values of several dimensions
            old, new = (x.unflatten(1, [self.shape[dim] for dim in others]) for x in (old, new))
        across = [steps % self.shape[dim] - start[dim] for dim in others]
        for at, size in zip(across, new.shape[1:], strict=False):
            inside &= (at >= 0) & (at < size)
        found = new if others else new[:, 0]
        values[steps[inside]] = found[tuple(at[inside].to(new.device) for at in (place, *across))].float().cpu()

        if len(self.shape) == 1:
            return
        held = sums[part.expert] if packed else sums
        if part.expert is not None and part.rows is not None:
            held = held.narrow(0, part.expert * part.rows, part.rows)
        if axis == len(self.shape) - 1:  # columns: a part of every row's sum
            gained = _sums(new.movedim(0, -1)) - _sums(old.movedim(0, -1))
            held.add_(gained.view(held.shape))
        else:
            held.movedim(part.dim, 0).index_add_(0, first + step * rows, _sums(new) - _sums(old))


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
    return (x[tuple(steps % size for size in x.shape)] if x.dim() else x[None]).float().cpu()


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

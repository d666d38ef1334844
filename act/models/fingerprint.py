"""A fingerprint of a model's weights in which every value counts, computed at the speed of memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from act.models.placement import values

_VALUES_AT_ONCE = 1 << 16  # converted to float32 at a time, so that the copy stays in a CPU's cache


def fingerprint(model: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """A hash of every parameter: the sum of each row's bits, and one value of every row and column.

    It changes if any value changes, or if rows or columns trade places. Values count as float32, so a checkpoint
    keeps its fingerprint in a wider dtype, on several devices, offloaded, and on disk
    (:class:`act.editing.stored.StoredModel`). Cost: one pass over the weights. Parameters are taken in order of name.
    """
    pairs = values(model) if isinstance(model, nn.Module) else model.items()
    return digest({name: Diagonal.of(parameter) for name, parameter in pairs})


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

    def reread(self, parameter: torch.Tensor, dim: int, rows: torch.Tensor) -> Diagonal:
        """The diagonal after only the ``rows`` (int64) along ``dim`` of the parameter have changed."""
        changed = torch.zeros(self.shape[dim], dtype=torch.bool)
        changed[rows] = True
        steps = torch.arange(len(self.values))
        steps = steps[changed[steps % self.shape[dim]]]
        if dim == len(self.shape) - 1:  # columns: every row's sum
            sums = _sums(parameter.detach())
        else:
            part = parameter.detach().index_select(dim, rows.to(parameter.device))
            sums = self.sums.index_copy(dim, rows.cpu(), _sums(part))
        return replace(self, values=self.values.index_copy(0, steps, _read(parameter, steps)), sums=sums)


def digest(diagonals: Mapping[str, Diagonal]) -> str:
    """The fingerprint of a model from the diagonals of its parameters, by name."""
    whole = hashlib.sha256()
    for name in sorted(diagonals):
        one = diagonals[name]
        whole.update(f"{name}{list(one.shape)}".encode() + one.values.numpy().tobytes() + one.sums.numpy().tobytes())
    return whole.hexdigest()[:16]


def _read(parameter: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    x, steps = parameter.detach(), steps.to(parameter.device)
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

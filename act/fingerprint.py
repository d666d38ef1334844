"""What tells one set of weights from another without reading every byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from act.placement import values


def fingerprint(model: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """A hash over one value from every row and every column of every parameter, taken along wrapped diagonals.

    Any transfer of a channel changes it (a whole row or column changes), and so does any fine-tune. Values are hashed
    as float32, so a checkpoint keeps its fingerprint in a wider type, on several devices, offloaded, and on disk
    (:class:`act.stored.StoredModel`). Cost: as many values as channels. Parameters are taken in order of name.
    """
    pairs = values(model) if isinstance(model, nn.Module) else model.items()
    return digest({name: Diagonal.of(parameter) for name, parameter in pairs})


@dataclass(frozen=True)
class Diagonal:
    """What a fingerprint takes from one parameter: its shape, and float32 values on the CPU, one a row and column."""

    shape: tuple[int, ...]
    values: torch.Tensor

    @classmethod
    def of(cls, parameter: torch.Tensor) -> Diagonal:
        """Read it; touches about every second page of a matrix."""
        steps = torch.arange(max(parameter.shape, default=1))
        return cls(tuple(parameter.shape), _read(parameter, steps))

    def reread(self, parameter: torch.Tensor, dim: int, rows: torch.Tensor) -> Diagonal:
        """The diagonal after only the ``rows`` (int64) along ``dim`` of the parameter have changed."""
        changed = torch.zeros(self.shape[dim], dtype=torch.bool)
        changed[rows] = True
        steps = torch.arange(len(self.values))
        steps = steps[changed[steps % self.shape[dim]]]
        return replace(self, values=self.values.index_copy(0, steps, _read(parameter, steps)))


def digest(diagonals: Mapping[str, Diagonal]) -> str:
    """The fingerprint of a model from the diagonals of its parameters, by name."""
    whole = hashlib.sha256()
    for name in sorted(diagonals):
        whole.update(f"{name}{list(diagonals[name].shape)}".encode() + diagonals[name].values.numpy().tobytes())
    return whole.hexdigest()[:16]


def _read(parameter: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    x, steps = parameter.detach(), steps.to(parameter.device)
    return (x[tuple(steps % size for size in x.shape)] if x.dim() else x[None]).float().cpu()

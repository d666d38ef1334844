"""What tells one set of weights from another without reading every byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from act.placement import values


def fingerprint(model: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """A hash over one value from every row and every column of every parameter, taken along wrapped diagonals.

    Any transfer of a channel changes it (a whole row or column changes), and so does any fine-tune. Values are hashed
    as float32, so a checkpoint keeps its fingerprint in a wider type, on several devices, offloaded, and on disk
    (:class:`act.stored.StoredModel`), where nothing else is read. Cost: as many values as channels. Parameters are
    taken in order of name.
    """
    pieces = {}
    for name, parameter in values(model) if isinstance(model, nn.Module) else model.items():
        diagonal = _diagonal(parameter.detach()).float().cpu().numpy().tobytes()
        pieces[name] = f"{name}{list(parameter.shape)}".encode() + diagonal
    return hashlib.sha256(b"".join(pieces[name] for name in sorted(pieces))).hexdigest()[:16]


def _diagonal(x: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(max(x.shape, default=1), device=x.device)
    return x[tuple(steps % size for size in x.shape)] if x.dim() else x[None]

"""What tells one set of weights from another without reading every byte."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from act.placement import values


def fingerprint(model: nn.Module) -> str:
    """A hash over one value from every row and every column of every parameter, taken along wrapped diagonals.

    Any transfer of a channel changes it (a whole row or column changes), and so does any fine-tune. Values are hashed
    as float32, so a checkpoint keeps its fingerprint in a wider type, on several devices, and offloaded. Cost: as many
    values as channels.
    """
    digest = hashlib.sha256()
    for name, parameter in values(model):
        digest.update(f"{name}{list(parameter.shape)}".encode())
        digest.update(_diagonal(parameter).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _diagonal(x: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(max(x.shape, default=1), device=x.device)
    return x[tuple(steps % size for size in x.shape)] if x.dim() else x[None]

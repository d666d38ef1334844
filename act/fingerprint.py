"""What tells one set of weights from another without reading every byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def fingerprint(model: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """A hash over one value from every row and every column of every parameter, taken along wrapped diagonals.

    Any transfer of a channel changes it (a whole row or column changes), and so does any fine-tune. Values are hashed
    as float32, so a checkpoint loaded in a wider type keeps its fingerprint. Cost: as many values as channels; of
    weights on disk (:class:`act.checkpoint.Checkpoint`) nothing else is read. Parameters are taken in order of name.
    """
    weights = dict(model.named_parameters()) if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name in sorted(weights):
        parameter = weights[name].detach()
        digest.update(f"{name}{list(parameter.shape)}".encode())
        digest.update(_diagonal(parameter).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _diagonal(x: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(max(x.shape, default=1), device=x.device)
    return x[tuple(steps % size for size in x.shape)] if x.dim() else x[None]

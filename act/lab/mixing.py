"""How the laboratory mixes models of one architecture: channels with strengths, and common merges as controls.

Weights are dicts of tensors by parameter name. The merges add to a base the *task vectors* ``specialist - base``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from act.editing.interpolation import interpolate
from act.models.channels import ChannelSpace

Weights = dict[str, torch.Tensor]


def weights(model: nn.Module) -> Weights:
    """A copy of a model's parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def put(mixed: Weights, model: nn.Module) -> None:
    """Write ``mixed`` into a model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(mixed[name])


def transferred(
    target: Weights, donors: Sequence[Weights], strengths: Sequence[torch.Tensor], space: ChannelSpace
) -> Weights:
    """``target`` with every channel moved by the mean of the steps of the donors that give it.

    ``strengths`` are float ``[N]``, one tensor per donor: 0 leaves a channel out, 1 copies the donor's rows. With one
    donor and a constant strength on the channels of a set, this is :func:`act.transfer`.
    """
    givers = torch.stack([strength > 0 for strength in strengths]).sum(0).clamp_min(1)
    mixed = {name: old.clone() for name, old in target.items()}
    for site in space:
        for part in site.parameters:
            old, new = part.part_of(target[part.key]), part.whole.part_of(mixed[part.key])
            rows = part.places(torch.arange(site.width, device=new.device))
            for donor, strength in zip(donors, strengths, strict=True):
                share = (strength / givers)[site.channels].to(old.dtype)[:, None]
                new.index_add_(0, rows, share * (part.part_of(donor[part.key]) - old))
    return mixed


def interpolated(target: Weights, donors: Sequence[Weights], strength: float) -> Weights:
    """``target`` with all parameters moved towards the mean of the donors.

    With the base as the only donor this is task arithmetic, ``base + (1 - strength) (target - base)``.
    """
    mixed = {name: old.clone() for name, old in target.items()}
    interpolate(mixed, donors, strength)
    return mixed


def task_arithmetic(base: Weights, specialists: Sequence[Weights], scale: float) -> Weights:
    """``base + scale * sum of task vectors`` (Ilharco et al., arXiv 2212.04089)."""
    return {name: old + scale * sum(one[name] - old for one in specialists) for name, old in base.items()}


def ties(base: Weights, specialists: Sequence[Weights], density: float, scale: float) -> Weights:
    """TIES (Yadav et al., arXiv 2306.01708).

    Keep the largest ``density`` of each task vector, elect a sign for every value by the sum over specialists, and add
    ``scale`` times the mean of the values that agree with it.
    """
    names = list(base)
    vectors = torch.stack([torch.cat([(one[name] - base[name]).flatten() for name in names]) for one in specialists])
    kept = max(1, round(density * vectors.shape[1]))
    for vector in vectors:
        vector[vector.abs() < vector.abs().topk(kept).values[-1]] = 0
    agreeing = vectors.sign() == vectors.sum(0).sign()
    merged = (vectors * agreeing).sum(0) / ((vectors != 0) & agreeing).sum(0).clamp_min(1)
    pieces = torch.split(merged, [base[name].numel() for name in names])
    return {name: base[name] + scale * piece.view_as(base[name]) for name, piece in zip(names, pieces, strict=True)}


def dare(base: Weights, specialists: Sequence[Weights], density: float, scale: float, seed: int) -> Weights:
    """DARE (Yu et al., arXiv 2311.03099).

    Drop all but a random ``density`` of each task vector, divide the rest by ``density``, and add ``scale`` times their
    sum.
    """
    generator = torch.Generator().manual_seed(seed)
    mixed = {}
    for name, old in base.items():
        kept = [(one[name] - old) * (torch.rand(old.shape, generator=generator) < density) for one in specialists]
        mixed[name] = old + scale * sum(kept) / density
    return mixed

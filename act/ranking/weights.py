"""Scores that look at no activation: how far apart the weights are, and random numbers as a control."""

from __future__ import annotations

import torch
from torch import nn

from act.models.channels import ChannelSpace, common_space
from act.models.placement import require_in_memory

_ROWS_AT_ONCE = 4096


def weight_diff(donor: nn.Module, target: nn.Module, space: ChannelSpace | None = None) -> torch.Tensor:
    """``|| theta_d - theta_t ||_2`` over each channel's parameter rows; 0 where the tensor belongs to a tied site.

    Raises:
        ActError: models of different architectures; parameters that are not in memory.
    """
    space = space or common_space(donor, target)
    for side, model in (("donor", donor), ("target", target)):
        require_in_memory(model, side)
    donor_parameters, target_parameters = (dict(model.named_parameters()) for model in (donor, target))
    score = torch.zeros(len(space), dtype=torch.float64)
    for site in space:
        squares = score[site.channels]
        for part in site.parameters:
            old, new = target_parameters[part.name].detach(), donor_parameters[part.name].detach()
            for start in range(0, len(old), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                step = (new[rows].to(old.device).double() - old[rows].double()).square_()
                if part.dim == 0:
                    squares[rows] += step.flatten(1).sum(1).cpu() if step.dim() > 1 else step.cpu()
                else:
                    squares += step.sum(0).cpu()
    return score.sqrt_()


def random_scores(space: ChannelSpace, seed: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), to choose as many channels at random; float64 ``[N]``."""
    return torch.rand(len(space), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

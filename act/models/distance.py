"""How far two models are apart, channel by channel."""

from __future__ import annotations

import torch
from torch import nn

from act.models.channels import ChannelSpace
from act.models.common import common_space, same_names
from act.models.placement import require_in_memory

_ROWS_AT_ONCE = 4096


def weight_diff(donor: nn.Module, target: nn.Module, space: ChannelSpace | None = None) -> torch.Tensor:
    """``|| theta_d - theta_t ||_2`` over each channel's parameter rows; 0 where the tensor belongs to a tied site.

    Raises:
        ActError: models of different architectures; parameters that are not in memory.
    """
    donor, target = same_names(donor, target)
    space = space or common_space(donor, target)
    for side, model in (("donor", donor), ("target", target)):
        require_in_memory(model, side)
    donor_parameters, target_parameters = (dict(model.named_parameters()) for model in (donor, target))
    score = torch.zeros(len(space), dtype=torch.float64)
    for site in space:
        squares = score[site.channels]
        for part in site.parameters:
            old, new = part.matrix(target_parameters), part.matrix(donor_parameters)
            along = min(part.dim, 1)  # as stored: columns of an embedding are tokens
            for start in range(0, old.shape[along], _ROWS_AT_ONCE):
                some = (slice(None),) * along + (slice(start, start + _ROWS_AT_ONCE),)
                step = new[some].to(old.device).double() - old[some].double()
                squares[some[0]] += step.square_().sum(1).cpu()
    return score.sqrt_()

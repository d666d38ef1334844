"""Scores that look at no activation: how far apart the weights are, and random numbers as a control."""

from __future__ import annotations

import torch

from act.models.channels import ChannelSpace
from act.models.distance import weight_diff

__all__ = ["random_scores", "weight_diff"]


def random_scores(space: ChannelSpace, seed: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), to choose as many channels at random; float64 ``[N]``."""
    return torch.rand(len(space), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

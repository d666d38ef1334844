"""What a channel is worth for an ability, over what it costs those to retain."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch

LEAST = 1e-3
"""The smallest cost that counts, in median costs: no channel wins because it costs nothing."""


def per_cost(benefit: torch.Tensor, costs: Iterable[torch.Tensor]) -> torch.Tensor:
    """``benefit`` over the largest of the costs of its channel, float64 ``[N]``; NaN where any of them is.

    The cost of a channel that hardly touches what is to be retained counts as :data:`LEAST` of the median cost. Where
    no channel costs anything, all get 0.
    """
    cost = functools.reduce(torch.maximum, costs)
    positive = cost[cost > 0]
    floor = LEAST * positive.median().item() if len(positive) else math.inf
    return benefit / cost.clamp_min(floor)

"""Language activation probability entropy: which channels one ability activates and the others do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from act.core.errors import ActError

ACTIVE_SHARE = 0.95  # of all activation probabilities lie below the threshold, as in the paper


def lape(rates: Sequence[torch.Tensor]) -> torch.Tensor:
    """Language activation probability entropy of ``rates[0]`` against the others: Tang et al., arXiv 2402.16438.

    ``p_j`` is the share of tokens of ability j at which the channel is above zero; ``H = -sum q_j log q_j`` with
    ``q_j = p_j / sum p``. The paper takes the lowest entropies among channels that some ability activates often, and
    gives each to the abilities that do. As one number for ability 0 of L: ``log L - H`` (from 0, used alike by all, to
    ``log L``, by one alone) where ``p_0`` reaches the 95th percentile of all probabilities; ``-H`` elsewhere, which is
    below every one of those. A channel that is never above zero has no score.

    Args:
        rates: positive rates ``[N]`` of one model on L >= 2 abilities, the wanted one first.
    """
    if len(rates) < 2:
        raise ActError("score lape compares abilities; give at least one other ability as keep")
    total = torch.stack(list(rates)).sum(0)
    entropy = torch.zeros_like(total)
    for rate in rates:
        entropy -= torch.special.xlogy(rate / total, rate / total)
    known = torch.cat([rate[rate.isfinite()] for rate in rates]).numpy()
    place = math.ceil(ACTIVE_SHARE * len(known)) - 1
    threshold = np.partition(known, place)[place] if len(known) else math.nan
    return torch.where(rates[0] >= threshold, math.log(len(rates)) - entropy, -entropy)

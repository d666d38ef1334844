"""Local match: how far a channel's parameters alone, moved to the donor's, bring the target towards the donor.

With the target's own input of a module, ``a_t`` is the target's output, ``a_s`` what the donor's module gives there,
and ``a_d`` the donor's own output for the same token. Moving the channel changes its output by ``swap = a_s - a_t``,
where ``D = a_d - a_t`` is wanted. Both are relative to their module, so that modules of any scale can be compared.
"""

from __future__ import annotations

import torch

from act.core.errors import ActError
from act.profiles.statistics import Statistics
from act.ranking.activations import Activations
from act.ranking.normalize import over_module_mean


def benefit(activations: Activations) -> torch.Tensor:
    """``mean(swap * D)``, over the mean of ``mean(D^2)`` in the module: the fall of the mismatch, to first order.

    Raises:
        ActError: a profile without swapped outputs.
    """
    difference, _, product = _swapped(activations)
    return over_module_mean(product.mean, difference.mean_square, activations.space)


def disturbance(activations: Activations) -> torch.Tensor:
    """The root of ``mean(swap^2)``, over the mean of ``mean(a_t^2)`` in the module: what moving the channel changes.

    Raises:
        ActError: a profile without swapped outputs.
    """
    _, swap, _ = _swapped(activations)
    return over_module_mean(swap.mean_square, activations.target.mean_square, activations.space).sqrt_()


def _swapped(activations: Activations) -> tuple[Statistics, Statistics, Statistics]:
    """Difference, swap and product."""
    found = activations.difference, activations.swap, activations.product
    if found[0] is None or found[1] is None or found[2] is None:
        raise ActError(
            "scores match and match-contrast need swapped outputs, which a profile does not have; measure each pair "
            "with them (act-profile pair --swap, act.profile_pair(…, swap=True))"
        )
    return found[0], found[1], found[2]

"""Local match: how far a channel's parameters alone, moved to the donor's, bring the target towards the donor.

With the target's own input of a module, ``a_t`` is the target's output, ``a_s`` what the donor's module gives there,
and ``a_d`` the donor's own output for the same token. Moving the channel changes its output by ``swap = a_s - a_t``,
where ``D = a_d - a_t`` is wanted. Both are relative to the size of their module's outputs, so that modules of any scale
can be compared. A logit matters as far as its token is likely: at an LM head, all means are weighted by ``p (1 - p)``,
the curvature of the softmax, with ``p = softmax(mean + standard deviation)`` of a model's logits over the text: the
donor's for the benefit, which is to make its tokens likelier, and the target's for what is to stay as it is.
"""

from __future__ import annotations

import torch

from act.core.errors import ActError
from act.profiles.statistics import Statistics, curvature
from act.ranking.activations import Activations
from act.ranking.normalize import over_module_mean


def benefit(activations: Activations) -> torch.Tensor:
    """``mean(swap * D)``, over the mean of ``mean(a_t^2)`` in the module: the fall of the mismatch, to first order.

    Raises:
        ActError: a profile without swapped outputs.
    """
    _, product = _swapped(activations)
    return _relative(product.mean, activations, activations.donor)


def disturbance(activations: Activations) -> torch.Tensor:
    """``mean(swap^2)``, over the mean of ``mean(a_t^2)`` in the module: what moving the channel changes.

    Raises:
        ActError: a profile without swapped outputs.
    """
    swap, _ = _swapped(activations)
    return _relative(swap.mean_square, activations, activations.target)


def _relative(values: torch.Tensor, activations: Activations, likely: Statistics) -> torch.Tensor:
    """``values`` over the mean square of the outputs of their module, in place; at LM heads, both weighted."""
    size = activations.target.mean_square
    for site in activations.space:
        if site.kind == "head":
            weight = curvature(likely.mean[site.channels], likely.var[site.channels])
            values[site.channels] *= weight
            size[site.channels] *= weight
    return over_module_mean(values, size, activations.space)


def _swapped(activations: Activations) -> tuple[Statistics, Statistics]:
    """Swap and product."""
    if activations.swap is None or activations.product is None:
        raise ActError(
            "scores match and match-contrast need swapped outputs, which a profile does not have; measure each pair "
            "with them (act-profile pair --swap, act.profile_pair(…, swap=True))"
        )
    return activations.swap, activations.product

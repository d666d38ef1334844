"""Attribution as a score: how far moving a channel lowers the loss of an ability, and what that may be divided by."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from act.core.errors import ActError, require_choice
from act.profiles.attribution import AttributionProfile
from act.ranking.activations import Ability

Cost = Literal["auto", "keep", "distance", "none"]
"""What a fall of the loss is divided by: what a channel disturbs on texts to keep, the norm of its step, nothing."""


def chosen_cost(cost: Cost, kept: bool) -> Cost:
    """The cost that ``auto`` stands for: what is disturbed where there are texts to keep, else nothing.

    Raises:
        ActError: an unknown cost; one that needs texts to keep.
    """
    require_choice("cost", cost, get_args(Cost))
    if cost == "auto":
        return "keep" if kept else "none"
    if cost == "keep" and not kept:
        raise ActError(
            "cost 'keep' is what a channel disturbs on texts to keep, and there are none; give some as keep, "
            "or choose cost distance or none"
        )
    return cost


def fall(ability: Ability) -> torch.Tensor:
    """By how much the mean loss of a token would fall if a channel moved, to first order; float64 ``[N]``."""
    return attribution_of(ability).fall.cpu()


def disturbance(ability: Ability) -> torch.Tensor:
    """The root mean square over documents of the change of a document's summed loss; float64 ``[N]``."""
    return attribution_of(ability).rms.cpu()


def usual_score(ability: object) -> Literal["attribution", "paired"]:
    """What a profile is ranked by where no score is named: an attribution by itself, any other as in the paper."""
    return "attribution" if isinstance(ability, AttributionProfile) else "paired"


def attribution_of(ability: Ability) -> AttributionProfile:
    """The ability as an attribution profile; raises ActError for profiles of activations."""
    if isinstance(ability, AttributionProfile):
        return ability
    if isinstance(ability, tuple) and any(isinstance(one, AttributionProfile) for one in ability):
        raise ActError(
            "two profiles were given, and what act-profile attribute measures is of donor and target together; give one"
        )
    raise ActError(
        "score 'attribution' needs gradients, which profiles of activations do not hold; give what "
        "act-profile attribute (act.attribute) measures, for the ability and for what to keep"
    )

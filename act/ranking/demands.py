"""What cannot be ranked together: said before anything is measured, by a ranking and by a recipe alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import torch

from act.core.errors import ActError, require_choice
from act.models.channels import ChannelSpace
from act.ranking.attributed import Cost, chosen_cost
from act.ranking.eligible import Eligible
from act.ranking.granularity import Granularity, Units, units_of
from act.ranking.normalize import NO_SPREAD, Normalize
from act.ranking.scores import Score, ScoreName, score_named
from act.ranking.selection import Scope


def require_known(
    score: ScoreName | torch.Tensor = "paired",
    normalize: Normalize = "none",
    scope: Scope = "global",
    granularity: Granularity | Sequence[Granularity] = "channel",
    cost: Cost = "auto",
) -> None:
    """Raise :class:`ActError`, with the known names, for one that no ranking knows."""
    if not isinstance(score, torch.Tensor):
        score_named(score)
    require_choice("normalize", normalize, get_args(Normalize))
    require_choice("scope", scope, get_args(Scope))
    require_choice("cost", cost, get_args(Cost))
    for name in [granularity] if isinstance(granularity, str) else granularity:
        require_choice("granularity", name, get_args(Granularity))


def contradictions(score: Score, *, cost: Cost, normalize: Normalize, kept: bool) -> Iterator[tuple[str, ActError]]:
    """The parameters that do not go with a score, by name, each with the error to raise.

    Args:
        kept: whether there is something to keep.
    """
    if cost != "auto" and not score.takes_cost:
        wrong = f"cost {cost!r} has no effect on score {score.name}; leave it out, or rank by attribution"
        yield "cost", ActError(wrong)
    elif score.takes_cost:
        try:
            chosen_cost(cost, kept)
        except ActError as error:
            yield "cost", error
    if wrong_keep := score.wrong_keep(kept):
        yield "keep", ActError(wrong_keep)
    if normalize == "channel" and (score.reads is None or score.keep == "compare"):
        yield "normalize", ActError(NO_SPREAD)


def rankable(
    space: ChannelSpace,
    granularity: Granularity | Sequence[Granularity],
    include: Iterable[str],
    exclude: Iterable[str],
) -> tuple[list[Units], Eligible]:
    """The units to rank, and the sites that they may be of.

    Raises:
        ActError: as :func:`act.ranking.granularity.units_of`, :meth:`Eligible.of` and :meth:`Eligible.require_columns`.
    """
    units, eligible = units_of(space, granularity), Eligible.of(space, include, exclude)
    eligible.require_columns(units)
    return units, eligible

"""Selection: how many of the best-scored units are taken, of everything together or of each part of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from act.core.errors import ActError, require_choice
from act.ranking.granularity import Segment

Scope = Literal["global", "kind", "layer", "site"]


@dataclass(frozen=True)
class Amount:
    """How much to take; exactly one is set.

    Attributes:
        top: share of the channels that have a score.
        count: number of units: channels, or rotary pairs, neurons or heads.
        mass: share of the sum of all positive scores (of a unit: its score times its channels).
    """

    top: float | None = None
    count: int | None = None
    mass: float | None = None

    def of(self, scores: torch.Tensor, sizes: torch.Tensor | None, what: str) -> torch.Tensor:
        """Sorted indices of the units to take; of equal scores the lower index first, NaN never.

        Args:
            scores: float64 ``[U]``.
            sizes: channels of each unit, int64 ``[U]``; None where every unit is one channel.
            what: what the units are, for errors.

        Raises:
            ActError: fewer units have a score than ``count``.
        """
        scored = len(scores) - int(scores.isnan().count_nonzero())
        if self.count is not None:
            if self.count > scored:
                raise ActError(
                    f"{self.count} were asked for, but only {scored} {what} have a score "
                    "(others were excluded or never counted); ask for fewer, or measure more"
                )
            return best(scores, self.count)
        if not scored:
            return torch.empty(0, dtype=torch.int64)
        if self.top is not None and sizes is None:
            return best(scores, max(1, round(self.top * scored)))
        order = best(scores, scored)
        order = order[scores[order].argsort(descending=True, stable=True)]
        size = torch.ones_like(order) if sizes is None else sizes[order]
        if self.top is not None:
            budget = self.top * int(size.sum())
            return order[: max(1, int((size.cumsum(0) <= budget + 0.5).sum()))].sort().values
        gain = (scores[order].clamp(min=0) * size).cumsum(0)
        assert self.mass is not None
        return order[: int((gain < self.mass * gain[-1]).sum()) + 1 if gain[-1] > 0 else 0].sort().values


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Sorted indices of the ``count`` highest scores; of equal ones the lower index first, NaN below everything.

    A partition finds the lowest score taken, so nothing is sorted.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    negated = (-scores).numpy()
    negated.partition(count - 1)  # numpy puts NaN last
    threshold = -float(negated[count - 1])
    del negated
    index = (scores > threshold).nonzero().flatten()
    ties = (scores == threshold).nonzero().flatten()[: count - len(index)]
    return torch.cat([index, ties]).sort().values


def pools(segments: Sequence[Segment], scope: Scope) -> Iterator[list[int]]:
    """The segments that are ranked together, by number; sites outside the decoder stack are one layer.

    Raises:
        ActError: an unknown scope.
    """
    require_choice("scope", scope, get_args(Scope))
    groups: dict[object, list[int]] = {}
    for number, segment in enumerate(segments):
        key = {"global": None, "kind": segment.kind, "layer": segment.layer, "site": segment.name}[scope]
        groups.setdefault(key, []).append(number)
    yield from groups.values()


def parse_top(share: str | float, name: str = "top", of: str = "the channels") -> float:
    """A share of the channels, from ``"5%"`` or ``0.05``; raises ActError unless it lies in (0, 1]."""
    try:
        value = float(share[:-1]) / 100 if isinstance(share, str) and share.endswith("%") else float(share)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ActError(f"{name} is {share}; expected a share of {of} above 0 and up to 100%, such as 5% or 0.05")
    return value


def parse_amount(top: str | float | None, count: int | None, mass: str | float | None) -> Amount:
    """Exactly one of the three, or :class:`ActError`."""
    if sum(given is not None for given in (top, count, mass)) != 1:
        raise ActError("give one of top, count and mass: each says how much to take")
    if count is not None and (count != int(count) or count < 1):
        raise ActError(f"count is {count}; expected a whole number of channels or units, at least 1")
    return Amount(
        None if top is None else parse_top(top),
        None if count is None else int(count),
        None if mass is None else parse_top(mass, "mass", "the positive scores' sum"),
    )

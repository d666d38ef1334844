"""Selection: how many of the best-scored units are taken, from the whole model or from each part of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch

from act.core.errors import ActError, option, require_choice
from act.ranking.granularity import Units

_SAMPLE = 1 << 16  # scores that show about how high the highest are
_PART = 1 << 16
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
        """Sorted indices of the units to take. Of equal scores, the lower index comes first; NaN is never taken.

        Args:
            scores: float64 ``[U]``.
            sizes: channels of each unit, int64 ``[U]``; None where every unit is one channel.
            what: what the units are, for errors.

        Raises:
            ActError: fewer units have a score than ``count``.
        """
        scored = scored_of(scores)
        if self.count is not None:
            if self.count > scored:
                raise ActError(
                    f"{self.count} were requested, but only {scored} {what} have a score "
                    "(others were excluded, never counted, or of experts that saw too few tokens); ask for fewer, or "
                    "measure more"
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
    """Sorted indices of the ``count`` highest scores. Of equal scores, the lower index comes first; NaN is the lowest.

    A partition finds the lowest score taken, so the scores are not sorted. Of many scores, it is one of those above a
    score that a few of them show to be lower.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    values = scores.numpy()  # numpy's calls are shorter than torch's, and there may be a pool for each site
    places = _candidates(values, count)
    negated = -(values if places is None else values[places])
    order = negated.copy()
    order.partition(count - 1)  # numpy puts NaN last
    threshold = order[count - 1]
    index, ties = np.flatnonzero(negated < threshold), np.flatnonzero(negated == threshold)
    chosen = np.sort(np.concatenate([index, ties[: count - len(index)]]))
    return torch.from_numpy(chosen if places is None else places[chosen])


def _candidates(values: np.ndarray, count: int) -> np.ndarray | None:
    """Sorted places of the highest scores, at least ``count`` and with all that equal one of them; None for all."""
    step = len(values) // _SAMPLE
    if step < 2:
        return None
    seen = -values[::step]
    place = count / step + 6 * math.sqrt(count / step) + 1  # so many standard deviations that it hardly ever fails
    if place >= len(seen) // 2:
        return None
    seen.partition(int(place))
    places = np.flatnonzero(values >= -seen[int(place)])
    return places if len(places) >= count else None


def scored_of(scores: torch.Tensor) -> int:
    """How many scores are not NaN."""
    values = scores.numpy()
    return values.size - sum(int(np.count_nonzero(np.isnan(part))) for part in in_cache(values))


def in_cache(values: np.ndarray) -> Iterator[np.ndarray]:
    """The parts of a vector that are looked at one by one, so that what is made of each stays in the cache."""
    return (values[start : start + _PART] for start in range(0, len(values), _PART))


class Selection(NamedTuple):
    """What was chosen, and from how much.

    Attributes:
        channels: flat indices, int64 ``[K]``, in no order.
        inputs: site name -> the input columns that go with the chosen units.
        ranked: channels that had a score.
        not_positive: chosen channels with a score of 0 or below.
    """

    channels: torch.Tensor
    inputs: dict[str, torch.Tensor]
    ranked: int
    not_positive: int


def select(values: torch.Tensor, units: Sequence[Units], amount: Amount, scope: Scope) -> Selection:
    """Take the best-scored units of every pool of the scope.

    Args:
        values: the score of every channel, float64 ``[N]``, NaN for one that must not be chosen.

    Raises:
        ActError: an unknown scope; fewer units have a score than were requested; nothing can be chosen.
    """
    found = [_select(values, pool, amount) for pool in pools(units, scope)]
    ranked = sum(one.ranked for one in found)
    channels = found[0].channels if len(found) == 1 else torch.cat([one.channels for one in found])
    if not len(channels):
        raise ActError(_nothing(values, units, ranked))
    inputs = {site: columns for one in found for site, columns in one.inputs.items()}
    return Selection(channels, inputs, ranked, sum(one.not_positive for one in found))


def pools(units: Sequence[Units], scope: Scope) -> list[list[Units]]:
    """The units that are ranked together; sites outside the decoder stack are one layer.

    Raises:
        ActError: an unknown scope.
    """
    require_choice("scope", scope, get_args(Scope))
    groups: dict[object, list[Units]] = {}
    for one in units:
        key = {"global": None, "kind": one.kind, "layer": one.layer, "site": one.name}[scope]
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _select(values: torch.Tensor, pool: list[Units], amount: Amount) -> Selection:
    run = _one_run(pool)
    scores = torch.cat([units.scores(values) for units in pool]) if run is None else values[run]
    sizes = None
    if any(units.size > 1 for units in pool):
        sizes = torch.cat([torch.full((len(units),), units.size) for units in pool])
    chosen = amount.of(scores, sizes, "channels" if sizes is None else "units")
    idle = chosen.numpy()[scores.numpy()[chosen.numpy()] <= 0]
    if sizes is None:
        ranked, not_positive = scored_of(scores), len(idle)
    else:
        ranked, not_positive = int(sizes[~scores.isnan()].sum()), int(sizes[idle].sum())
    if run is not None:
        return Selection(chosen.add_(run.start), {}, ranked, not_positive)
    index, inputs, start = [chosen.new_empty(0)], dict[str, torch.Tensor](), 0
    ends = torch.tensor([len(units) for units in pool]).cumsum(0)
    for units, stop, end in zip(pool, torch.searchsorted(chosen, ends).tolist(), ends.tolist(), strict=True):
        if stop > start:
            taken = chosen[start:stop] - (end - len(units))
            index.append(units.channels_of(taken))
            inputs.update({site: columns[taken].flatten() for site, columns in units.inputs.items()})
        start = stop
    return Selection(torch.cat(index), inputs, ranked, not_positive)


def _one_run(pool: list[Units]) -> slice | None:
    """The slice of the flat vector that a pool of single channels covers, so that no score is copied; None if none."""
    stop: int | None = None
    for units in pool:
        if not isinstance(units.channels, slice) or stop not in (None, units.channels.start):
            return None
        stop = units.channels.stop
    first = pool[0].channels
    return slice(first.start, stop) if isinstance(first, slice) else None


def _nothing(values: torch.Tensor, units: Sequence[Units], ranked: int) -> str:
    """Why nothing was chosen."""
    if values.isnan().all():
        return "no channel has a score to rank by; measure the modules that are to be ranked"
    if ranked:
        return "no score is above 0, so there is no mass to take a share of; give top or count instead"
    names = " or ".join(sorted({one.kind for one in units if one.size > 1}))
    return (
        f"no whole {names} can be ranked: some of the modules that make it are not included, excluded or not measured; "
        "include all of them, such as gate and up for neurons, and down for experts, or rank by channel"
    )


def parse_top(share: str | float, name: str = "top", of: str = "the channels", *, countable: bool = False) -> float:
    """A share of the channels, from ``"5%"`` or ``0.05``; raises ActError unless it lies in (0, 1].

    ``countable``: a number of channels may be given in its place, by ``--number``.

    >>> from act.ranking.selection import parse_top
    >>> parse_top("5%")
    0.05
    """
    try:
        value = float(share[:-1]) / 100 if isinstance(share, str) and share.endswith("%") else float(share)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        meant = ""
        if 1 < value <= 100 and not str(share).endswith("%"):
            number = (
                f", or {value:g} of them ({option(f'--number {value:g}', f'count={value:g}')})"
                if countable and value == int(value)
                else ""
            )
            meant = f"; did you mean {value:g}%{number}?"
        raise ActError(f"{name} is {share}; expected a share of {of} above 0 and up to 100%, such as 5% or 0.05{meant}")
    return value


def parse_amount(top: str | float | None, count: int | None, mass: str | float | None) -> Amount:
    """The amount that one of the three says; raises :class:`ActError` unless exactly one is given."""
    if sum(given is not None for given in (top, count, mass)) != 1:
        names = option("--top, --number and --mass", "top, count and mass")
        raise ActError(f"give one of {names}: each says how much to take")
    if count is not None and (count != int(count) or count < 1):
        name = option("--number", "count")
        raise ActError(f"{name} is {count}; expected a whole number of channels or units, at least 1")
    return Amount(
        None if top is None else parse_top(top, countable=True),
        None if count is None else int(count),
        None if mass is None else parse_top(mass, "mass", "the positive scores' sum"),
    )

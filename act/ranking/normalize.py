"""Normalisation: scores relative to their module, so that modules with large values do not fill every ranking."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar, get_args

import numpy as np
import torch

from act.core.errors import ActError, require_choice
from act.models.channels import ChannelSpace
from act.ranking.activations import Activations
from act.ranking.scores import spread

Normalize = Literal["none", "mean", "std", "kind-mean", "kind-std", "channel"]
NO_SPREAD = "normalize 'channel' divides by the spread of activations; use it with an activation score"
T = TypeVar("T")
_CHANNELS_AT_ONCE = 1 << 16  # whose scores stay in the cache of a core


def normalized(
    score: torch.Tensor,
    space: ChannelSpace,
    how: Normalize,
    activations: Activations | None = None,
    *,
    in_place: bool = False,
) -> torch.Tensor:
    """The score divided by a scale; channels without a finite score are left out of the scale.

    ========== =====================================================================================================
    none       1
    mean, std  mean, or population standard deviation, of the scores of the channel's site
    kind-…     the same over all sites of its module kind
    channel    ``sqrt((var_d + var_t) / 2)`` of the channel's own activations, which needs ``activations``; a channel
               that varies in neither model has no scale and gets no score
    ========== =====================================================================================================

    If the scale of a module is 0, its scores stay unchanged.

    ``in_place`` changes ``score`` itself instead of a copy.

    Raises:
        ActError: an unknown ``how``; ``channel`` without activations.
    """
    require_choice("normalize", how, get_args(Normalize))
    score = score if in_place else score.clone()
    if how == "none":
        return score
    if how == "channel":
        if activations is None:
            raise ActError(NO_SPREAD)
        scale = spread(activations)
        return score.div_(scale.masked_fill_(scale == 0, torch.nan))
    values, mean = score.numpy(), how.endswith("mean")
    if how.startswith("kind-"):
        scales = _scales_of_kinds(_each(space, lambda run: run.moments(values, mean)), space, mean)
        _each(space, lambda run: run.divide(values, scales[run.sites]))
    else:
        _each(space, lambda run: run.divide(values, _scales(run.moments(values, mean), mean)))
    return score


def over_module_mean(values: torch.Tensor, scale: torch.Tensor, space: ChannelSpace) -> torch.Tensor:
    """``values`` over the mean of the finite ``scale`` of their site, both float64 ``[N]``; changes them in place.

    Where that mean is 0, values stay as they are.
    """
    values = values.cpu()
    scales, divided = scale.cpu().numpy(), values.numpy()
    _each(space, lambda run: run.divide(divided, _scales(run.moments(scales, mean=True), mean=True)))
    return values


@dataclass(frozen=True)
class _Run:
    """Some sites in a row, whose scores stay in the cache together; slices of the sites and of the flat vector."""

    sites: slice
    channels: slice
    widths: np.ndarray

    def moments(self, values: np.ndarray, mean: bool) -> np.ndarray:
        """Count, sum and, unless only the ``mean`` is asked for, squared deviations of each site's finite scores."""
        part, starts, finite = values[self.channels], np.cumsum(self.widths) - self.widths, None
        with np.errstate(invalid="ignore", over="ignore"):
            count, total = self.widths.astype(np.float64), np.add.reduceat(part, starts)
        if not np.isfinite(total).all():
            finite = np.isfinite(part)
            part = np.where(finite, part, 0)
            count, total = np.add.reduceat(finite, starts, dtype=np.float64), np.add.reduceat(part, starts)
        if mean:
            return np.stack([count, total, np.zeros_like(total)])
        with np.errstate(invalid="ignore"):
            centred = np.repeat(total / count, self.widths)
        np.subtract(part, centred, out=centred)
        if finite is not None:
            centred[~finite] = 0
        return np.stack([count, total, np.add.reduceat(np.square(centred, out=centred), starts)])

    def divide(self, values: np.ndarray, scales: np.ndarray) -> None:
        """Divide the scores by the scale of their site, in place."""
        values[self.channels] /= np.repeat(scales, self.widths)


def _each(space: ChannelSpace, work: Callable[[_Run], T]) -> list[T]:
    """What ``work`` gives for every run of sites, in order, computed by as many threads as torch may use."""
    widths = np.array([site.width for site in space])
    ends = np.cumsum(widths)
    cuts = np.searchsorted(ends, np.arange(_CHANNELS_AT_ONCE, ends[-1], _CHANNELS_AT_ONCE))
    cuts = np.unique([0, *(cuts + 1), len(widths)])
    runs = [
        _Run(slice(first, last), slice(int(ends[first] - widths[first]), int(ends[last - 1])), widths[first:last])
        for first, last in pairwise(cuts.tolist())
    ]
    if len(runs) == 1:
        return [work(runs[0])]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(work, runs))


def _scales_of_kinds(found: list[np.ndarray], space: ChannelSpace, mean: bool) -> np.ndarray:
    """The scale of the kind of every site, ``[sites]``, from the moments of each run of sites."""
    count, total, m2 = np.concatenate(found, axis=1)
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(site.kind for site in space))}
    kind = np.array([numbers[site.kind] for site in space])
    kind_count, kind_total = (np.bincount(kind, x)[kind] for x in (count, total))
    with np.errstate(invalid="ignore"):
        shift = np.where(count > 0, total / count - kind_total / kind_count, 0)
    m2 = np.bincount(kind, m2 + count * shift**2)[kind]
    return _scales(np.stack([kind_count, kind_total, m2]), mean)


def _scales(moments: np.ndarray, mean: bool) -> np.ndarray:
    """The scales that moments ``[3, sites]`` give: 1 where that would be 0 or nothing is finite."""
    count, total, m2 = moments
    with np.errstate(invalid="ignore"):
        scale = total / count if mean else np.sqrt(m2 / count)
    return np.where(scale > 0, scale, 1.0)

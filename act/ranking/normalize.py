"""Normalisation: scores relative to their module, so that modules with large values do not fill every ranking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch

from act.core.errors import ActError, require_choice
from act.models.channels import ChannelSpace
from act.ranking.activations import Activations
from act.ranking.scores import spread

Normalize = Literal["none", "mean", "std", "kind-mean", "kind-std", "channel"]
_CHANNELS_AT_ONCE = 1 << 20


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
            raise ActError("normalize 'channel' divides by the spread of activations; use it with an activation score")
        scale = spread(activations)
        return score.div_(scale.masked_fill_(scale == 0, torch.nan))
    scales = _scales(score, space, by_kind=how.startswith("kind-"), mean=how.endswith("mean"))
    values, widths = score.numpy(), _widths(space)
    for sites, channels in _chunks(space):
        values[channels] /= np.repeat(scales[sites], widths[sites])
    return score


def _scales(score: torch.Tensor, space: ChannelSpace, by_kind: bool, mean: bool) -> np.ndarray:
    """The scale of every site, ``[sites]``."""
    count, total, m2 = np.zeros((3, len(space.sites)))
    values, widths = score.numpy(), _widths(space)
    with np.errstate(invalid="ignore", divide="ignore"):
        for sites, channels in _chunks(space):
            part, starts = values[channels], np.cumsum(widths[sites]) - widths[sites]
            finite = np.isfinite(part)
            if not finite.all():
                part = np.where(finite, part, 0)
            count[sites] = np.add.reduceat(finite, starts, dtype=np.float64)
            total[sites] = np.add.reduceat(part, starts)
            centred = part - np.repeat(total[sites] / count[sites], widths[sites])
            centred[~finite] = 0
            m2[sites] = np.add.reduceat(np.square(centred, out=centred), starts)
        if by_kind:
            kinds = {kind: number for number, kind in enumerate(dict.fromkeys(site.kind for site in space))}
            kind = np.array([kinds[site.kind] for site in space])
            kind_count, kind_total = (np.bincount(kind, x)[kind] for x in (count, total))
            shift = np.where(count > 0, total / count - kind_total / kind_count, 0)
            m2 = np.bincount(kind, m2 + count * shift**2)[kind]
            count, total = kind_count, kind_total
        scale = total / count if mean else np.sqrt(m2 / count)
    return np.where(scale > 0, scale, 1.0)


def _widths(space: ChannelSpace) -> np.ndarray:
    return np.array([site.width for site in space])


def _chunks(space: ChannelSpace) -> Iterator[tuple[slice, slice]]:
    """Runs of sites with about a million channels together, as slices of the sites and of the flat vector."""
    first = 0
    for number, site in enumerate(space.sites, start=1):
        end = site.offset + site.width
        if end - space.sites[first].offset >= _CHANNELS_AT_ONCE or number == len(space.sites):
            yield slice(first, number), slice(space.sites[first].offset, end)
            first = number

"""The map of a model: a row for every module kind, a column for every layer, and what lies in each cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from act.models.channels import ChannelSpace

BEFORE, AFTER = "in", "out"
"""The columns of what lies outside the decoder layers: embeddings before them, final norm and LM head after."""


@dataclass(frozen=True)
class Grid:
    """Where the sites of a channel space are.

    Attributes:
        space: the channel space.
        kinds: names of the rows, in the order of the model.
        places: names of the columns: ``in``, the numbers of the layers, ``out``.
        kind, place: row and column of every site, int64 ``[sites]``.
    """

    space: ChannelSpace
    kinds: list[str]
    places: list[str]
    kind: NDArray[np.int64]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, space: ChannelSpace) -> Grid:
        """The map of a channel space."""
        kinds = list(dict.fromkeys(site.kind for site in space))
        first = min((site.offset for site in space if site.layer is not None), default=0)
        layers = sorted({site.layer for site in space if site.layer is not None})
        outside = [site for site in space if site.layer is None]
        places = [
            *([BEFORE] if any(site.offset < first for site in outside) else []),
            *map(str, layers),
            *([AFTER] if any(site.offset >= first for site in outside) else []),
        ]
        row = {name: number for number, name in enumerate(kinds)}
        column = {name: number for number, name in enumerate(places)}
        names = [
            str(site.layer) if site.layer is not None else BEFORE if site.offset < first else AFTER for site in space
        ]
        return cls(
            space,
            kinds,
            places,
            np.array([row[site.kind] for site in space], dtype=np.int64),
            np.array([column[name] for name in names], dtype=np.int64),
        )

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """The flat index of the first channel of every site."""
        return np.array([site.offset for site in self.space], dtype=np.int64)

    def site_of(self, channels: torch.Tensor) -> NDArray[np.int64]:
        """The number of the site of each flat index."""
        return np.searchsorted(self.offsets, channels.numpy(), side="right") - 1

    def chosen(self, channels: torch.Tensor) -> NDArray[np.int64]:
        """How many of some channels each site has, int64 ``[sites]``."""
        return np.bincount(self.site_of(channels), minlength=len(self.kind)).astype(np.int64)

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """How many channels each site has, int64 ``[sites]``."""
        return np.array([site.width for site in self.space], dtype=np.int64)

    def by_site(self, values: torch.Tensor) -> NDArray[np.float64]:
        """The sum of finite values above 0 over the channels of each site, float64 ``[sites]``."""
        positive = values.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
        return np.add.reduceat(positive.numpy(), self.offsets, dtype=np.float64)

    def cells(self, by_site: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        """What the sites of each cell have together, float64 ``[kinds, places]``."""
        summed = np.zeros((len(self.kinds), len(self.places)))
        np.add.at(summed, (self.kind, self.place), by_site)
        return summed

    def experts(self) -> dict[str, list[int]]:
        """The sites of each expert, by the place and number of the expert (``"3 · 17"``)."""
        found: dict[str, list[int]] = {}
        for number, site in enumerate(self.space):
            if site.expert is not None:
                found.setdefault(f"{self.places[self.place[number]]} · {site.expert}", []).append(number)
        return found


def best_of_each(order: torch.Tensor, groups: NDArray[np.int64], most: int) -> torch.Tensor:
    """The first ``most`` channels of every group.

    Args:
        order: flat indices, best first, int64 ``[K]``.
        groups: the group of each of them, ``[K]``.
        most: how many of each.

    Returns:
        int64, in the order of ``order``.
    """
    by_group = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[by_group], return_index=True)
    rank = np.arange(len(by_group)) - np.repeat(starts, np.diff([*starts, len(by_group)]))
    return order[torch.from_numpy(np.sort(by_group[rank < most]))]


def distinct(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The channels of several lists, each once, sorted."""
    found: torch.Tensor = torch.cat([*parts]).unique()
    return found

"""Granularity: what is ranked as one, a single channel, a rotary pair, or a whole neuron or head with its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from act.core.errors import ActError, require_choice
from act.models.blocks import Attention, Mlp, Rows
from act.models.channels import ChannelSpace, Site

Granularity = Literal["channel", "rotary-pair", "neuron", "head"]


@dataclass(frozen=True)
class Segment:
    """Units of one kind in one place: all channels of ``site``, or the rows of ``channels``."""

    kind: str
    layer: int | None
    name: str
    site: Site | None = None
    channels: torch.Tensor | None = None
    """Flat indices, int64 ``[units, channels of each]``."""
    inputs: Rows = field(default_factory=dict)
    """Input columns that move with each unit."""

    def scores(self, values: torch.Tensor) -> torch.Tensor:
        """The score of every unit: the mean of its channels'; none if one of them has none."""
        if self.channels is None:
            assert self.site is not None
            return values[self.site.channels]
        return values[self.channels].mean(1)

    def __len__(self) -> int:
        """Units."""
        if self.channels is None:
            assert self.site is not None
            return self.site.width
        return len(self.channels)

    @property
    def size(self) -> int:
        """Channels of a unit."""
        return 1 if self.channels is None else self.channels.shape[1]

    def channels_of(self, units: torch.Tensor) -> torch.Tensor:
        """Flat indices of the channels of some units."""
        if self.channels is None:
            assert self.site is not None
            return units + self.site.offset
        return self.channels[units].flatten()


def segments(space: ChannelSpace, granularity: Granularity | Sequence[Granularity]) -> list[Segment]:
    """The units of a space, in order.

    ``neuron``: gate row, up row and down column. ``head``: query, key and value rows and the columns of ``o``; a
    key-value head goes with all the query heads that read it. ``rotary-pair``: two rows of ``q`` or ``k`` that
    position turns together. ``channel``: one channel. Several may be named: a channel belongs to the largest unit
    there is for it. Channels in no unit are ranked by themselves where ``channel`` or ``rotary-pair`` is named, but
    for the rows of a linear whose columns belong to units, which would cross them.

    Raises:
        ActError: an unknown name; a model in which no such unit is known.
    """
    names: list[str] = [granularity] if isinstance(granularity, str) else list(granularity)
    for name in names or [""]:
        require_choice("granularity", name, get_args(Granularity))
    if set(names) == {"channel"}:
        return [Segment(site.kind, site.layer, site.name, site) for site in space]
    found = [unit for block in space.blocks for unit in _units(space, block, names)]
    _require_found(found, names)
    if {"channel", "rotary-pair"} & set(names):
        taken = torch.zeros(len(space), dtype=torch.bool)
        for segment in found:
            assert segment.channels is not None
            taken[segment.channels.flatten()] = True
            for name in segment.inputs:
                taken[space.site(name).channels] = True
        for site in space:
            free = (~taken[site.channels]).nonzero()
            if len(free):
                found.append(Segment(site.kind, site.layer, site.name, channels=free + site.offset))
    return found


def _units(space: ChannelSpace, block: Attention | Mlp, names: Sequence[str]) -> list[Segment]:
    what = "neuron" if isinstance(block, Mlp) else "head"
    if what in names:
        inputs = block.inputs()
        (reader,) = inputs
        rows = [rows + space.site(name).offset for name, rows in block.rows().items()]
        layer = space.site(reader).layer
        return [Segment(what, layer, reader.rpartition(".")[0], channels=torch.cat(rows, dim=1), inputs=inputs)]
    if "rotary-pair" in names and isinstance(block, Attention):
        turned = [(space.site(name), pairs) for name, pairs in block.pairs()]
        return [Segment(site.kind, site.layer, site.name, channels=pairs + site.offset) for site, pairs in turned]
    return []


def _require_found(found: list[Segment], names: Sequence[str]) -> None:
    have = {segment.kind for segment in found}
    for name in names:
        if name in ("neuron", "head") and name not in have:
            raise ActError(
                f"no {name} of this model is known (its layout is not, or the profile was made before layouts were "
                "recorded); profile it again, or rank by channel"
            )
        if name == "rotary-pair" and not have & {"q", "k", "qkv", "head"}:
            raise ActError("no rotary embedding of this model is known; rank by channel or head instead")

"""Granularity: whether one unit is a channel, a rotary pair, a neuron or head with its columns, or an expert."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from act.core.errors import ActError, require_choice
from act.models.blocks import Attention, Experts, Mlp, Rows, Turned
from act.models.channels import ChannelSpace

log = logging.getLogger(__name__)

Granularity = Literal["channel", "rotary-pair", "neuron", "head", "expert", "routed-expert"]


@dataclass(frozen=True)
class Units:
    """Units of one kind in one place.

    Attributes:
        kind: module kind of the channels, or ``neuron``, ``head`` or ``expert``.
        layer: index of the decoder layer, None outside the stack.
        name: the site, or the module of the neurons, heads or experts.
        channels: flat indices, int64 ``[units, channels of each]``; a slice where each channel is a unit.
        inputs: site name -> the input columns that move with each unit, int64 ``[units, columns of each]``.
    """

    kind: str
    layer: int | None
    name: str
    channels: slice | torch.Tensor
    inputs: Rows = field(default_factory=dict)

    def scores(self, values: torch.Tensor) -> torch.Tensor:
        """The score of every unit, ``[units]``: the mean of its channels' scores; NaN if one of them has none."""
        found = values[self.channels]
        return found if isinstance(self.channels, slice) else found.mean(1)

    def __len__(self) -> int:
        """Number of units."""
        return self.channels.stop - self.channels.start if isinstance(self.channels, slice) else len(self.channels)

    @property
    def size(self) -> int:
        """Channels per unit."""
        return 1 if isinstance(self.channels, slice) else self.channels.shape[1]

    def channels_of(self, numbers: torch.Tensor) -> torch.Tensor:
        """Flat indices of the channels of the units with these numbers."""
        if isinstance(self.channels, slice):
            start: int = self.channels.start
            return numbers + start
        return self.channels[numbers].flatten()


def units_of(space: ChannelSpace, granularity: Granularity | Sequence[Granularity]) -> list[Units]:
    """The units of a space, in order.

    ``neuron``: gate row, up row and down column. ``head``: query, key and value rows and the columns of ``o``; a
    key-value head goes with all the query heads that read it. ``expert``: all rows of an expert's gate, up and down;
    ``routed-expert``: with its row of the router. ``rotary-pair``: two rows of ``q`` or ``k`` that position rotates
    together. ``channel``: one channel. Several may be named; a channel then belongs to the largest unit that holds it.
    If ``channel`` or ``rotary-pair`` is named, channels in no unit are ranked by themselves, except for the rows of a
    linear whose columns belong to units, which would cross them.

    Raises:
        ActError: an unknown name; a model in which no such unit is known.
    """
    names: list[str] = [granularity] if isinstance(granularity, str) else list(granularity)
    for name in names or [""]:
        require_choice("granularity", name, get_args(Granularity))
    if set(names) == {"channel"}:
        return [Units(site.kind, site.layer, site.name, site.channels) for site in space]
    whole = [units for block in space.blocks if isinstance(block, Experts) for units in _experts(space, block, names)]
    taken = torch.zeros(len(space), dtype=torch.bool)
    for units in whole:
        taken[units.channels] = True
    found = [
        units
        for block in space.blocks
        if not isinstance(block, Experts)
        for units in _units_of_block(space, block, names)
        if not (whole and taken[units.channels_of(torch.tensor([0]))].any())
    ]
    found += whole
    _require_known(space, found, names)
    if {"channel", "rotary-pair"} & set(names):
        for units in found:
            taken[units.channels] = True
            for name in units.inputs:
                taken[space.site(name).channels] = True
        for site in space:
            free = (~taken[site.channels]).nonzero()
            if len(free):
                found.append(Units(site.kind, site.layer, site.name, free + site.offset))
    return found


def _units_of_block(space: ChannelSpace, block: Attention | Turned | Mlp, names: Sequence[str]) -> list[Units]:
    what = "neuron" if isinstance(block, Mlp) else "head"
    if what in names and not isinstance(block, Turned):
        inputs = block.inputs()
        (reader,) = inputs
        rows = [rows + space.site(name).offset for name, rows in block.rows().items()]
        layer = space.site(reader).layer
        return [Units(what, layer, reader.rpartition(".")[0], torch.cat(rows, dim=1), inputs)]
    if "rotary-pair" in names and not isinstance(block, Mlp):
        turned = [(space.site(name), pairs) for name, pairs in block.pairs()]
        return [Units(site.kind, site.layer, site.name, pairs + site.offset) for site, pairs in turned]
    return []


def _experts(space: ChannelSpace, block: Experts, names: Sequence[str]) -> Iterator[Units]:
    """The experts of a layer, with their rows of the router where that is asked for and known."""
    routed = "routed-expert" in names and block.router is not None
    if not (routed or "expert" in names):
        return
    found = [[space.site(name) for name in block.sites(expert)] for expert in range(block.count)]
    rows = [torch.cat([torch.arange(site.offset, site.offset + site.width) for site in sites]) for sites in found]
    channels = torch.stack(rows)
    if routed and block.router:
        scores = torch.arange(block.count) + space.site(block.router).offset
        channels = torch.cat([channels, scores[:, None]], dim=1)
    yield Units("expert", found[0][0].layer, block.name, channels)


def _require_known(space: ChannelSpace, found: list[Units], names: Sequence[str]) -> None:
    have = {units.kind for units in found}
    blocks = {type(block) for block in space.blocks}
    for name in names:
        if name in ("neuron", "head"):
            _require_verified(space, name, known=(Mlp if name == "neuron" else Attention) in blocks)
        if name in ("expert", "routed-expert") and "expert" not in have:
            raise ActError(
                f"granularity {name} ranks whole experts, but this model has none that are known"
                f"{' together with their router' if name == 'routed-expert' else ''}; rank by channel or neuron instead"
            )
        if name == "rotary-pair" and not have & {"q", "k", "qkv", "head"}:
            raise ActError("no rotary embedding of this model is known; rank by channel or head instead")


def _require_verified(space: ChannelSpace, name: str, *, known: bool) -> None:
    """Raise :class:`ActError` where there are none of these units, and warn where a part of the model has none."""
    kind = "o" if name == "head" else "down"
    refused = [(space.site(reader), why) for reader, why in space.refused.items() if space.site(reader).kind == kind]
    if not known and refused:
        raise ActError(f"no {name} of this model can be ranked: {refused[0][1]}; rank by channel")
    if not known:
        if space.coverage is None:
            raise ActError(f"the profile is of an earlier version, which did not note {name}s; profile it again")
        raise ActError(
            f"no {name} of this model is known, since no module of it is built as those are; rank by channel"
        )
    if measured := [why for site, why in refused if site.layouts]:
        log.warning("%d modules have no %ss that can be ranked; of the first, %s", len(measured), name, measured[0])

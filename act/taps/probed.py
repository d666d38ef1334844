"""What a probe has shown of one model: the layouts of its sites, and which dimensions of its heads turn together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from act.core.errors import ActError
from act.models.blocks import Attention, Block
from act.models.channels import ChannelSpace
from act.models.layout import PLAIN
from act.models.rotary import RotaryPairs
from act.taps.layouts import Unread, learn
from act.taps.probe import Recording, probe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probed:
    """A model as its probe has shown it.

    Attributes:
        space: the channel space, with layouts and rotary pairs.
        unread: why a site has no layout, by name.
        recording: what the probe saw; None for a model that cannot be probed, whose sites are taken as plain.
    """

    space: ChannelSpace
    unread: Mapping[str, str]
    recording: Recording | None

    @classmethod
    def of(cls, model: nn.Module, space: ChannelSpace) -> Probed:
        """Probe a model with this channel space."""
        sites = {site.name: site for site in space}
        recording = probe(model, set(sites))
        if isinstance(recording, str):
            log.info("%s cannot be probed, so its sites are taken as %s: %s", type(model).__name__, PLAIN, recording)
            plain = tuple(replace(site, layouts=(PLAIN,)) for site in space)
            return cls(replace(space, sites=plain), {}, None)
        _refuse_other_lengths(model, recording)
        found = learn(model, sites, recording)
        unread = {name: layouts.reason for name, layouts in found.items() if isinstance(layouts, Unread)}
        with_layouts = tuple(
            site if isinstance(layouts := found[site.name], Unread) else replace(site, layouts=layouts)
            for site in space
        )
        blocks = tuple(_turned(block, recording.pairs) for block in space.blocks)
        return cls(replace(space, sites=with_layouts, blocks=blocks), unread, recording)


def _refuse_other_lengths(model: nn.Module, recording: Recording) -> None:
    """Raise :class:`ActError` if most sites give another number of rows than there are tokens."""
    batch, length = recording.ids.shape
    outputs = [calls[0] for calls in recording.outputs.values() if isinstance(calls[0], torch.Tensor)]
    lengths = Counter(output.shape[1] for output in outputs if output.dim() == 3 and len(output) == batch)
    if lengths and (most := lengths.most_common(1)[0])[0] > length and 2 * most[1] > len(outputs):
        raise ActError(
            f"{type(model).__name__} turns {length} tokens into {most[0]} positions, so its outputs have no row for "
            "each token (virtual tokens of an adapter, as in prompt tuning, padding to blocks, or several streams); "
            "profile the model without them"
        )


def _turned(block: Block, pairs: Mapping[str, tuple[RotaryPairs, int]]) -> Block:
    """An attention module with the rotary pairs that the probe saw."""
    if not isinstance(block, Attention):
        return block
    rotary, width = pairs.get(block.q.rpartition(".")[0], (None, 0))
    return replace(block, rotary=rotary, rotary_dim=width)

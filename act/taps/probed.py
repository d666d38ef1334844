"""What a probe has shown of one model: the layouts of its sites, and which dimensions of its heads turn together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from act.core.errors import ActError
from act.models.blocks import Attention, Block
from act.models.calls import has_decoder
from act.models.channels import ChannelSpace
from act.models.fused import joined
from act.models.layout import PLAIN, Layout
from act.models.rotary import RotaryPairs
from act.models.sites import Site
from act.models.trials import tried
from act.models.views import LanguageView
from act.taps.held_probe import BY_TOKEN, learn_held
from act.taps.holders import Holder, holders_of, require_known_kernels
from act.taps.layouts import Beside, Unread, growing, learn
from act.taps.padded import blocks_of, whole_blocks
from act.taps.patch_products import is_matrix
from act.taps.patches import Samples, learn_patches
from act.taps.probe import Recording, probe, probe_with
from act.taps.verified import Calls, unverified, verified

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probed:
    """A model as its probe has shown it.

    Attributes:
        space: the channel space, with layouts and rotary pairs.
        unread: why a site has no layout, by name.
        holders: modules that use parameters of sites without calling a module for each.
        beside: calls that are not over tokens, of modules that are also called over tokens, by name.
        recording: what the probe saw; None for a model that cannot be probed, whose sites are taken as plain.
    """

    space: ChannelSpace
    unread: Mapping[str, str]
    holders: tuple[Holder, ...]
    beside: Mapping[str, Beside]
    recording: Recording | None

    @classmethod
    def of(cls, model: nn.Module, space: ChannelSpace, images: Samples = ()) -> Probed:
        """Probe a model with this channel space.

        Args:
            model: the model.
            space: its channel space.
            images: inputs with images (see :meth:`act.data.images.Vision.samples`), for a run that reads some.

        Raises:
            ActError: a model with positions that are neither tokens nor padding; experts that cannot be read.
        """
        with tried(model):
            return cls._of(model, space, images)

    @classmethod
    def _of(cls, model: nn.Module, space: ChannelSpace, images: Samples) -> Probed:
        shared = {site.name: parts for site, parts in joined(space)}
        sites = {site.name: site for site, _ in joined(space) if site.scales is None}
        holders = holders_of(model, space)
        require_known_kernels(model, holders)
        held = {site.name for holder in holders for bank in holder.banks for site in bank.sites}
        called = {name: site for name, site in sites.items() if name not in held}
        with Calls.noted(model, space) as calls:
            recording = probe(model, set(called))
        if isinstance(recording, str):
            if has_decoder(model):
                raise ActError(
                    f"{type(model).__name__} does not run with input_ids and decoder_input_ids alone, so it cannot be "
                    f"said which of its outputs belong to which text ({recording})"
                )
            log.warning("%s cannot be probed, so its sites are taken as %s: %s", type(model).__name__, PLAIN, recording)
            columns = [name for name in called if isinstance(model.get_submodule(name), nn.Conv1d)]
            known = [part for name in sites.keys() - columns for part in shared[name]]
            read = {site.name: (BY_TOKEN if site.name in held else PLAIN,) for site in known}
            plain = tuple(replace(site, layouts=read.get(site.name, ())) for site in space)
            space = unverified(space, f"the model cannot be probed ({recording}), so nothing shows what its units are")
            return cls(replace(space, sites=plain), dict.fromkeys(columns, NOT_PROBED), tuple(holders), {}, None)
        if whole := blocks_of(model, set(called), recording):
            for lengths in whole_blocks(model, recording, whole):
                with Calls.noted(model, space) as noted:
                    again = probe(model, set(called), lengths)
                if not isinstance(again, str):
                    recording, calls = replace(again, blocks=whole), noted
                    break
        unreached = {name: site for name, site in called.items() if name not in recording.outputs}
        towers = tuple(f"{name}." for name in model.beside) if isinstance(model, LanguageView) else ()
        of_images, holders = _of_images(model, unreached, holders, towers, images) if images else ({}, holders)
        uncalled = [site for name, site in unreached.items() if name not in of_images and site.parameters]
        used = holders_of(model, (), [site for site in uncalled if _is_linear_or_conv(model, site)])
        used, of_uncalled = learn_held(model, used, recording)
        holders, of_held = learn_held(model, holders, recording)
        found, beside = learn(model, called, recording)
        found |= growing(model, found, beside, recording)
        found |= of_held | of_images
        if images:
            recording.also(probe_with(model, {*recording.sums, *recording.sums.values()}, images[0]))
        found |= {name: layouts for name, layouts in of_uncalled.items() if not isinstance(layouts, Unread)}
        found = {part.name: found[name] for name, parts in shared.items() for part in parts if name in found}
        unread = {name: layouts.reason for name, layouts in found.items() if isinstance(layouts, Unread)}
        shown = {part.name for name in of_images for part in shared[name]}
        dark = (name for name in unread if name.startswith(towers) and name not in shown)
        unread |= dict.fromkeys(dark, _NOT_REACHED.reason if images else "it does not read text")
        with_layouts = tuple(
            site if isinstance(layouts := found.get(site.name, _SCALES), Unread) else replace(site, layouts=layouts)
            for site in space
        )
        blocks = tuple(_turned(block, recording.pairs) for block in space.blocks)
        space = replace(space, sites=with_layouts, blocks=blocks)
        space = verified(model, space, calls.over_tokens(beside), recording.ids, recording.source)
        return cls(space, unread, (*holders, *used), beside, recording)


NOT_PROBED = "the model could not be probed, which would show which of its columns are tokens"
_NOT_REACHED = Unread("no image reaches it, or not as a module")
_ONLY_WITH_IMAGES = Unread("only texts with images reach it, so that no probe of text shows its layout")
_SCALES = Unread("it scales another site")


def _of_images(
    model: nn.Module, unreached: Mapping[str, Site], holders: list[Holder], towers: tuple[str, ...], images: Samples
) -> tuple[dict[str, tuple[Layout, ...] | Unread], list[Holder]]:
    """The layouts of sites that no text reaches but images do, or why they have none; and the other holders."""
    apart = [holder for holder in holders if not holder.routed and f"{holder.name}.".startswith(towers)]
    held = {site.name: site for holder in apart for bank in holder.banks for site in bank.sites}
    matrices = {name: site for name, site in held.items() if is_matrix(site)}
    found = dict.fromkeys(held, _NOT_REACHED) | learn_patches(model, {**unreached, **matrices}, images)
    outside = (name for name in found if towers and not name.startswith(towers))
    found |= dict.fromkeys(outside, _ONLY_WITH_IMAGES)
    return found, [holder for holder in holders if holder not in apart]


def _is_linear_or_conv(model: nn.Module, site: Site) -> bool:
    return isinstance(model.get_submodule(site.name), (nn.Linear, nn.Conv1d))


def _turned(block: Block, pairs: Mapping[str, tuple[RotaryPairs, int]]) -> Block:
    """An attention module with the rotary pairs that the probe saw."""
    if not isinstance(block, Attention):
        return block
    return block.turning(*pairs.get(block.q.rpartition(".")[0], (None, 0)))

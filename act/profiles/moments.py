"""Streaming statistics of every channel of a model, in one flat arena."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from act.core.errors import ActError
from act.core.plain import LARGEST
from act.models.channels import ChannelSpace
from act.models.fused import joined
from act.models.sites import Site
from act_kernels import PAIR, SWAPPED_PAIR, empty_moments, merge_moments
from act_kernels.statistics import COUNT, MAX_ABS, MEAN, NONFINITE, POSITIVE, STATISTICS

Place = torch.device | str | None


def blocks_of(pair: bool, swap: bool) -> tuple[str, ...]:
    """The names of the blocks along the first axis of an arena: of a pair, or of one with swapped outputs."""
    return SWAPPED_PAIR if swap else PAIR if pair else ()


class Moments:
    """The arena of one run: float64 ``[7, N]`` for one model, ``[3, 7, N]`` for a pair (donor, target, difference).

    Of a pair with swapped outputs it is ``[5, 7, N]``: what the donor's module gives on the target's own input, minus
    the target's output (swap), and that times the difference (product).

    Its rows are :data:`act_kernels.STATISTICS`. The block of a site is a view into the arena, which kernels update in
    place. A model spread over devices has one arena on each, for the sites that run there, until :meth:`gather`.

    Args:
        space: the channel space.
        pair: hold the moments of donor, target and difference.
        swap: of a pair, hold those of swap and product, too.
        device: the device of the arena, or the device of each site's part by the name of the site
            (:func:`act.models.placement.run_devices`).
    """

    def __init__(
        self,
        space: ChannelSpace,
        pair: bool = False,
        device: Place | Mapping[str, Place] = None,
        *,
        swap: bool = False,
    ) -> None:
        self.space = space
        self.pair, self.swap = pair, swap
        places = device if isinstance(device, Mapping) else {site.name: device for site in space}
        widths: dict[Place, int] = {}
        starts = {}
        for site in space:
            starts[site.name] = widths.setdefault(places[site.name], 0)
            widths[places[site.name]] += site.width
        self.blocks = blocks_of(pair, swap)
        lead = (len(self.blocks),) if self.blocks else ()
        self._arenas = {place: empty_moments(width, *lead, device=place) for place, width in widths.items()}
        self._blocks = {
            site.name: self._arenas[places[site.name]][..., starts[site.name] : starts[site.name] + site.width]
            for site in space
        }
        self._shared = self._shared_blocks()
        self._segments: dict[str, torch.Tensor] = {}

    @property
    def arena(self) -> torch.Tensor:
        """All channels in flat order, ``[7, N]``, ``[3, 7, N]`` or ``[5, 7, N]``; a copy if on several devices."""
        first, *others = self._arenas.values()
        if not others:
            return first
        return torch.cat([self._blocks[site.name].to(first.device) for site in self.space], dim=-1)

    @property
    def arenas(self) -> list[torch.Tensor]:
        """The arena of each device, in a fixed order; together they hold each number once."""
        return list(self._arenas.values())

    def fill(self, arena: torch.Tensor) -> None:
        """Copy the numbers of a flat :attr:`arena` into the blocks of the sites."""
        for site in self.space:
            self.block(site.name).copy_(arena[..., site.channels])

    def gather(self) -> None:
        """Join the arenas of several devices into one, on the device of the first site."""
        arena = self.arena
        self._arenas = {arena.device: arena}
        self._blocks = {site.name: arena[..., site.channels] for site in self.space}
        self._shared = self._shared_blocks()
        self._segments.clear()

    def block(self, site: str) -> torch.Tensor:
        """The view of one site, ``[7, C]``, ``[3, 7, C]`` or ``[5, 7, C]``, on the device where the site runs.

        The path of a fused projection gives that of all sites which share it.
        """
        found = self._blocks.get(site)
        return self._shared[site] if found is None else found

    def segments(self, sites: Sequence[Site]) -> torch.Tensor:
        """The blocks of sites that lie a fixed number of channels apart, as one view ``[7, E, C]`` or ``[…, 7, E, C]``.

        Such are the sites of all experts of a layer in one role.

        Raises:
            ActError: they are on several devices, or lie otherwise.
        """
        known = self._segments.get(sites[0].name)
        if known is None:
            known = self._segments[sites[0].name] = self._view(sites)
        return known

    def _shared_blocks(self) -> dict[str, torch.Tensor]:
        """The blocks of fused projections; their sites lie one after the other, on one device."""
        found = {}
        for whole, parts in joined(self.space):
            if len(parts) > 1:
                first = self._blocks[parts[0].name]
                found[whole.name] = first.as_strided((*first.shape[:-1], whole.width), first.stride())
        return found

    def _view(self, sites: Sequence[Site]) -> torch.Tensor:
        blocks = [self.block(site.name) for site in sites]
        first = blocks[0]
        step = blocks[1].storage_offset() - first.storage_offset() if len(sites) > 1 else 0
        for number, (site, block) in enumerate(zip(sites, blocks, strict=True)):
            place = block.storage_offset() - first.storage_offset()
            if block.device != first.device or place != number * step or block.shape != first.shape:
                raise ActError(
                    f"{site.name} and {sites[0].name} are on different devices, or of different sizes; "
                    "keep the experts of a layer together on one device"
                )
        *lead, channels = first.shape
        return first.as_strided((*lead, len(sites), channels), (*first.stride()[:-1], step, 1))

    def fill_scaled(self, left_out: Collection[str] = ()) -> None:
        """Give each site that scales another the moments of the channels that its values scale, several as one.

        They replace what it had, so that this may be repeated as the others grow. Its swap and product stay empty: what
        the donor's values would give on the target's input is not that of the channels that they scale.

        Args:
            left_out: names of the sites that were not to be measured.
        """
        for site in self.space:
            if site.scales is not None and site.name not in left_out:
                block, others = (self.block(name) for name in (site.name, site.scales))
                if self.swap:
                    block, others = block[: len(PAIR)], others[: len(PAIR)]
                several = others.to(block.device).unflatten(-1, (site.width, -1))
                block.copy_(several[..., 0])
                for other in several.unbind(-1)[1:]:
                    merge_moments(block, other)

    def empty_like(self) -> Moments:
        """Empty moments of the same space and blocks, on the CPU."""
        return Moments(self.space, pair=self.pair, swap=self.swap)

    def merge(self, other: Moments) -> None:
        """Merge the moments of a run over other text, by the formula of Chan et al.; exact up to float64 rounding.

        See :func:`act_kernels.merge_moments`.
        """
        if len(self._arenas) == 1:
            merge_moments(self.arena, other.arena.to(self.arena.device))
            return
        for name, block in self._blocks.items():
            merge_moments(block, other.block(name).to(block.device))

    def merge_repeated(self, other: Moments, times: int) -> None:
        """Merge moments of the same space and devices, as if the text behind them had been read several times."""
        factors = torch.full((len(STATISTICS), 1), float(times), dtype=torch.float64)
        factors[[MEAN, MAX_ABS]] = 1
        for mine, theirs in zip(self.arenas, other.arenas, strict=True):
            merge_moments(mine, theirs * factors.to(theirs.device))

    def nonfinite(self) -> dict[str, int]:
        """How many NaN and infinite values were left out, by site; for a pair, the largest number of any block.

        Sites without such values are not listed.
        """
        left_out = self.arena[..., NONFINITE, :].cpu().numpy()
        counts = np.add.reduceat(left_out, [site.offset for site in self.space], axis=-1)
        most = counts.reshape(-1, len(self.space.sites)).max(0).tolist()
        return {site.name: int(count) for site, count in zip(self.space, most, strict=True) if count}

    def rows_counted(self, site: str) -> int:
        """How many rows (tokens, or tokens times heads) the site was fed, including rows with non-finite values."""
        block = self.block(site)
        first = block if block.dim() == 2 else block[0]
        return int(first[COUNT, 0] + first[NONFINITE, 0])


def require_moments(arena: torch.Tensor) -> None:
    """Raise ValueError unless an arena ``[…, 7, N]`` holds what can be counted.

    Numbers of values are whole and at least 0; means are numbers; deviations and absolute values are at least 0.
    """
    for row, name in enumerate(STATISTICS):
        values = arena[..., row, :]
        if row in (COUNT, POSITIVE, NONFINITE):
            good = (values >= 0) & (values <= LARGEST) & (values == values.floor())
        else:
            good = values == values if row == MEAN else values >= 0
        if not good.all():
            raise ValueError(f"its {name} holds {float(values[~good][0])}, which is no such statistic")
    if (arena[..., POSITIVE, :] > arena[..., COUNT, :]).any():
        raise ValueError("it has more positive values than values")

"""Streaming statistics of every channel of a model, in one flat arena."""

from __future__ import annotations

import torch

from act.channels import ChannelSpace
from act_kernels import PAIR, empty_moments, merge_moments
from act_kernels.statistics import COUNT, NONFINITE


class Moments:
    """The arena of one run: float64 ``[7, N]`` for one model, ``[3, 7, N]`` for a pair (donor, target, difference).

    Rows are :data:`act_kernels.STATISTICS`; a site's block is a view into it, which kernels update in place.
    """

    def __init__(self, space: ChannelSpace, pair: bool = False, device: torch.device | str | None = None) -> None:
        self.space = space
        self.arena = empty_moments(len(space), *((len(PAIR),) if pair else ()), device=device)
        self._blocks = {site.name: self.arena[..., site.channels] for site in space}

    @property
    def pair(self) -> bool:
        """Whether donor, target and difference are held."""
        return self.arena.dim() == 3

    def block(self, site: str) -> torch.Tensor:
        """The view of one site, ``[7, C]`` or ``[3, 7, C]``."""
        return self._blocks[site]

    def merge(self, other: Moments) -> None:
        """Add what another run over other text measured; exact up to float64 rounding, in any order."""
        merge_moments(self.arena, other.arena.to(self.arena.device))

    def nonfinite(self) -> dict[str, int]:
        """NaN and infinite values met, by site, for the sites that met any (the largest over a pair's models)."""
        counts = {site.name: int(self.block(site.name)[..., NONFINITE, :].sum(-1).max()) for site in self.space}
        return {name: count for name, count in counts.items() if count}

    def rows_counted(self, site: str) -> int:
        """Rows that the site was fed, non-finite values included."""
        block = self.block(site)
        first = block if block.dim() == 2 else block[0]
        return int(first[COUNT, 0] + first[NONFINITE, 0])

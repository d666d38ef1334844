"""Which sites may be chosen from: those that are included, not excluded, and own their tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import torch

from act.core.errors import ActError
from act.models.channels import ChannelSpace
from act.models.sites import Site
from act.ranking.granularity import Units
from act.ranking.selection import scored_of


@dataclass(frozen=True)
class Eligible:
    """The sites of a space that may be chosen from.

    Attributes:
        sites: the eligible sites, in model order.
        excluded: names of the sites that ``exclude`` covers.
    """

    space: ChannelSpace
    sites: tuple[Site, ...]
    excluded: frozenset[str]

    @classmethod
    def of(cls, space: ChannelSpace, include: Iterable[str], exclude: Iterable[str]) -> Eligible:
        """The sites that ``include`` covers (all, if it is empty) and ``exclude`` does not.

        Both hold module kinds or patterns of site names. Sites without parameters of their own are never eligible.

        Raises:
            ActError: a word that covers no site; no site is left.
        """
        included, excluded = space.covered(include), space.covered(exclude)
        sites = [site for site in space if site.parameters and site.name not in excluded]
        eligible = tuple(site for site in sites if not included or site.name in included)
        if not eligible:
            raise ActError("include and exclude leave no module to rank")
        return cls(space, eligible, frozenset(excluded))

    def unmeasured(self, values: torch.Tensor, starved: Set[str] = frozenset()) -> dict[str, int]:
        """How many eligible channels, ``starved`` sites aside, have no score in ``values`` ``[N]``, by module kind."""
        found: dict[str, int] = {}
        if scored_of(values) < len(values):
            missing = values.isnan()
            for site in self.sites:
                if site.name not in starved and (count := int(missing[site.channels].count_nonzero())):
                    found[site.kind] = found.get(site.kind, 0) + count
        return found

    def leave_out_others(self, values: torch.Tensor) -> None:
        """Set ``values`` ``[N]`` to NaN, in place, wherever a channel is not eligible."""
        names = {site.name for site in self.sites}
        for site in self.space:
            if site.name not in names:
                values[site.channels] = torch.nan

    def require_columns(self, units: Sequence[Units]) -> None:
        """Raise :class:`ActError` if units that are ranked would move columns of an excluded module."""
        if not self.excluded:
            return
        ranked = torch.zeros(len(self.space), dtype=torch.bool)
        for site in self.sites:
            ranked[site.channels] = True
        for one in units:
            for name in one.inputs:
                if name in self.excluded and ranked[one.channels].all(1).any():
                    raise ActError(
                        f"{name} is excluded, but its columns move with each {one.kind} that it reads; exclude the "
                        "modules before it too, or rank by channel"
                    )

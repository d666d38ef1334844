"""What modules return: the channels of one site, or of several that share a fused projection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from act.models.channels import ChannelSpace
from act.models.fused import joined
from act.models.sites import Site


@dataclass(frozen=True)
class Output:
    """What one module returns.

    Attributes:
        site: all its channels, as if they were of one site, called as the module is.
        parts: the sites to measure.
        together: whether all its outputs are measured, in the order of the channels, so that they are read at once.
    """

    site: Site
    parts: tuple[Site, ...]
    together: bool

    def of_parts(self, rows: torch.Tensor) -> Iterator[tuple[Site, torch.Tensor]]:
        """Each part with its channels ``[R, C]`` of the module's outputs; copied where they lie in runs."""
        for part in self.parts:
            start, stop, step, run = part.columns or (0, self.site.width, 1, 1)
            if run == 1:
                yield part, rows[:, start:stop:step]
            else:
                first, places = start // step * step, start % step
                runs = rows[:, first:stop].unflatten(1, (-1, step))
                yield part, runs[:, :, places : places + run].flatten(1)


def outputs_of(space: ChannelSpace, names: set[str]) -> Iterator[Output]:
    """The modules behind the sites of these names, in the order of the space."""
    for site, parts in joined(space):
        wanted = tuple(part for part in parts if part.name in names)
        in_order = all(part.columns is None or part.columns[2:] == (1, 1) for part in parts)
        starts = [part.columns[0] for part in parts if part.columns is not None]
        if wanted:
            yield Output(site, wanted, wanted == parts and in_order and starts == sorted(starts))

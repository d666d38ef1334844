"""Coverage: how much of a model lies behind channels, so that it can be measured and transferred."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from act.core.plain import Label, Natural
from act.models.sites import Site


@dataclass(frozen=True)
class Coverage:
    """How many values of parameters lie behind channels.

    Attributes:
        covered: by module kind.
        uncovered: by parameter, of those that are not covered, or not as a whole.

    >>> coverage = act.ChannelSpace.from_model(model).coverage
    >>> coverage.share, coverage.uncovered
    (1.0, {})
    """

    covered: dict[Label, Natural]
    uncovered: dict[Label, Natural]

    @classmethod
    def of(cls, parameters: Mapping[str, torch.Tensor], sites: Iterable[Site]) -> Coverage:
        """The coverage of a model with these parameters (meta tensors are fine) and sites."""
        left = {name: parameter.numel() for name, parameter in parameters.items()}
        covered: dict[str, int] = {}
        sizes: dict[object, int] = {}  # the slices of all experts have one size
        for site in sites:
            for part in site.parameters:
                alike = (part.name, part.dim, part.rows, part.span, part.expert is None)
                if alike not in sizes:
                    sizes[alike] = part.part_of(parameters[part.name].detach()).numel()
                left[part.name] -= sizes[alike]
                covered[site.kind] = covered.get(site.kind, 0) + sizes[alike]
        return cls(covered, {name: size for name, size in left.items() if size})

    @property
    def share(self) -> float:
        """The covered share of all values, 0 to 1."""
        behind = sum(self.covered.values())
        return behind / max(1, behind + sum(self.uncovered.values()))

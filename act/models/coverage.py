"""Coverage: how much of a model lies behind channels, so that it can be measured and transferred."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from act.core.plain import Label, Natural
from act.models.sites import ParameterSlice, Site

OTHER_ROWS = "some of its rows belong to no channel, such as those of experts that pass on what they get"
_NUMBER = re.compile(r"(?<![^.\[])\d+(?![^.\]])")  # a whole part of a name, or in brackets


@dataclass(frozen=True)
class Coverage:
    """How many values of parameters lie behind channels.

    Attributes:
        covered: by module kind.
        uncovered: by parameter, of those that are not covered, or not as a whole.
        reasons: why, by parameter; empty in files of earlier versions.

    >>> coverage = act.ChannelSpace.from_model(model).coverage
    >>> coverage.share, coverage.uncovered
    (1.0, {})
    """

    covered: dict[Label, Natural]
    uncovered: dict[Label, Natural]
    reasons: dict[Label, str] = field(default_factory=dict)

    @classmethod
    def of(cls, parameters: Mapping[str, torch.Tensor], sites: Iterable[Site], reasons: Mapping[str, str]) -> Coverage:
        """The coverage of a model with these parameters (meta tensors are fine) and sites.

        ``reasons`` say why some parameters have no site; of others, some rows have none.
        """
        left = {name: parameter.numel() for name, parameter in parameters.items()}
        covered: dict[str, int] = {}
        sizes = _Sizes(parameters)
        for site in sites:
            for part in site.parameters:
                left[part.key] -= sizes.of(part)
                covered[site.kind] = covered.get(site.kind, 0) + sizes.of(part)
        uncovered = {name: size for name, size in left.items() if size}
        return cls(covered, uncovered, {name: reasons.get(name, OTHER_ROWS) for name in uncovered})

    def renamed(self, names: Mapping[str, str]) -> Coverage:
        """The same with other names of parameters."""
        uncovered = {names[name]: size for name, size in self.uncovered.items()}
        return replace(self, uncovered=uncovered, reasons={names[name]: why for name, why in self.reasons.items()})

    @property
    def why(self) -> dict[str, str]:
        """The reasons by the names that :func:`grouped` gives."""
        return grouped_reasons(self.reasons)

    @property
    def total(self) -> int:
        """Values of all parameters."""
        return sum(self.covered.values()) + sum(self.uncovered.values())

    @property
    def share(self) -> float:
        """The covered share of all values, 0 to 1."""
        return sum(self.covered.values()) / max(1, self.total)


def with_values(parameters: Mapping[str, torch.Tensor], sites: Iterable[Site]) -> list[Site]:
    """The sites, each with the number of values behind its channels."""
    sizes = _Sizes(parameters)
    return [replace(site, values=sum(map(sizes.of, site.parameters))) for site in sites]


def grouped(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes summed over names that differ in numbers only, largest first.

    >>> from act.models.coverage import grouped
    >>> grouped({"norm.scale": 8, "layers.0.experts[1].sink": 4, "layers.1.experts[0].sink": 6})
    {'layers.*.experts[*].sink': 10, 'norm.scale': 8}
    """
    found: dict[str, int] = {}
    for name, size in sizes.items():
        pattern = _NUMBER.sub("*", name)
        found[pattern] = found.get(pattern, 0) + size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def grouped_reasons(reasons: Mapping[str, str]) -> dict[str, str]:
    """Reasons by the names that :func:`grouped` gives."""
    return {_NUMBER.sub("*", name): reason for name, reason in reasons.items()}


class _Sizes:
    """The numbers of values of slices; those of all experts in one parameter are alike."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = parameters
        self._known: dict[object, int] = {}

    def of(self, part: ParameterSlice) -> int:
        """How many values a slice has."""
        alike = (part.key, part.dim, part.rows, part.span, part.run, part.expert is None)
        if alike not in self._known:
            self._known[alike] = part.part_of(self._parameters[part.key].detach()).numel()
        return self._known[alike]

"""How much of a model a profile measured: the share of its parameters behind channels that were counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from act.models.coverage import grouped
from act.profiles.statistics import PairStatistics

if TYPE_CHECKING:
    from act.profiles.profile import Profile


@dataclass(frozen=True)
class Measured:
    """The share of a model's parameters (of their values) behind channels that were counted, in both models of a pair.

    Attributes:
        share: of all parameters, 0 to 1.
        kinds: the part of it behind the channels of each module kind.
        uncovered: values behind no channel, by parameter name with ``*`` for numbers, largest first.
        reasons: why, by the same names; empty for files of earlier versions.
        unreached: values behind channels that were never counted, by site name with ``*`` for numbers, largest first.
        excluded: the share behind channels that were not to be measured (``--include``, ``--exclude``).
    """

    share: float
    kinds: dict[str, float]
    uncovered: dict[str, int]
    reasons: dict[str, str]
    unreached: dict[str, int]
    excluded: float

    @classmethod
    def of(cls, profile: Profile) -> Measured | None:
        """What a profile measured; None for a file of an earlier version, which does not know sizes.

        >>> from act.profiles.coverage import Measured
        >>> Measured.of(act.profile(model, corpus)).share
        1.0
        """
        coverage, space = profile.space.coverage, profile.space
        if coverage is None or any(site.values is None for site in space):
            return None
        sides = (profile.donor, profile.target) if isinstance(profile, PairStatistics) else (profile,)
        counted = np.logical_and.reduce([(side.count > 0).cpu().numpy() for side in sides])
        by_site = np.add.reduceat(counted, [site.offset for site in space], dtype=np.int64).tolist()
        excluded = profile.left_out
        total = max(1, coverage.total)
        measured: dict[str, int] = {}
        missing: dict[str, int] = {}
        left_out = 0
        for site, seen in zip(space, by_site, strict=True):
            values = site.values or 0
            behind = values * seen // site.width
            measured[site.kind] = measured.get(site.kind, 0) + behind
            if site.name in excluded:
                left_out += values
            elif behind < values:
                missing[site.name] = values - behind
        kinds = {kind: values / total for kind, values in measured.items() if values}
        share, uncovered = sum(measured.values()) / total, grouped(coverage.uncovered)
        return cls(share, kinds, uncovered, coverage.why, grouped(missing), left_out / total)

    @property
    def gap(self) -> str | None:
        """The largest gap as a phrase; None if there is none. What was excluded on purpose is no gap."""
        gaps = dict(sorted((self.uncovered | self.unreached).items(), key=lambda item: -item[1]))
        if not gaps:
            return None
        name, values = next(iter(gaps.items()))
        why = "which no site covers" if name in self.uncovered else "which no counted token reached"
        if name in self.reasons:
            why += f" ({self.reasons[name]})"
        return f"{name} ({values:,} values), {why}{f', and {len(gaps) - 1} more' if len(gaps) > 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        """Plain data: the share as ``coverage``, and what makes it up."""
        return {
            "coverage": self.share,
            "coverage_by_kind": self.kinds,
            "uncovered_values": self.uncovered,
            "uncovered_reasons": self.reasons,
            "unreached_values": self.unreached,
        }

    def __str__(self) -> str:
        """One phrase, without a full stop."""
        left_out = f", {percent(self.excluded)} behind excluded ones" if self.excluded else ""
        return f"{percent(self.share)} of the parameters lie behind a measured channel{left_out}"


def swapped_share(profile: Profile) -> str:
    """Of how many measured channels a pair has swapped outputs, as a phrase.

    >>> from act.profiles.coverage import swapped_share
    >>> swapped_share(act.profile_pair(donor, target, corpus, swap=True))
    'of 940 of 940 measured channels'
    """
    assert isinstance(profile, PairStatistics)
    measured, swapped = (int((one.count > 0).sum()) for one in (profile.target, profile.swap))
    return f"of {swapped:,} of {measured:,} measured channels"


def percent(share: float) -> str:
    """A share as a percentage that says 100% of nothing less.

    >>> from act.profiles.coverage import percent
    >>> percent(1.0), percent(0.99999), percent(0.2613)
    ('100%', '99.99%', '26.13%')
    """
    return "100%" if share == 1 else f"{min(share, 0.9999):.2%}"

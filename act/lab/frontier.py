"""Judging a method by all its settings: the frontier of recovered against retained ability.

Settings are chosen on validation records and reported on test records, for methods and controls alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from act.evaluation.frontier import frontier as unbeaten
from act.evaluation.kept import KEPT

Setting = TypeVar("Setting", bound=Hashable)


class Point(NamedTuple):
    """Exact match of the forgotten and of the retained ability, 0 to 1."""

    forgotten: float
    retained: float


def relative(point: Point, target: Point, donor: Point) -> Point:
    """The share of what was lost that came back, and the share of the retained ability that is left, from 0 to 1."""
    recovered = (point.forgotten - target.forgotten) / (donor.forgotten - target.forgotten)
    return Point(min(1.0, max(0.0, recovered)), min(1.0, point.retained / target.retained))


def frontier(points: Mapping[Setting, Point]) -> list[Setting]:
    """The settings that no other beats, from the one that retains most to the one that recovers most.

    Of settings with equal figures, the first is taken.
    """
    first: dict[Point, Setting] = {}
    for setting, point in points.items():
        first.setdefault(point, setting)
    distinct = list(first)
    return [first[point] for point in sorted(distinct[place] for place in unbeaten(distinct))]


def area(points: Sequence[Point]) -> float:
    """The part of the unit square below the staircase of relative points; doing nothing is the point (0, 1)."""
    covered, reached = 0.0, 0.0
    for point in sorted(points, key=lambda point: -point.forgotten):
        covered += point.forgotten * max(0.0, point.retained - reached)
        reached = max(reached, point.retained)
    return covered


def best_keeping(points: Mapping[Setting, Point], target: Point, share: float = KEPT) -> Setting | None:
    """The setting that recovers most while it keeps ``share`` of what ``target`` retains; None if none does."""
    keeping = [setting for setting, point in points.items() if point.retained >= share * target.retained]
    return max(keeping, key=lambda setting: points[setting].forgotten, default=None)

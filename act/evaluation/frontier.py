"""The Pareto frontier: the points that no other point beats."""

from __future__ import annotations

from collections.abc import Sequence


def frontier(points: Sequence[Sequence[float]]) -> list[int]:
    """The places, in order, of the points that no other point beats.

    A point beats another if it is as good in every figure and better in one; more is better. Equal points do not beat
    each other.

    >>> from act.evaluation.frontier import frontier
    >>> frontier([(0, 9), (5, 5), (4, 5), (9, 0)])
    [0, 1, 3]
    """
    return [place for place, point in enumerate(points) if not any(_beats(other, point) for other in points)]


def _beats(other: Sequence[float], point: Sequence[float]) -> bool:
    pairs = list(zip(other, point, strict=True))
    return all(theirs >= mine for theirs, mine in pairs) and any(theirs > mine for theirs, mine in pairs)

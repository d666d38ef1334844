"""The plain data of a report: what ``report.json`` and the CSV tables hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from act.ranking.analysis import Overlap


class GroupShares(TypedDict):
    """What one group of sites holds: shares of all scored channels, of the total score, and of the top set."""

    channels: float
    score: float
    chosen: float


class ConcentrationRow(TypedDict):
    """How unevenly the score of one profile is spread over its channels.

    ``channels`` have a score; ``unmeasured`` ones, counted by module kind, do not. ``coverage`` is the share of
    parameters behind measured channels, 0 to 1, of which ``coverage_by_kind`` says where they are; ``uncovered_values``
    and ``unreached_values`` count the others, by name (:class:`act.profiles.coverage.Measured`), and
    ``uncovered_reasons`` say why. ``experts`` is an
    :class:`act.profiles.experts.FewTokens` as plain data, with its ``sentence``; None for a dense model. ``kinds`` and
    ``layers`` group the sites by module kind and by decoder layer.
    """

    profile: str
    ability: str
    score: str
    channels: int
    unmeasured: Mapping[str, int]
    coverage: float | None
    coverage_by_kind: dict[str, float]
    uncovered_values: dict[str, int]
    uncovered_reasons: dict[str, str]
    unreached_values: dict[str, int]
    experts: Mapping[str, Any] | None
    gini: float
    above_tenth: float
    kinds: dict[str, GroupShares]
    layers: dict[str, GroupShares]


Relation = Literal["stability", "scores", "disentanglement", "set"]
"""What is compared: two profiles of one ability, one ability by two scores, two abilities, or an ability and another
channel set."""


class OverlapRow(TypedDict):
    """Two sets of channels against chance; the fields from ``both`` on are those of :class:`Overlap`."""

    relation: Relation
    share: float
    first: str
    second: str
    first_size: int
    second_size: int
    both: int
    population: int
    jaccard: float
    coefficient: float
    jaccard_low: float
    jaccard_high: float
    chance: float
    chance_low: float
    chance_high: float
    p_value: float


class ScoreHeldRow(TypedDict):
    """The share of the total score that a share of the channels holds, best first; no share of the ability."""

    profile: str
    share: float
    held: float


class NecessityRow(TypedDict):
    """The loss of a model on a text, whole and with the channels of one set ablated."""

    ablated: str
    channels: int
    text: str
    whole: float
    loss: float


class RecoveredRow(TypedDict):
    """The loss of the target on a text once the channels of one set are the donor's.

    ``share`` is that of what the target lacked which came back; None where it lacked nothing.
    """

    moved: str
    channels: int
    text: str
    target: float
    donor: float
    loss: float
    share: float | None


class ReportData(TypedDict):
    """All figures of a report.

    ``score`` is what was ranked by, several with commas between them; ``top`` the share of the channels that makes an
    ability's set.
    """

    score: str
    normalize: str
    top: float
    concentration: list[ConcentrationRow]
    overlaps: list[OverlapRow]
    score_held: list[ScoreHeldRow]
    necessity: list[NecessityRow]
    recovered: list[RecoveredRow]


def overlap_row(relation: Relation, share: float, first: str, second: str, found: Overlap) -> OverlapRow:
    """One row of the overlaps."""
    return {
        "relation": relation,
        "share": share,
        "first": first,
        "second": second,
        "first_size": found.one,
        "second_size": found.other,
        "both": found.both,
        "population": found.population,
        "jaccard": found.jaccard,
        "coefficient": found.coefficient,
        "jaccard_low": found.jaccard_low,
        "jaccard_high": found.jaccard_high,
        "chance": found.chance,
        "chance_low": found.chance_low,
        "chance_high": found.chance_high,
        "p_value": found.p_value,
    }

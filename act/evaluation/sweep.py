"""Sweeps: every share of the channels with every strength, each transferred, judged and taken back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from act.core.errors import ActError
from act.editing.donor import require_strength
from act.editing.transfer import transfer
from act.ranking.activations import Ability
from act.ranking.rank import rank
from act.ranking.selection import parse_top


@dataclass(frozen=True)
class Setting:
    """One point of a sweep: how much was transferred, and what became of the model; more is better in each figure."""

    top: float
    strength: float
    channels: int
    figures: Mapping[str, float] = field(hash=False)

    def beaten_by(self, other: Setting) -> bool:
        """Whether ``other`` is as good in every figure, and better in one."""
        pairs = [(value, other.figures[name]) for name, value in self.figures.items()]
        return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)

    def to_json(self) -> dict[str, Any]:
        """Plain data, one row of a table."""
        return {"top": self.top, "strength": self.strength, "channels": self.channels, **self.figures}


@dataclass(frozen=True)
class Sweep:
    """What a sweep found: ``rows`` in order of share and strength; the first is the target as it was."""

    rows: tuple[Setting, ...]

    @property
    def frontier(self) -> list[Setting]:
        """The settings that no other one beats, ordered by the first figure, the best of it last."""
        best = [row for row in self.rows if not any(row.beaten_by(other) for other in self.rows)]
        first = next(iter(self.rows[0].figures))
        return sorted(best, key=lambda row: row.figures[first])


def sweep(
    donor: nn.Module,
    target: nn.Module,
    profile: Ability,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    *,
    tops: Sequence[str | float] = (0.01, 0.02, 0.05, 0.1, 0.2),
    strengths: Sequence[float] = (0.2, 0.4, 0.7, 1.0),
    report: Callable[[Setting], None] = lambda setting: None,
    **ranking: Any,
) -> Sweep:
    """Transfer every share of the channels at every strength, and evaluate each.

    Args:
        donor, target: the models in memory. The target holds its own bytes again afterwards, also after an exception.
        profile: what :func:`act.rank` reads; ``ranking`` is the rest of its arguments (``score``, ``keep`` …).
        evaluate: gives figures by name, the same names each time; of each, more is better.
        tops: shares of the channels, such as ``"5%"`` or 0.05.
        strengths: the paper's lambda.
        report: told of every setting as soon as it is known.

    Raises:
        ActError: as :func:`act.rank` and :func:`act.transfer`; no share or strength; figures of other names, or
            that are not finite.
    """
    shares, steps = sorted({parse_top(top) for top in tops}), sorted(set(strengths))
    for strength in steps:
        require_strength(strength)
    if not shares or not steps:
        raise ActError("a sweep needs at least one share of the channels and one strength")
    if ranking.get("score") == "weight-diff":
        ranking = {**ranking, "donor": donor, "target": target}
    sets = [rank(profile, top=top, **ranking) for top in shares]  # a slip in its options shows before the evaluations
    rows = [_setting(0.0, 0.0, 0, evaluate(target), None)]
    report(rows[0])
    for top, channels in zip(shares, sets, strict=True):
        for strength in steps:
            patch = transfer(donor, target, channels, strength)
            try:
                figures = evaluate(target)
            finally:
                patch.revert(target)
            rows.append(_setting(top, strength, len(channels), figures, rows[0].figures))
            report(rows[-1])
    return Sweep(tuple(rows))


def _setting(
    top: float, strength: float, channels: int, figures: Mapping[str, float], expected: Iterable[str] | None
) -> Setting:
    found = {name: float(value) for name, value in figures.items()}
    if not found or (expected is not None and set(found) != set(expected)):
        raise ActError(f"evaluate gave the figures {sorted(found)}; expected one or more, the same for every setting")
    bad = [name for name, value in found.items() if not math.isfinite(value)]
    if bad:
        raise ActError(
            f"the figure {bad[0]} is {found[bad[0]]} at top {top}, strength {strength}; it cannot be compared, "
            "look for NaN in the weights of the models"
        )
    return Setting(top, strength, channels, found)

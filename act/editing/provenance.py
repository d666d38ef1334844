"""Where a transfer took its rows from: records for patch files, model cards and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from act.ranking.rule import Rule


@dataclass(frozen=True)
class DonorUsed:
    """What a transfer took from one donor.

    Attributes:
        name: the donor's name; None if unknown.
        channels: how many channels were chosen.
        strength: one number, or one for each pattern of names.
        rule: what chose the channels, and for which models; see :attr:`act.ChannelSet.rule`.
    """

    name: str | None
    channels: int
    strength: float | dict[str, float]
    rule: Rule

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it back."""
        return {"donor": self.name, "strength": self.strength, "channels": self.channels, "rule": self.rule.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DonorUsed:
        """The inverse of :meth:`to_json`."""
        return cls(data["donor"], data["channels"], data["strength"], Rule.from_json(data["rule"]))


@dataclass(frozen=True)
class TransferProvenance:
    """Which donors gave rows to which model.

    Attributes:
        donors: what each donor gave.
        before, after: fingerprints of the model; ``after`` is None for a composed patch, since that
            model was never made.
        parameters: names of the parameters that the fingerprints cover.
        overlap: what happened to rows that several donors gave; None for a composed patch.
        notes: what was left out, and why.
        conflict, conflicts: for a composed patch, which patch won, and how many rows were in conflict by parameter.
    """

    donors: tuple[DonorUsed, ...] = ()
    before: str | None = None
    after: str | None = None
    parameters: tuple[str, ...] = ()
    overlap: str | None = None
    notes: tuple[str, ...] = ()
    conflict: str | None = None
    conflicts: Mapping[str, int] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The name of the model before the transfer, if a channel set knows it, else its fingerprint."""
        names = (donor.rule.models["target"].name for donor in self.donors if "target" in donor.rule.models)
        return next((name for name in names if name), self.before or "an unknown model")

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it back."""
        composed = {"conflict": self.conflict, "conflicts": dict(self.conflicts)}
        return {
            "grafts": [donor.to_json() for donor in self.donors],  # the name is kept so that older patches load
            **(composed if self.conflict else {"overlap": self.overlap}),
            "notes": list(self.notes),
            "before": self.before,
            "after": self.after,
            "parameters": list(self.parameters),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TransferProvenance:
        """The inverse of :meth:`to_json`."""
        return cls(
            tuple(DonorUsed.from_json(one) for one in data.get("grafts", ())),
            data.get("before"),
            data.get("after"),
            tuple(data.get("parameters") or ()),
            data.get("overlap"),
            tuple(data.get("notes", ())),
            data.get("conflict"),
            data.get("conflicts", {}),
        )

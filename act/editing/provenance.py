"""Where a transfer took its rows from: records for patch files, model cards and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from act.core.plain import Finite, Natural, checked
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
    channels: Natural
    strength: Finite | dict[str, Finite]
    rule: Rule

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it back."""
        return {"donor": self.name, "strength": self.strength, "channels": self.channels, "rule": self.rule.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DonorUsed:
        """The inverse of :meth:`to_json`; raises ValueError, KeyError or TypeError for other data."""
        return checked(_DONOR, {**data, "name": data["donor"]})


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
        card: for a patch of a model folder, the README.md that lies in it, which a revert brings back.
    """

    donors: tuple[DonorUsed, ...] = ()
    before: str | None = None
    after: str | None = None
    parameters: tuple[str, ...] = ()
    overlap: str | None = None
    notes: tuple[str, ...] = ()
    conflict: str | None = None
    conflicts: Mapping[str, Natural] = field(default_factory=dict)
    card: str | None = None

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
            **({} if self.card is None else {"card": self.card}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TransferProvenance:
        """The inverse of :meth:`to_json`; raises ValueError, KeyError or TypeError for other data."""
        donors = tuple(DonorUsed.from_json(one) for one in data.get("grafts", ()))
        known = {**data, "before": data["before"], "after": data["after"], "parameters": data.get("parameters") or ()}
        return replace(checked(_TRANSFER, known), donors=donors)


_DONOR, _TRANSFER = TypeAdapter(DonorUsed), TypeAdapter(TransferProvenance)

"""The rule of a channel set: what chose its channels, and for which models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from act.core.plain import Finite, Flag, Natural, checked
from act.profiles.defaults import MIN_EXPERT_TOKENS
from act.profiles.provenance import ModelRead
from act.ranking.attributed import Cost
from act.ranking.granularity import Granularity
from act.ranking.normalize import Normalize
from act.ranking.scores import ScoreName
from act.ranking.selection import Scope


@dataclass(frozen=True)
class Rule:
    """What chose a channel set; ``Rule()`` if a caller chose the channels.

    Attributes:
        score: name of the score; ``custom`` for the caller's own.
        top, count, mass: how much was asked for; at most one is set.
        normalize, scope, granularity, include, exclude: as given to :func:`act.rank`.
        contrast: whether scores on what to keep were subtracted.
        per_cost: whether scores were divided by what they cost the abilities to retain.
        keep: names of the corpora of each ability to retain.
        corpora: names of the corpora of the ability.
        parts: which part was read of corpora that were not read whole, by their names.
        places: where corpora were read from that are not called by their places, by their names.
        fingerprints: of the content of corpora, as far as it is known, by their names.
        seed: the seed of the random score.
        ranked: channels that were ranked; None if a caller chose.
        not_positive: chosen channels with a score of 0 or below.
        unmeasured: channels that might have been chosen but have no score, by module kind.
        min_expert_tokens: how many counted tokens an expert needs, where that was asked.
        starved_channels, starved_experts: channels that might have been chosen but for that, and of how many experts.
        models: the ``donor`` and ``target`` (or ``model``) that the set was made for; a transfer refuses any others. If
            empty, any models will do.
        tied: site -> the site whose tensor it shares.
        cost: the cost that was chosen, of a score that takes several.
    """

    score: ScoreName | Literal["custom"] = "custom"
    top: Finite | None = None
    count: Natural | None = None
    mass: Finite | None = None
    normalize: Normalize = "none"
    scope: Scope = "global"
    granularity: tuple[Granularity, ...] = ("channel",)
    contrast: Flag = False
    per_cost: Flag = False
    keep: tuple[tuple[str, ...], ...] = ()
    corpora: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: Natural | None = None
    ranked: Natural | None = None
    not_positive: Natural = 0
    unmeasured: Mapping[str, Natural] = field(default_factory=dict)
    min_expert_tokens: Natural | None = None
    starved_channels: Natural = 0
    starved_experts: Natural = 0
    models: Mapping[str, ModelRead] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        """The rule as a phrase.

        >>> from act.ranking.rule import Rule
        >>> print(Rule("paired", top=0.05, normalize="std", contrast=True))
        paired, top 5%, normalized by std, contrasted with what to keep
        >>> print(Rule("attribution", top=0.05, include=("gate", "up")))
        attribution, top 5%, among gate, up
        """
        shares = [f"{name} {100 * share:g}%" for name, share in (("top", self.top), ("mass", self.mass)) if share]
        return ", ".join(
            [
                self.score,
                *shares,
                *([f"count {self.count:,}"] if self.count else []),
                *([f"normalized by {self.normalize}"] if self.normalize != "none" else []),
                *([f"in each {self.scope}"] if self.scope != "global" else []),
                *([f"among {', '.join(self.include)}"] if self.include else []),
                *([f"without {', '.join(self.exclude)}"] if self.exclude else []),
                *([f"by {' and '.join(self.granularity)}"] if self.granularity != ("channel",) else []),
                *(["contrasted with what to keep"] if self.contrast else []),
                *(["over the cost to what to keep"] if self.per_cost else []),
                *(["over the distance moved"] if self.cost == "distance" else []),
                *([f"experts of at least {self.min_expert_tokens} tokens"] if self.min_expert_tokens else []),
            ]
        )

    @property
    def options(self) -> list[str]:
        """What was asked for, as the options of ``act-profile rank``; those that have their defaults are left out.

        >>> from act.ranking.rule import Rule
        >>> Rule("attribution", top=0.05, cost="keep", exclude=("embed",)).options
        ['--score', 'attribution', '--cost', 'keep', '--exclude', 'embed', '--top', '5%']
        """
        given: list[tuple[str, object]] = [("score", self.score), ("cost", self.cost)]
        given += [(name, value) for name in ("normalize", "scope") if (value := getattr(self, name)) not in _USUAL]
        given += [("granularity", unit) for unit in self.granularity if self.granularity != ("channel",)]
        given += [(name, one) for name in ("include", "exclude") for one in getattr(self, name)]
        given += [("seed", self.seed or None), ("number", self.count)]
        given += [(name, f"{100 * share:.12g}%") for name, share in (("top", self.top), ("mass", self.mass)) if share]
        least = self.min_expert_tokens
        given += [("min-expert-tokens", least)] if least not in (None, MIN_EXPERT_TOKENS) else []
        return [text for name, value in given if value is not None for text in (f"--{name}", str(value))]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for file headers and reports; :meth:`from_json` reads it back."""
        models = {side: model.to_json() for side, model in self.models.items()}
        plain = {name: _listed(value) for name, value in asdict(self).items()} | {"models": models}
        absent = {*(_EXPERTS if self.min_expert_tokens is None else ()), *([] if self.per_cost else ["per_cost"])}
        absent |= {name for name in ("cost", "places", "parts", "fingerprints") if not getattr(self, name)}
        return {name: value for name, value in plain.items() if name not in absent}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rule:
        """The inverse of :meth:`to_json`; missing fields get their defaults, as in the file of a set chosen by hand.

        Raises:
            ValueError: the data is of no rule.
        """
        return checked(_RULE, data)


_USUAL = ("none", "global")
_EXPERTS = ("min_expert_tokens", "starved_channels", "starved_experts")  # left out where there are none


def _listed(value: object) -> object:
    return [_listed(one) for one in value] if isinstance(value, tuple) else value


_RULE = TypeAdapter(Rule)

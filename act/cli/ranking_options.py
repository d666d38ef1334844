"""The options that say what to rank by, for ``rank``, ``sweep`` and ``transfer --auto``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from act.ranking.scores import SCORES

_SCORES = "; ".join(f"{name}: {score.summary}" for name, score in SCORES.items())


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """Those of :func:`act.rank` that all three commands take; None where one was not given."""

    score: Annotated[str | None, typer.Option(help=f"What to rank by; paired by default. {_SCORES}.")] = None
    normalize: Annotated[
        str | None,
        typer.Option(
            help="Divide scores by: none (the default), the module's mean or std, kind-mean, kind-std, or channel."
        ),
    ] = None
    scope: Annotated[
        str | None,
        typer.Option(help="Rank all channels together (global, the default), or each kind, layer or site separately."),
    ] = None
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            help="Unit that is ranked: channel (the default), rotary-pair, neuron, head, expert or routed-expert "
            "(repeatable)."
        ),
    ] = None
    include: Annotated[
        list[str] | None, typer.Option(help="Rank only these module kinds, or patterns of site names (repeatable).")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option(help="Do not rank these module kinds, or patterns of site names (repeatable).")
    ] = None
    cost: Annotated[
        str | None,
        typer.Option(
            help="What attribution divides by: keep (the change on what to keep), distance (the norm of the channel's "
            "step), none; auto (the default): keep where there is some, which the profile may hold, else none."
        ),
    ] = None

    @property
    def ranking(self) -> Mapping[str, Any]:
        """The keywords of :func:`act.rank` that were given."""
        values = {each.name: getattr(self, each.name) for each in fields(RankingOptions)}
        return {name: value for name, value in values.items() if value not in (None, [])}

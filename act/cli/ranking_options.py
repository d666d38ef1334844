"""The options that say what to rank by, for ``rank``, ``sweep`` and ``transfer --auto``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from act.cli import options
from act.core.errors import ActError
from act.ranking.scores import SCORES, score_names

if TYPE_CHECKING:
    from act.profiles.profile import Profile
    from act.ranking.rule import Rule

_SCORES = "; ".join(f"{name}: {score.summary}" for name, score in SCORES.items())


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """Those of :func:`act.rank` that all three commands take; None where one was not given."""

    score: Annotated[
        str | None,
        options.choice(
            options.CHANNELS,
            tuple(SCORES),
            f"What to rank by; by default paired, and attribution of what act-profile attribute made. {_SCORES}.",
        ),
    ] = None
    normalize: Annotated[
        str | None,
        options.choice(
            options.CHANNELS,
            options.NORMALIZE,
            "Divide scores by nothing (the default), by the module's mean or std, by the kind's, or by the channel's.",
        ),
    ] = None
    scope: Annotated[
        str | None,
        options.choice(
            options.CHANNELS,
            options.SCOPES,
            "Rank all channels together (global, the default), or each kind, layer or site separately.",
        ),
    ] = None
    granularity: Annotated[
        list[str] | None,
        options.choice(options.CHANNELS, options.UNITS, "Unit that is ranked (repeatable). Default: channel."),
    ] = None
    include: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=options.CHANNELS,
            help="Rank only these module kinds, or patterns of site names (repeatable).",
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=options.CHANNELS,
            help="Do not rank these module kinds, or patterns of site names (repeatable).",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=options.CHANNELS,
            help=f"Seed of the score {score_names(lambda score: score.takes_seed)}; 0 by default.",
        ),
    ] = None
    cost: Annotated[
        str | None,
        options.choice(
            options.CHANNELS,
            options.COSTS,
            "What attribution divides by: keep (the change on what to keep), distance (the norm of the channel's "
            "step), none; auto (the default): keep where there is some, which the profile may hold, else none.",
        ),
    ] = None

    @property
    def ranking(self) -> Mapping[str, Any]:
        """The keywords of :func:`act.rank` that were given."""
        values = {each.name: getattr(self, each.name) for each in fields(RankingOptions)}
        return {name: value for name, value in values.items() if value not in (None, [])}


def profiles_to_keep(paths: list[Path] | None) -> list[Profile]:
    """The profiles of ``--keep-profile``."""
    from act.profiles.profile import load

    require_profiles_to_keep(paths)
    return [load(path) for path in paths or ()]


def require_profiles_to_keep(paths: list[Path] | None) -> None:
    """Raise :class:`ActError` for a text where ``--keep-profile`` takes a profile; it says how to measure one."""
    from act.core.tensor_files import kind_of

    for path in paths or ():
        if path.exists() and path.suffix != ".safetensors" and kind_of(path) is None:
            profile = f"{path.name.partition('.')[0] or 'keep'}.safetensors"
            raise ActError(
                f"{path} is no profile, and --keep-profile takes profiles of what is to be kept; measure the text "
                f"first (act-profile pair --donor DONOR --target TARGET --corpus {path} --output {profile}), and "
                f"give --keep-profile {profile}"
            )


def by_default(score: str) -> str:
    """The line that says by what was ranked where no score was named."""
    why = "the one score of what act-profile attribute made" if score == "attribution" else "the default of --score"
    return f"ranked by {score}, {why}"


def ranked_by(rule: Rule) -> str:
    """The line that says by what the channels of several shares were ranked: score, cost and normalisation.

    >>> from act.cli.ranking_options import ranked_by
    >>> from act.ranking.rule import Rule
    >>> ranked_by(Rule("paired", top=0.2))
    'ranked by paired, not normalized'
    """
    plain = [
        *(["at no cost"] if rule.cost == "none" else []),
        *(["not normalized"] if rule.normalize == "none" else []),
    ]
    return f"ranked by {', '.join([str(replace(rule, top=None, mass=None, count=None)), *plain])}"

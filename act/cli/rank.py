"""``act-profile rank``: choose the channels where an ability lives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act.cli import console, options
from act.core.errors import ActError
from act.core.files import require_output
from act.models.loading import load_model
from act.profiles.profile import Profile, load
from act.ranking import rank as ranking
from act.ranking.selection import parse_amount


def command(
    profiles: Annotated[list[Path], typer.Argument(help="A pair profile, or the donor's and the target's profiles.")],
    output: options.Output = Path("channels.safetensors"),
    keep: Annotated[
        list[Path] | None,
        typer.Option(help="Profile of an ability to retain (repeatable; with two profiles, donor's then target's)."),
    ] = None,
    score: Annotated[
        str, typer.Option(help="paired, mean-abs, mean-shift, welch-t, cohen-d, lape, weight-diff or random.")
    ] = "paired",
    top: Annotated[str | None, typer.Option(help="Share of the channels to choose, such as 5% (the default).")] = None,
    count: Annotated[
        int | None, typer.Option(help="Instead of --top: so many channels, pairs, neurons, heads.")
    ] = None,
    mass: Annotated[str | None, typer.Option(help="Instead of --top: share of the sum of positive scores.")] = None,
    normalize: Annotated[
        str, typer.Option(help="Divide scores by their module's mean or std, kind-mean, kind-std, channel, or none.")
    ] = "none",
    scope: Annotated[str, typer.Option(help="Rank global, or in each kind, layer or site by itself.")] = "global",
    granularity: Annotated[
        list[str] | None, typer.Option(help="channel, rotary-pair, neuron or head (repeatable): what is ranked as one.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Module kinds, or patterns of site names, to rank only (repeatable).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Module kinds, or patterns of site names, not to rank (repeatable).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random score; 0 by default.")] = None,
    donor: Annotated[str | None, typer.Option(help="The donor model, for weight-diff.")] = None,
    target: Annotated[str | None, typer.Option(help="The target model, for weight-diff.")] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Rank all channels of all modules together and keep the best as a channel set."""
    if top is not None or count is not None or mass is not None:
        parse_amount(top, count, mass)
    if score != "weight-diff" and (donor or target):
        raise ActError(f"--donor and --target have no effect on score {score}; leave them out, or rank by weight-diff")
    if score != "random" and seed is not None:
        raise ActError(f"--seed has no effect on score {score}; leave it out, or rank by random")
    require_output(output, force, [*profiles, *(keep or []), *(name for name in (donor, target) if name)])
    if len(profiles) > 2:
        raise ActError(f"{len(profiles)} profiles were given; expected a pair profile, or the donor's and the target's")
    (ability,) = _abilities(profiles, len(profiles))
    models = {}
    if score == "weight-diff":
        if donor is None or target is None:
            raise ActError("score weight-diff compares the models themselves; give --donor and --target")
        console.quiet_transformers()
        models = {"donor": load_model(donor, device="cpu"), "target": load_model(target, device="cpu")}
    channels = ranking.rank(
        ability,
        score,  # type: ignore[arg-type]  # checked by rank
        top,
        count=count,
        mass=mass,
        keep=_abilities(keep, len(profiles)) if keep else None,
        normalize=normalize,  # type: ignore[arg-type]
        scope=scope,  # type: ignore[arg-type]
        granularity=granularity or "channel",  # type: ignore[arg-type]
        include=include or (),
        exclude=exclude or (),
        seed=seed or 0,
        **models,
    )
    channels.save(output, force=force)
    console.report_channels(channels, output, as_json)


def _abilities(paths: list[Path], each: int) -> list[Profile | tuple[Profile, Profile]]:
    """Profiles by themselves, or in donor and target couples."""
    if len(paths) % each:
        raise ActError(f"{len(paths)} keep profiles were given; expected the donor's and the target's of each ability")
    loaded = [load(path) for path in paths]
    return list(zip(loaded[::2], loaded[1::2], strict=True)) if each == 2 else loaded  # type: ignore[return-value]

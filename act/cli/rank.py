"""``act-profile rank``: choose the channels where an ability lives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act import localize
from act.cli import console
from act.errors import ActError
from act.files import require_output
from act.loading import load_model
from act.profile import Profile, load


def command(
    profiles: Annotated[list[Path], typer.Argument(help="A pair profile, or the donor's and the target's profiles.")],
    output: console.Output = Path("channels.safetensors"),
    keep: Annotated[list[Path] | None, typer.Option(help="Profile of the ability to retain (contrast score).")] = None,
    score: Annotated[str, typer.Option(help="paired, mean-abs, mean-shift, weight-diff or random.")] = "paired",
    top: Annotated[str, typer.Option(help="Share of the channels to choose, such as 5% or 0.05.")] = "5%",
    normalize: Annotated[str, typer.Option(help="Divide each module's scores by their mean or std, or none.")] = "none",
    include: Annotated[list[str] | None, typer.Option(help="Module kinds to rank only (repeatable).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Module kinds not to rank (repeatable).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random score.")] = 0,
    donor: Annotated[str | None, typer.Option(help="The donor model, for weight-diff.")] = None,
    target: Annotated[str | None, typer.Option(help="The target model, for weight-diff.")] = None,
    force: console.Force = False,
    as_json: console.Json = False,
) -> None:
    """Rank all channels of all modules together and keep the top share as a channel set."""
    localize.parse_top(top)
    require_output(output, force)
    ability = _one_or_two(profiles)
    models = {}
    if score == "weight-diff":
        if donor is None or target is None:
            raise ActError("score weight-diff compares the models themselves; give --donor and --target")
        console.quiet_transformers()
        models = {"donor": load_model(donor, device="cpu"), "target": load_model(target, device="cpu")}
    channels = localize.rank(
        ability,
        score,  # type: ignore[arg-type]  # checked by rank
        top,
        keep=_one_or_two(keep) if keep else None,
        normalize=normalize,  # type: ignore[arg-type]
        include=include or (),
        exclude=exclude or (),
        seed=seed,
        **models,
    )
    channels.save(output, force=force)
    console.report_channels(channels, output, as_json)


def _one_or_two(paths: list[Path]) -> Profile | tuple[Profile, Profile]:
    if len(paths) > 2:
        raise ActError(f"{len(paths)} profiles were given; expected a pair profile, or the donor's and the target's")
    first, *rest = (load(path) for path in paths)
    return (first, rest[0]) if rest else first

"""``act-profile demo``: the whole method on small trained models that come with the package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from act.cli import console, options
from act.core.files import reserve_output

PICTURE = Path("act-demo.png")


def command(
    picture: Annotated[
        Path, typer.Option(help="Where to save the map of the ability (the default file is replaced).")
    ] = PICTURE,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Restore a language that a small model has forgotten, and compare with controls of equal size; in seconds."""
    from act.lab import demo
    from act.report.pictures import draw_channel_map

    console.quiet_transformers()
    force = force or picture == PICTURE
    reserve_output(picture, force)
    result = demo.run(lambda step: print(f"… {step}", file=sys.stderr))
    title = f"Where German lives: {demo.TOP:.0%} of all channels, by layer and module"
    draw_channel_map(result.channels, picture, title, force=force)
    if as_json:
        return console.print_json(
            {
                "before": result.before,
                "after": result.after,
                "donor": result.donor,
                "controls": result.controls,
                "seconds": result.seconds,
                "picture": str(picture),
            }
        )
    models = {
        "target: forgot German": result.before,
        "after the transfer": result.after,
        "donor: its base": result.donor,
        "control: random channels": result.controls["random"],
        "control: weight-diff channels": result.controls["weight-diff"],
        f"control: interpolation by {demo.INTERPOLATION:.0%}": result.controls["interpolation"],
    }
    console.print_table(
        f"Exact match on {demo.TEST_RECORDS} test records of each, %",
        ["", "forgotten (German)", "retained (English)"],
        [[name, *(f"{100 * figures[ability]:.1f}" for ability in figures)] for name, figures in models.items()],
    )
    chosen, channels = len(result.channels), len(result.channels.space)
    print(f"{chosen} of {channels:,} channels transferred, and as many in each control by channels.")
    print(f"{result.seconds:.0f} s; map of the chosen channels: {picture}")

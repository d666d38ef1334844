"""``act-profile mergekit``: run a mergekit configuration with ``merge_method: act``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act.cli import console, next_step, options
from act.core.counted import counted
from act.core.errors import ActError
from act.core.files import require_folder_name
from act.core.plain_yaml import read_yaml

EXAMPLE = """\
# rows of donors, named by channel sets (act-profile rank), go into the target
merge_method: act
base_model: specialist/  # the target
models:
  - model: base/  # a donor; weight is the strength, 0.4 by default
    parameters: {channels: channels.safetensors, weight: 0.4}
parameters: {overlap: sum}  # of several donors: sum, mean, first or stronger
# relative paths start at the working directory, as in mergekit itself
"""
EXAMPLES = f"""
act-profile mergekit --example > merge.yaml
act-profile mergekit merge.yaml merged/

What the first of these writes:
{EXAMPLE}"""


def command(
    config: Annotated[Path | None, typer.Argument(help="A mergekit configuration, such as the one below.")] = None,
    output: Annotated[Path | None, typer.Argument(help="Folder for the resulting model.")] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a configuration to begin with, whose models are yours to name.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Run a mergekit configuration, whose merge_method may be act; needs mergekit.

    merge_method: act moves the rows of channel sets in mergekit's own run; it needs pip install
    'act-profile[mergekit]'. Without mergekit, act-profile transfer writes the same weights.
    """
    from act.editing.mergekit import merge
    from act.editing.model_card import Origin

    if example and config is not None:
        raise ActError(
            f"--example prints a configuration, and {config} was given beside it; give --example alone, and write what "
            "it prints to a file (--example > merge.yaml)"
        )
    if example:
        return console.print_json({"example": EXAMPLE}) if as_json else print(EXAMPLE, end="")
    if config is None or output is None:
        what = "no configuration was" if config is None else "no folder for the result was"
        raise ActError(f"{what} given; expected act-profile mergekit merge.yaml merged/, of which --example prints one")
    require_folder_name(output)
    console.quiet_transformers()
    made = merge(config, output, force=force, trust_remote_code=trust_remote_code)
    donors, notes = (made.donors, made.notes) if made else ((), ())
    for note in notes:
        console.warn(note)
    if as_json:
        given = [{"donor": one.name, "channels": one.channels, "strength": one.strength} for one in donors]
        return console.print_json({"output": str(output), "config": str(config), "donors": given, "notes": [*notes]})
    for one in donors:
        name = Origin.of(one.name or "").title
        print(f"{counted(one.channels, 'channel')} of {name} at strength {one.strength}")
    print(f"written to {output}, with a model card (README.md)")
    _, settings = read_yaml(config, "a mergekit configuration")
    if isinstance(settings, dict) and isinstance(base := settings.get("base_model"), str):
        next_step.after_change(base, output)

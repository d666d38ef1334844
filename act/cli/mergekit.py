"""``act-profile mergekit``: run a mergekit configuration with ``merge_method: act``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act.cli import console, next_step, options
from act.core.counted import counted
from act.core.files import require_folder_name
from act.core.plain_yaml import read_yaml

EXAMPLES = """
act-profile mergekit merge.yaml merged/
act-profile mergekit merge.yaml merged/ --force

A merge.yaml, whose donor gives the channels of a set:
merge_method: act
base_model: specialist/
models:
  - model: base/
    parameters: {channels: channels.safetensors, weight: 0.4}  # its default
parameters: {overlap: sum}  # of several donors: sum, mean, first or stronger
# relative paths start at the working directory, as in mergekit itself
"""


def command(
    config: Annotated[
        Path,
        typer.Argument(
            help="A mergekit configuration, as below: each donor has the parameters channels and weight, a strength."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the resulting model.")],
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Run a mergekit configuration, whose merge_method may be act; needs mergekit.

    merge_method: act moves the rows of channel sets (act-profile rank makes them) in mergekit's own run, and needs
    pip install 'act-profile[mergekit]'. Without mergekit, act-profile transfer writes the same weights.
    """
    from act.editing.mergekit import merge

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
        print(f"{counted(one.channels, 'channel')} of {one.name} at strength {one.strength}")
    print(f"written to {output}, with a model card (README.md)")
    _, settings = read_yaml(config, "a mergekit configuration")
    if isinstance(settings, dict) and isinstance(base := settings.get("base_model"), str):
        next_step.after_change(base, output)

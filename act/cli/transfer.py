"""``act-profile transfer``: move the chosen channels from donor to target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act.channel_set import ChannelSet
from act.cli import console
from act.files import require_output, written_whole
from act.loading import load_model, load_tokenizer
from act.transfer import require_strength, transfer


def command(
    donor: Annotated[str, typer.Option(help="The model that still has the ability.")],
    target: Annotated[str, typer.Option(help="The model that lost it; it is not changed on disk.")],
    channels: Annotated[Path, typer.Option(help="The channel set, from act-profile rank.")],
    output: Annotated[Path, typer.Option(help="Folder for the resulting model.")],
    strength: Annotated[float, typer.Option(help="The paper's lambda: 1 copies the donor's rows.")] = 0.4,
    device: console.Device = "auto",
    dtype: console.Dtype = "auto",
    force: console.Force = False,
    as_json: console.Json = False,
) -> None:
    """Blend the chosen channels of the donor into the target and save the result as a model folder."""
    require_strength(strength)
    console.quiet_transformers()
    require_output(output, force)
    chosen = ChannelSet.load(channels)
    source, result = (load_model(name, dtype=dtype, device=device) for name in (donor, target))
    patch = transfer(source, result, chosen, strength)
    with written_whole(output, force=force, directory=True) as folder:
        result.save_pretrained(folder)  # type: ignore[operator]
        load_tokenizer(target).save_pretrained(folder)
    summary = {
        "output": str(output),
        "channels": len(chosen),
        "values": len(patch),
        "parameters": len(patch.changes),
        "strength": strength,
    }
    if as_json:
        return console.print_json(summary)
    console.print_table(str(output), ["", ""], [[name, f"{value:,}"] for name, value in list(summary.items())[1:]])

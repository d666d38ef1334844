"""``act-profile transfer``: move the chosen channels from donors to target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from act.channel_set import ChannelSet
from act.cli import console
from act.errors import ActError
from act.files import require_output, written_whole
from act.folders import patch_of_folders, transfer_folders
from act.loading import load_model, load_tokenizer
from act.model_card import write_card
from act.patch import Patch
from act.stored import RenamedWeights
from act.transfer import Graft, require_strength, shared_tokens, transfer_many


def command(
    donor: Annotated[list[str], typer.Option(help="The model that still has the ability (repeatable).")],
    target: Annotated[str, typer.Option(help="The model that lost it; it is not changed on disk.")],
    channels: Annotated[list[Path], typer.Option(help="The channel set, from act-profile rank; one for each donor.")],
    output: Annotated[Path, typer.Option(help="Folder for the resulting model, or a .safetensors patch file.")],
    strength: Annotated[
        list[float] | None, typer.Option(help="The paper's lambda, 0.4 if not given; one for all or for each donor.")
    ] = None,
    strength_of: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=VALUE: another strength for matching sites, such as '*.mlp.*=0.2' (repeatable)."),
    ] = None,
    overlap: Annotated[str, typer.Option(help="Rows of several donors: sum, mean, first or stronger.")] = "sum",
    align_tokens: Annotated[
        bool, typer.Option(help="Match embedding and LM-head rows of another vocabulary by token string.")
    ] = False,
    in_memory: Annotated[bool, typer.Option(help="Load the models instead of working on their files.")] = False,
    device: console.Device = "auto",
    dtype: console.Dtype = "auto",
    force: console.Force = False,
    as_json: console.Json = False,
) -> None:
    """Blend the chosen channels of the donors into the target; write a model folder, or a patch file."""
    strengths = _one_each("--strength", strength or [0.4], len(donor))
    for value in strengths:
        require_strength(value)
    if len(channels) != len(donor):
        raise ActError(f"{len(donor)} --donor and {len(channels)} --channels were given; give one set for each donor")
    require_output(output, force, [*donor, target, *channels])
    patterns = dict(_pattern(text) for text in strength_of or [])
    if align_tokens:
        console.quiet_transformers()
    tokens = [shared_tokens(load_tokenizer(name), load_tokenizer(target)) if align_tokens else None for name in donor]
    grafts = [
        Graft({}, ChannelSet.load(path), {**patterns, "*": value} if patterns else value, aligned, name)
        for path, value, aligned, name in zip(channels, strengths, tokens, donor, strict=True)
    ]
    on_disk = not in_memory and dtype == "auto" and all(Path(name).is_dir() for name in (*donor, target))
    try:
        if not on_disk:
            raise RenamedWeights("the models are to be loaded")
        summary = _on_disk(grafts, donor, target, output, overlap, force)
    except RenamedWeights as reason:
        if on_disk:
            console.warn(f"loading the models, as {reason}: names on disk differ from those of the parameters")
        summary = _in_memory(grafts, donor, target, output, overlap, device, dtype, force)
    notes = summary.pop("notes")
    summary = {
        "output": str(output),
        "channels": sum(len(graft.channels) for graft in grafts),
        **summary,
        "strength": strengths[0] if len(strengths) == 1 else strengths,
    }
    for note in notes:
        console.warn(note)
    if as_json:
        return console.print_json({**summary, "notes": notes})
    rows = [[name, f"{value:,}" if isinstance(value, int | float) else value] for name, value in summary.items()]
    console.print_table(str(output), ["", ""], rows[1:])


def _on_disk(
    grafts: list[Graft], donors: list[str], target: str, output: Path, overlap: Any, force: bool
) -> dict[str, Any]:
    if output.suffix == ".safetensors":
        return _saved(patch_of_folders(grafts, donors, target, overlap), output, force)
    done = transfer_folders(grafts, donors, target, output, overlap, force=force)
    return {"values": done.values, "parameters": done.parameters, "notes": done.notes, "path": "disk"}


def _in_memory(
    grafts: list[Graft],
    donors: list[str],
    target: str,
    output: Path,
    overlap: Any,
    device: str,
    dtype: str,
    force: bool,
) -> dict[str, Any]:
    console.quiet_transformers()
    loaded = [
        Graft(load_model(name, dtype=dtype, device=device), graft.channels, graft.strength, graft.tokens, name)
        for graft, name in zip(grafts, donors, strict=True)
    ]
    result = load_model(target, dtype=dtype, device=device)
    patch = transfer_many(loaded, result, overlap)
    if output.suffix == ".safetensors":
        return _saved(patch, output, force)
    with written_whole(output, force=force, directory=True) as folder:
        result.save_pretrained(folder)  # type: ignore[operator]
        load_tokenizer(target).save_pretrained(folder)
        write_card(folder, target, donors, patch.header)
    return {"values": len(patch), "parameters": len(patch.changes), "notes": patch.notes, "path": "memory"}


def _saved(patch: Patch, output: Path, force: bool) -> dict[str, Any]:
    patch.save(output, force=force)
    return {"values": len(patch), "parameters": len(patch.changes), "notes": patch.notes, "path": "patch"}


def _one_each(option: str, values: list[float], donors: int) -> list[float]:
    if len(values) not in (1, donors):
        raise ActError(f"{len(values)} {option} were given for {donors} donors; give one for all, or one for each")
    return values * donors if len(values) == 1 else values


def _pattern(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ActError(f"--strength-of is {text!r}; expected PATTERN=VALUE, such as '*.mlp.*=0.2'") from None

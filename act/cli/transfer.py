"""``act-profile transfer``: move the chosen channels from donors to target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from act.cli import console, options
from act.core.errors import ActError
from act.core.files import require_output, written_whole
from act.editing.folders import patch_of_folders, transfer_folders
from act.editing.model_card import write_card
from act.editing.patch import Patch
from act.editing.stored import RenamedWeights
from act.editing.transfer import Graft, require_strength, shared_tokens, transfer_many
from act.models.loading import load_model, load_tokenizer, token_difference
from act.ranking.channel_set import ChannelSet


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
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Blend the chosen channels of the donors into the target; write a model folder, or a patch file."""
    strengths = _one_each("--strength", strength or [0.4], len(donor))
    for value in strengths:
        require_strength(value)
    if len(channels) != len(donor):
        raise ActError(f"{len(donor)} --donor and {len(channels)} --channels were given; give one set for each donor")
    require_output(output, force, [*donor, target, *channels])
    patterns = dict(_pattern(text) for text in strength_of or [])
    on_disk = not in_memory and dtype == "auto" and all(Path(name).is_dir() for name in (*donor, target))
    if on_disk and device != "auto":
        raise ActError(f"--device {device} has no effect on files; add --in-memory, or leave --device out")
    grafts = [
        Graft({}, ChannelSet.load(path), {**patterns, "*": patterns.get("*", value)} if patterns else value, name=name)
        for path, value, name in zip(channels, strengths, donor, strict=True)
    ]
    grafts = list(_with_tokens(grafts, target, align_tokens))
    try:
        if not on_disk:
            raise RenamedWeights("the models are to be loaded")
        summary = _on_disk(grafts, donor, target, output, overlap, force)
    except RenamedWeights as reason:
        if on_disk:
            console.warn(f"loading the models, which takes their whole size in memory: {reason}")
        summary = _in_memory(grafts, donor, target, output, overlap, device, dtype, force)
    notes = summary.pop("notes")
    summary = {
        "output": str(output),
        "channels": sum(len(graft.channels) for graft in grafts),
        **summary,
        "strength": strengths[0] if len(strengths) == 1 else strengths,
        **({"strength_of": patterns} if patterns else {}),
    }
    for note in notes:
        console.warn(note)
    if as_json:
        return console.print_json({**summary, "notes": notes})
    summary |= {"strength_of": ", ".join(f"{name}={value}" for name, value in patterns.items())} if patterns else {}
    rows = [[name, f"{value:,}" if isinstance(value, int | float) else value] for name, value in summary.items()]
    console.print_table(str(output), ["", ""], rows[1:])


def _with_tokens(grafts: list[Graft], target: str, align: bool) -> Iterator[Graft]:
    """The grafts; those that move rows or columns of tokens know which are shared, or how they differ."""
    moving = any(graft.moves_tokens for graft in grafts)
    ours = _tokenizer(target, align) if moving else None
    for graft in grafts:
        theirs = _tokenizer(str(graft.name), align) if graft.moves_tokens else None
        if theirs is None or ours is None:
            yield graft
        elif align:
            yield replace(graft, tokens=shared_tokens(theirs, ours))
        else:
            yield replace(graft, token_difference=token_difference(theirs, ours))


def _tokenizer(model: str, needed: bool) -> Any:
    """The tokenizer of a model, or, where it is not needed, None with a warning."""
    console.quiet_transformers()
    try:
        return load_tokenizer(model)
    except ActError as error:
        if needed:
            raise
        console.warn(f"{error}; so nothing tells whether a token has the same id in donor and target")
        return None


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
        replace(graft, donor=load_model(name, dtype=dtype, device=device))
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

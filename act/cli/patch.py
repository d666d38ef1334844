"""``act-profile patch``: apply, revert, show and compose patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from act.cli import console, next_step, options
from act.cli.help import Group, add
from act.core.counted import counted
from act.core.files import require_ending, require_folder_name, reserve_output

HELP = "Apply, revert, show or compose patches: the rows that transfers changed."
EXAMPLES = """
act-profile transfer --donor base/ --target specialist/ \\
    --channels channels.safetensors --output german.safetensors
act-profile patch show german.safetensors
act-profile patch apply german.safetensors --model specialist/ \\
    --output mended/
act-profile patch revert german.safetensors --model mended/ \\
    --output specialist-again/
act-profile patch compose german.safetensors code.safetensors \\
    --output both.safetensors
"""
app = typer.Typer(cls=Group, help=HELP, epilog=EXAMPLES, no_args_is_help=True, **options.LOOK)
PatchFile = Annotated[Path, typer.Argument(help="A patch, written by act-profile transfer --output x.safetensors.")]
Before = Annotated[
    str,
    typer.Option(
        rich_help_panel=options.MODELS,
        help="The model that the patch was made for, the transfer's target: a folder, which is only read, or a hub id.",
    ),
]
After = Annotated[
    str,
    typer.Option(
        rich_help_panel=options.MODELS,
        help="The model that has the patch in it: a folder, which is only read, or a hub id.",
    ),
]
NewFolder = Annotated[Path, typer.Option(rich_help_panel=options.OUTPUT, help="Folder for the resulting model.")]


def apply(
    patch: PatchFile,
    model: Before,
    output: NewFolder,
    hard_link: options.HardLink = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a model with a patch applied."""
    _write(patch, model, output, False, hard_link, force, as_json)


def revert(
    patch: PatchFile,
    model: After,
    output: NewFolder,
    hard_link: options.HardLink = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a model as it was before a patch, bit for bit.

    The new folder has the README.md of the transfer's target, too.
    """
    _write(patch, model, output, True, hard_link, force, as_json)


def show(patch: PatchFile, as_json: options.Json = False) -> None:
    """Show what a patch changes and where it comes from."""
    from act.editing.patch import Patch

    held = Patch.load(patch)
    parameters = [
        {
            "parameter": change.parameter.name,
            "dim": change.parameter.dim,
            **({} if change.parameter.expert is None else {"expert": change.parameter.expert}),
            "rows": len(change.rows),
            "values": change.after.numel(),
            "type": str(change.after.dtype).removeprefix("torch."),
        }
        for change in held.changes
    ]
    if as_json:
        known = {key: value for key, value in held.provenance.to_json().items() if key not in ("parameters", "card")}
        return console.print_json({"patch": str(patch), "values": len(held), "changes": parameters, **known})
    after = held.provenance.after or "unknown, because it is composed of several"
    title = f"{patch}: {counted(len(held), 'value')}; fingerprint {held.provenance.before} -> {after}"
    together: dict[tuple[str, int, str], Counter[str]] = {}  # all experts of a parameter in one line
    for change in held.changes:
        dtype = str(change.after.dtype).removeprefix("torch.")
        total = together.setdefault((change.parameter.name, change.parameter.dim, dtype), Counter())
        total.update(rows=len(change.rows), values=change.after.numel())
    rows = [
        [name, counted(total["rows"], "column" if dim else "row"), f"{total['values']:,}", dtype]
        for (name, dim, dtype), total in together.items()
    ]
    console.print_table(title, ["parameter", "changed", "values", "type"], rows)
    print(f"made on {held.provenance.target}, the model to apply it to")
    for donor in held.provenance.donors:
        text = f", on {', '.join(donor.rule.corpora)}" if donor.rule.corpora else ""
        chosen = f"{counted(donor.channels, 'channel')} at strength {donor.strength}, by {donor.rule}{text}"
        print(f"donor {donor.name}: {chosen}")


def compose_command(
    patches: Annotated[list[Path], typer.Argument(help="Patches made on the same model.")],
    output: options.Output,
    conflict: Annotated[
        str, options.choice(None, ("refuse", "first", "last"), "Which patch wins a row that two change.")
    ] = "refuse",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Combine several patches of one model into one.

    The same row in two patches is a conflict, which is refused unless --conflict says which patch wins.
    """
    from act.editing.patch import Patch, compose, conflicts

    reserve_output(output, force, patches)
    require_ending(output, "the patch", (".safetensors",))
    held = [Patch.load(path) for path in patches]
    found = conflicts(held)
    joined = compose(held, conflict)  # type: ignore[arg-type]  # checked by compose
    joined.save(output, force=force)
    if as_json:
        return console.print_json({"output": str(output), "values": len(joined), "conflicts": found})
    title = f"{output}: {counted(len(joined), 'value')}"
    if found:
        rows = [[name, count] for name, count in found.items()]
        console.print_table(title, ["rows in several patches", f"from the {conflict}"], rows)
    else:
        print(f"{title} of {'one patch' if len(held) == 1 else f'{len(held):,} patches, which share no row'}")
    made_for = [donor.rule.models["target"].name for donor in joined.provenance.donors if "target" in donor.rule.models]
    next_step.after_transfer(made_for[0] if made_for else "TARGET", output)


def _write(patch: Path, model: str, output: Path, back: bool, hard_link: bool, force: bool, as_json: bool) -> None:
    from act.editing.folders import patch_folder
    from act.editing.patch import Patch
    from act.models.loading import model_folder

    console.require_models([model])
    reserve_output(output, force, [patch, model])
    require_folder_name(output)
    held = Patch.load(patch)
    patch_folder(held, model_folder(model), output, revert=back, hard_link=hard_link, force=force)
    done, now = ("put back", held.provenance.before) if back else ("changed", held.provenance.after)
    if as_json:
        changed = {"values": len(held), "parameters": held.parameters}
        return console.print_json({"output": str(output), **changed, "fingerprint": now})
    rows = [[f"values {done}", f"{len(held):,}"], [f"parameters {done}", f"{held.parameters:,}"]]
    console.print_table(str(output), ["", ""], [*rows, *([["fingerprint now", now]] if now else [])])
    if back:
        return print("these are the weights from before the transfer, to the byte")
    next_step.after_change(model, output)


_EXAMPLES: dict[Callable[..., None], str] = {
    apply: """
act-profile patch apply german.safetensors --model specialist/ \\
    --output mended/
act-profile patch apply german.safetensors --model specialist/ \\
    --output mended/ --hard-link
""",
    revert: """
act-profile patch revert german.safetensors --model mended/ \\
    --output specialist-again/
act-profile patch revert german.safetensors --model mended/ \\
    --output back/ --force
""",
    show: """
act-profile patch show german.safetensors
act-profile patch show german.safetensors --json
""",
    compose_command: """
act-profile patch compose german.safetensors code.safetensors \\
    --output both.safetensors
act-profile patch compose a.safetensors b.safetensors --conflict first \\
    --output both.safetensors
""",
}
for _name, (_command, _examples) in zip(("apply", "revert", "show", "compose"), _EXAMPLES.items(), strict=True):
    add(app, _command, _examples, _name)

"""The model card of a transfer: what was moved, from where, under which licences."""

from __future__ import annotations

from pathlib import Path

from act.editing.provenance import TransferProvenance

CARD = "README.md"


def licence_of(folder: str | Path) -> str:
    """The licence that a model's own card states; ``not stated`` if there is none."""
    card = Path(folder) / CARD
    if not card.is_file():
        return "not stated"
    from huggingface_hub import ModelCard

    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data
    except (ValueError, OSError):
        return "not stated"
    licence = data.get("license")
    return str(data.get("license_name") or licence) if licence else "not stated"


def write_card(
    folder: Path,
    target: str | Path,
    transfer: TransferProvenance,
    *,
    command: str = "act-profile transfer",
    afterwards: str = "",
) -> None:
    """Write ``README.md`` for a model made by a transfer.

    Args:
        folder: the folder of the new model.
        target: the model that was changed: a folder or a hub id, as the donors' names in ``transfer`` are.
        command: the command that made it.
        afterwards: Markdown on what was done besides the transfer.
    """
    from huggingface_hub.repocard_data import ModelCardData  # half a second less than the package's own name

    donors = [(donor, donor.name or "unnamed") for donor in transfer.donors]
    data = ModelCardData(
        base_model=[Path(name).name for name in (target, *(name for _, name in donors))],
        library_name="transformers",
        tags=["merge", "act-profile", "ability-transfer"],
    )
    lines = [
        "---",
        data.to_yaml(),
        "---",
        f"# {Path(target).name} with rows of {', '.join(Path(name).name for _, name in donors)}",
        "",
        f"Made by `{command}` (arXiv 2601.09398): the parameter rows of the chosen channels were blended,",
        "`target += strength * (donor - target)`; everything else is the target's.",
        "",
        "| | model | licence | channels | strength | chosen by |",
        "|---|---|---|---|---|---|",
        f"| target | {Path(target).name} | {licence_of(target)} | | | |",
    ]
    for donor, name in donors:
        lines.append(
            f"| donor | {Path(name).name} | {licence_of(name)} | {donor.channels:,} | {donor.strength} | {donor.rule} |"
        )
    lines += ["", f"Rows that several donors give: {transfer.overlap}." if len(donors) > 1 else ""]
    lines += [f"- {note}" for note in transfer.notes]
    lines += ["", f"Fingerprint before the transfer: `{transfer.before}`, after it: `{transfer.after}`."]
    lines += ["", afterwards] if afterwards else []
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")

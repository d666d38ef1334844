"""The model card of a transfer: what was moved, from where, under which licences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"


def licence_of(folder: str | Path) -> str:
    """The licence that a model's own card states, or ``not stated``."""
    from huggingface_hub import ModelCard

    card = Path(folder) / CARD
    if not card.is_file():
        return "not stated"
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data
    except (ValueError, OSError):
        return "not stated"
    licence = data.get("license")
    return str(data.get("license_name") or licence) if licence else "not stated"


def write_card(
    folder: Path,
    target: str | Path,
    donors: Sequence[str | Path],
    header: dict[str, Any],
    *,
    command: str = "act-profile transfer",
    afterwards: str = "",
) -> None:
    """Write ``README.md`` for a model made by a transfer.

    Args:
        header: the patch's.
        command: what made it.
        afterwards: a sentence on what was done after the transfer.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=[Path(name).name for name in (target, *donors)],
        library_name="transformers",
        tags=["merge", "act-profile", "ability-transfer"],
    )
    lines = [
        "---",
        data.to_yaml(),
        "---",
        f"# {Path(target).name} with rows of {', '.join(Path(donor).name for donor in donors)}",
        "",
        f"Made by `{command}` (arXiv 2601.09398): the parameter rows of the chosen channels were blended,",
        "`target += strength * (donor - target)`; everything else is the target's.",
        "",
        "| | model | licence | channels | strength | chosen by |",
        "|---|---|---|---|---|---|",
        f"| target | {Path(target).name} | {licence_of(target)} | | | |",
    ]
    for donor, graft in zip(donors, header["grafts"], strict=True):
        rule = graft["rule"]
        chosen = ", ".join(f"{key} {rule[key]}" for key in ("score", "top", "normalize", "contrast") if key in rule)
        lines.append(
            f"| donor | {Path(donor).name} | {licence_of(donor)} | {graft['channels']:,} "
            f"| {graft['strength']} | {chosen} |"
        )
    lines += ["", f"Rows that several donors give: {header['overlap']}." if len(donors) > 1 else ""]
    lines += [f"- {note}" for note in header["notes"]]
    lines += ["", f"Fingerprint before the transfer: `{header['before']}`, after it: `{header['after']}`."]
    lines += ["", afterwards] if afterwards else []
    (folder / CARD).write_text("\n".join(lines) + "\n")

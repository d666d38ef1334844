"""Transfer between model folders, shard by shard, without loading a model.

The target's files are copied by the kernel (shards that nothing changes are hard-linked), then the changed rows are
overwritten in the copies through a memory map, one tensor at a time: no more than one tensor of a donor and one of the
target is resident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from act.errors import ActError
from act.files import written_whole
from act.fingerprint import fingerprint
from act.model_card import write_card
from act.patch import Patch
from act.stored import Parameters, StoredModel, copy_model
from act.transfer import Graft, Overlap, blend, transfer_many


@dataclass
class Transferred:
    """What a transfer on disk did: values and parameters changed, notes on what was left out, fingerprints, donors."""

    values: int = 0
    parameters: int = 0
    notes: list[str] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=dict)


def transfer_folders(
    grafts: Sequence[Graft],
    donors: Sequence[str | Path],
    target: str | Path,
    output: str | Path,
    overlap: Overlap = "sum",
    *,
    force: bool = False,
) -> Transferred:
    """Write ``target`` with the rows of the donors' channels as a new model folder.

    Args:
        grafts: channels and strength of each donor; their ``donor`` is replaced by the weights in ``donors``.
        donors, target: model folders with safetensors weights; only read.
        output: the new folder; tokenizer, config, generation config and chat template are the target's.
        overlap: as :func:`act.transfer_many`.

    Raises:
        act.stored.RenamedWeights: names on disk are not the parameters' (load the models and use
            :func:`act.transfer_many`).
        ActError: as :func:`act.transfer_many`; ``output`` is one of the inputs, or exists and ``force`` is False.
    """
    output = Path(output)
    require_not_input(output, [*donors, target])
    space = grafts[0].channels.space
    placed = [
        replace(graft, donor=open_parameters(donor, graft), name=graft.name or str(donor))
        for graft, donor in zip(grafts, donors, strict=True)
    ]
    source = StoredModel(target)
    require_unquantised(source)
    before = fingerprint(source.parameters(space))
    changed = {
        part.name
        for graft in grafts
        for site, _ in graft.channels.space.split(graft.channels.index)
        for part in site.parameters
    }
    changed |= {name for graft in grafts for name in _input_names(graft)}
    result = Transferred()
    with written_whole(output, force=force, directory=True) as folder:
        copy_model(source, folder, changed)
        copies = StoredModel(folder, writable=True).parameters(space)
        for change in blend(placed, copies, overlap, result.notes, before):
            result.values += change.before.numel()
            result.parameters += 1
        result.header = {
            "grafts": [graft.describe() for graft in placed],
            "overlap": overlap,
            "notes": result.notes,
            "before": before,
            "after": fingerprint(copies),
        }
        write_card(folder, target, donors, result.header)
    return result


def patch_of_folders(
    grafts: Sequence[Graft], donors: Sequence[str | Path], target: str | Path, overlap: Overlap = "sum"
) -> Patch:
    """The patch that :func:`transfer_folders` would be, with both folders left as they are.

    The target is mapped privately: changed pages stay in memory, about the size of the patch, twice.
    """
    placed = [
        replace(graft, donor=open_parameters(donor, graft), name=graft.name or str(donor))
        for graft, donor in zip(grafts, donors, strict=True)
    ]
    source = StoredModel(target)
    require_unquantised(source)
    parameters = source.parameters(grafts[0].channels.space)
    return transfer_many(placed, dict(parameters), overlap)


def patch_folder(
    patch: Patch, model: str | Path, output: str | Path, *, revert: bool = False, force: bool = False
) -> None:
    """Apply a patch to a model folder, or take it back, into a new folder.

    Raises:
        ActError: the model is not the one the patch expects; ``output`` is ``model``, or exists and ``force`` is False.
    """
    output = Path(output)
    require_not_input(output, [model])
    source = StoredModel(model)
    require_unquantised(source)
    names = patch.header.get("parameters") or list(source)
    missing = [name for name in names if name not in source]
    if missing:
        raise ActError(f"the patch is for another model: {model} has no {missing[0]}")
    with written_whole(output, force=force, directory=True) as folder:
        copy_model(source, folder, {change.part.name for change in patch.changes})
        copies = Parameters(StoredModel(folder, writable=True), names)
        (patch.revert if revert else patch.apply)(copies)


def open_parameters(folder: str | Path, graft: Graft) -> Parameters:
    """A donor's parameters on disk."""
    stored = StoredModel(folder)
    require_unquantised(stored)
    return stored.parameters(graft.channels.space)


def require_unquantised(stored: StoredModel) -> None:
    """Raise :class:`ActError` for a quantised model: its stored values are not the parameters."""
    if "quantization_config" in stored.config:
        raise ActError(
            f"{stored.folder} is quantised, which can be profiled but not transferred; "
            "give the unquantised checkpoint, transfer, and quantise the result"
        )


def require_not_input(output: Path, inputs: Sequence[str | Path]) -> None:
    """Raise :class:`ActError` where an output would replace something that is read, or lie inside or around it."""
    place = output.resolve()
    for one in inputs:
        held = Path(one).resolve()
        if held.exists() and (place == held or held in place.parents or place in held.parents):
            raise ActError(f"the output {output} would overwrite the input {one}; choose another output")


def _input_names(graft: Graft) -> list[str]:
    inputs = getattr(graft.channels, "inputs", {})
    return [graft.channels.space.site(name).parameters[0].name for name in inputs]

"""Transfer between model folders, shard by shard, without loading a model.

The target's files are copied by the kernel (shards that nothing changes are hard-linked), then the changed rows are
overwritten in the copies through a memory map, one tensor at a time: no more than one tensor of a donor and one of the
target is resident.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from act.core.errors import ActError
from act.core.files import require_not_input, written_whole
from act.editing.model_card import write_card
from act.editing.patch import Patch
from act.editing.stored import Parameters, StoredModel, copied
from act.editing.transfer import (
    Claim,
    Graft,
    Overlap,
    blend,
    describe,
    donor_fingerprint,
    plan,
    require_models,
    rows_of,
    transfer_many,
)
from act.models.fingerprint import Diagonal, digest


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
        act.editing.stored.RenamedWeights: names on disk are not the parameters' (load the models and use
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
    parameters = source.parameters(space)
    result = Transferred()
    claims = plan(placed, parameters, overlap, result.notes)
    with (
        ThreadPoolExecutor(1) as aside,
        written_whole(output, force=force, directory=True) as folder,
        copied(source, folder, claims) as copies,
    ):
        checks = [aside.submit(donor_fingerprint, graft) for graft in placed]
        others = Parameters(source, sorted(parameters.keys() - claims.keys()))
        before = {name: Diagonal.of(parameter) for name, parameter in others.items()}
        after = dict(before)
        following = iter([*list(claims.values())[1:], []])
        for name, held in claims.items():
            rows, dim = rows_of(held), held[0].part.dim
            for claim in next(following):
                _prefetch(claim)
            parameter = copies[name]
            before[name] = Diagonal.of(parameter)
            blend({name: held}, {name: parameter}, overlap)
            after[name] = before[name].reread(parameter, dim, rows)
            result.values += len(rows) * (parameter.numel() // parameter.shape[dim])
        require_models(placed, digest(before), [check.result() for check in checks])
        result.parameters = len(claims)
        prints = {"before": digest(before), "after": digest(after)}
        result.header = {**describe(placed, overlap, result.notes), **prints}
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
    return transfer_many(placed, source.parameters(grafts[0].channels.space), overlap)


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
    changed = [change.part.name for change in patch.changes]
    with written_whole(output, force=force, directory=True) as folder, copied(source, folder, changed) as copies:
        (patch.revert if revert else patch.apply)(Parameters(copies, names))


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


def _prefetch(claim: Claim) -> None:
    """Begin to read what a donor gives: its rows, or all of a tensor whose columns are wanted."""
    assert isinstance(claim.source, Parameters)
    claim.source.stored.prefetch(claim.part.name, None if claim.part.dim or claim.tokens else claim.rows)

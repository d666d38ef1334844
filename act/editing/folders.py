"""Transfer between model folders, shard by shard, without loading a model.

The target's files are copied by the kernel, then the changed rows are overwritten in the copies through a memory map.
At most one tensor of a donor and two of the target are in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from act.core.errors import ActError
from act.core.inputs import require_not_input
from act.editing.card_results import CARD
from act.editing.copies import Copy, copied
from act.editing.donor import Donor
from act.editing.model_card import write_card
from act.editing.patch import ChangedRows, Patch
from act.editing.provenance import TransferProvenance
from act.editing.remembered import believed
from act.editing.rows import DonorRows, Overlap
from act.editing.stored import Parameters, StoredModel, digests
from act.editing.transfer import transfer_many
from act.editing.transfer_plan import OtherModel, TransferPlan
from act.editing.weight_files import RenamedWeights
from act.models.fingerprint import digest
from act.models.sites import ParameterSlice

LONGEST_CARD = 1_000_000  # bytes


@dataclass(frozen=True)
class Transferred:
    """What a transfer between folders did: how many values of how many parameters changed, and from which donors."""

    values: int
    parameters: int
    provenance: TransferProvenance


def transfer_folders(
    donors: Sequence[Donor],
    target: str | Path,
    output: str | Path,
    overlap: Overlap = "sum",
    *,
    hard_link: bool = False,
    force: bool = False,
) -> Transferred:
    """Write ``target`` with the rows of the donors' channels as a new model folder.

    Args:
        donors: their ``model`` is a model folder with safetensors weights.
        target: a model folder; only read.
        output: the new folder; every file beside the weights is the target's (:func:`act.editing.copies.companions`).
        overlap: as in :func:`act.transfer_many`.
        hard_link: link shards that nothing changes to the target's instead of copying them. A program that later
            writes in place into one of the two then changes both.

    Raises:
        act.editing.weight_files.RenamedWeights: what is stored is not what the models have (load them and use
            :func:`act.transfer_many`).
        ActError: as :func:`act.transfer_many`; ``output`` is one of the inputs, or exists and ``force`` is False.
    """
    output = Path(output)
    require_not_input(output, [*(str(donor.model) for donor in donors), target])
    with copied(Path(target), output, force=force) as copy:
        return transfer_into(copy, donors, overlap, hard_link=hard_link)


def transfer_into(
    copy: Copy,
    donors: Sequence[Donor],
    overlap: Overlap = "sum",
    *,
    hard_link: bool = False,
    more: str = "",
    commands: bool = True,
) -> Transferred:
    """As :func:`transfer_folders`, of a target whose copy may have begun (:meth:`act.editing.copies.Copy.begin`).

    Args:
        more: what the model card says besides.
        commands: whether the channels are found again by ranking alone (:func:`act.editing.model_card.write_card`).
    """
    return believed(lambda: _transferred(copy, donors, overlap, hard_link, more, commands))


def _transferred(
    copy: Copy, donors: Sequence[Donor], overlap: Overlap, hard_link: bool, more: str, commands: bool
) -> Transferred:
    parameters = StoredModel(copy.source).parameters(donors[0].channels.space)
    plan = TransferPlan.make(donors, parameters, overlap)
    held = {part: parameters.tensors_of(part) for part in plan.given}
    changing = [stored for places in held.values() for stored in places]
    with _aside() as aside:
        fingerprints = aside.submit(plan.donor_fingerprints)
        copies = Parameters(copy.of(parameters.stored, changing, hard_link=hard_link), parameters.places)
        before = parameters.diagonals(name for name in parameters if name not in plan.parts)
        after = dict(before)
        unsummed = parameters.unsummed(plan.given)
        values = 0
        for (name, parts), (_, following) in pairwise([*plan.parts.items(), ("", [])]):
            for part in following:
                _prefetch(plan.given[part])
            before |= copies.diagonals([name], anew=unsummed)
            changes = []
            for part in parts:
                change = _blended(plan, part, copies, held[part])
                parameters.require(part, change.rows, change.before)
                changes.append(change)
                values += change.after.numel()
            after[name] = before[name].after(changes)
        with _or_loaded(donors, parameters):
            plan.require_models(parameters, digests(parameters, before), fingerprints.result())
    copy.wait()
    parameters.remember()
    provenance = plan.provenance(digest(before), digest(after), list(parameters))
    write_card(copy.folder, copy.source, provenance, afterwards=more, commands=commands)
    if not hard_link:  # of a file that is linked, others may have the map
        parameters.remember_as(after, copy.folder, copy.output)
    return Transferred(values, len(plan.parts), provenance)


def patch_of_folders(donors: Sequence[Donor], target: str | Path, overlap: Overlap = "sum") -> Patch:
    """The patch of what :func:`transfer_folders` would change; all folders are only read.

    The target is mapped privately, so changed pages stay in memory: about twice the size of the patch.
    """
    parameters = StoredModel(target).parameters(donors[0].channels.space)
    with _or_loaded(donors, parameters):
        patch = transfer_many(donors, parameters, overlap)
    return with_card_of(target, patch)


def with_card_of(target: str | Path, patch: Patch) -> Patch:
    """A patch that keeps the README.md of a target's folder, for a revert; of text alone, and 1 MB at most."""
    try:
        content = Path(target, CARD).read_bytes()
        card = content.decode() if len(content) <= LONGEST_CARD else None
    except (OSError, UnicodeDecodeError):
        card = None
    return Patch(patch.changes, replace(patch.provenance, card=card))


def patch_folder(
    patch: Patch,
    model: str | Path,
    output: str | Path,
    *,
    revert: bool = False,
    hard_link: bool = False,
    force: bool = False,
) -> None:
    """Write a model folder with a patch applied, or reverted, as a new folder.

    It has a card, if the patch says who gave rows; a reverted one has the README.md that the patch has kept.

    Args:
        hard_link: as in :func:`transfer_folders`.

    Raises:
        ActError: the model is not the one the patch expects; ``output`` is ``model``, or exists and ``force`` is False.
    """
    output = Path(output)
    require_not_input(output, [model])
    source = StoredModel(model)
    parameters = source.named(patch.provenance.parameters or list(source))
    names = {change.parameter.key for change in patch.changes}
    if missing := sorted(names - parameters.keys()):
        raise ActError(f"the patch is for another model: {model} has no {missing[0]}")
    patch.require_parts(parameters)
    held = {change.parameter: parameters.tensors_of(change.parameter) for change in patch.changes}
    changing = [stored for places in held.values() for stored in places]
    with copied(source.folder, output, force=force) as copy:
        written = Parameters(copy.of(source, changing, hard_link=hard_link), parameters.places)
        (patch.revert if revert else patch.apply)(written)
        for change in patch.changes:
            new = change.before if revert else change.after
            _repeat(change.parameter, change.rows, new, written, held[change.parameter][1:])
        copy.wait()
        if revert and patch.provenance.card is not None:
            (copy.folder / CARD).write_bytes(patch.provenance.card.encode())
        elif patch.provenance.donors and not revert:
            write_card(copy.folder, copy.source, patch.provenance, command="act-profile patch apply")


def _blended(plan: TransferPlan, part: ParameterSlice, target: Parameters, held: Sequence[str]) -> ChangedRows:
    """Blend one part of a parameter of the copied target, in every tensor that holds it."""
    matrix, rows = target.matrix(part), plan.changed(part)
    old = matrix[rows]
    plan.blend({part: matrix})
    new = matrix[rows]
    _repeat(part, rows, new, target, held[1:])
    return ChangedRows(part, rows, old, new)


def _repeat(
    part: ParameterSlice, rows: torch.Tensor, new: torch.Tensor, written: Parameters, copies: Iterable[str]
) -> None:
    """Write the changed rows of a parameter to the other tensors that hold it, so that they stay tied."""
    for stored in copies:
        other = written.matrix(part, stored)
        other[rows] = new.to(other.dtype)


@contextlib.contextmanager
def _aside() -> Iterator[Executor]:
    """A thread beside this one; if the block fails, what it still reads is not waited for."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def _or_loaded(donors: Sequence[Donor], target: Parameters) -> Iterator[None]:
    """Where a model with other weights may be one that is only rounded otherwise as it is loaded, ask to load it."""
    try:
        yield
    except OtherModel as error:
        for weights in (target, *(donor.weights for donor in donors)):
            if isinstance(weights, Parameters) and (rounded := weights.rounded()):
                raise RenamedWeights(
                    f"{weights.stored.folder} stores {rounded[0]} in a wider type than {weights.stored.loaded_dtype}, "
                    "in which the model is loaded"
                ) from error
        raise


def _prefetch(given: Iterable[DonorRows]) -> None:
    """Begin to read what donors give: rows, or all of a part if columns are wanted."""
    for one in given:
        assert isinstance(one.weights, Parameters)
        one.weights.prefetch(one.parameter, None if one.tokens else one.rows)

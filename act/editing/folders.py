"""Transfer between model folders, shard by shard, without loading a model.

The target's files are copied by the kernel, then the changed rows are overwritten in the copies through a memory map.
At most one tensor of a donor and two of the target are in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from act.core.errors import ActError
from act.core.files import written_whole
from act.core.inputs import require_not_input
from act.editing.copies import copied
from act.editing.donor import Donor
from act.editing.model_card import write_card
from act.editing.patch import Patch
from act.editing.provenance import TransferProvenance
from act.editing.rows import DonorRows, Overlap
from act.editing.stored import Parameters, StoredModel, digests
from act.editing.transfer import transfer_many
from act.editing.transfer_plan import OtherModel, TransferPlan
from act.editing.weight_files import RenamedWeights
from act.models.fingerprint import Diagonal, digest
from act.models.sites import ParameterSlice


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
    source = StoredModel(target)
    parameters = source.parameters(donors[0].channels.space)
    plan = TransferPlan.make(donors, parameters, overlap)
    held = {name: [parameters.places[name], *parameters.copies_of(name)] for name in plan.given}
    changing = [stored for places in held.values() for stored in places]
    with (
        _aside() as aside,
        written_whole(output, force=force, directory=True) as folder,
        copied(source, folder, changing, hard_link=hard_link) as copies,
    ):
        fingerprints = aside.submit(plan.donor_fingerprints)
        others = Parameters(source, {name: at for name, at in parameters.places.items() if name not in held})
        before = {name: Diagonal.of(parameter) for name, parameter in others.items()}
        after = dict(before)
        values = 0
        coming = [*list(plan.given.values())[1:], []]
        for name, following in zip(plan.given, coming, strict=False):
            for given in following:
                _prefetch(given)
            changed, rows = plan.changed(name)
            parameter, *tied = (copies[place] for place in held[name])
            before[name] = Diagonal.of(parameter)
            plan.blend({name: parameter})
            _repeat(changed, rows, parameter, tied)
            after[name] = before[name].reread(parameter, changed.dim, rows)
            values += len(rows) * (parameter.numel() // parameter.shape[changed.dim])
        with _or_loaded(donors, parameters):
            plan.require_models(digests(parameters, before), fingerprints.result())
        provenance = plan.provenance(digest(before), digest(after), list(parameters))
        write_card(folder, target, provenance)
    return Transferred(values, len(plan.given), provenance)


def patch_of_folders(donors: Sequence[Donor], target: str | Path, overlap: Overlap = "sum") -> Patch:
    """The patch of what :func:`transfer_folders` would change; all folders are only read.

    The target is mapped privately, so changed pages stay in memory: about twice the size of the patch.
    """
    parameters = StoredModel(target).parameters(donors[0].channels.space)
    with _or_loaded(donors, parameters):
        return transfer_many(donors, parameters, overlap)


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

    Args:
        hard_link: as in :func:`transfer_folders`.

    Raises:
        ActError: the model is not the one the patch expects; ``output`` is ``model``, or exists and ``force`` is False.
    """
    output = Path(output)
    require_not_input(output, [model])
    source = StoredModel(model)
    parameters = source.named(patch.provenance.parameters or list(source))
    names = {change.parameter.name for change in patch.changes}
    if missing := sorted(names - parameters.keys()):
        raise ActError(f"the patch is for another model: {model} has no {missing[0]}")
    held = {name: [parameters.places[name], *parameters.copies_of(name)] for name in names}
    changing = [stored for places in held.values() for stored in places]
    with (
        written_whole(output, force=force, directory=True) as folder,
        copied(source, folder, changing, hard_link=hard_link) as copies,
    ):
        (patch.revert if revert else patch.apply)(Parameters(copies, parameters.places))
        for change in patch.changes:
            parameter, *tied = (copies[place] for place in held[change.parameter.name])
            _repeat(change.parameter, change.rows, parameter, tied)


def _repeat(
    changed: ParameterSlice, rows: torch.Tensor, parameter: torch.Tensor, copies: Iterable[torch.Tensor]
) -> None:
    """Write the changed rows of a parameter to the other tensors that hold it, so that they stay tied."""
    new = changed.matrix({changed.name: parameter})[rows]
    for one in copies:
        changed.matrix({changed.name: one})[rows] = new.to(one.dtype)


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


def _prefetch(given: DonorRows) -> None:
    """Begin to read what a donor gives: its rows, or the whole tensor if columns are wanted."""
    assert isinstance(given.weights, Parameters)
    rows = None if given.parameter.dim or given.tokens else given.rows
    given.weights.stored.prefetch(given.weights.places[given.parameter.name], rows)

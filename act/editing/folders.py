"""Transfer between model folders, shard by shard, without loading a model.

The target's files are copied by the kernel (shards that nothing changes are hard-linked), then the changed rows are
overwritten in the copies through a memory map. At most one tensor of a donor and one of the target are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from act.core.errors import ActError
from act.core.files import require_not_input, written_whole
from act.editing.donor import Donor
from act.editing.model_card import write_card
from act.editing.patch import Patch
from act.editing.provenance import TransferProvenance
from act.editing.rows import DonorRows, Overlap
from act.editing.stored import Parameters, StoredModel, copied
from act.editing.transfer import transfer_many
from act.editing.transfer_plan import TransferPlan
from act.models.fingerprint import Diagonal, digest


@dataclass(frozen=True)
class Transferred:
    """What a transfer between folders did: how many values of how many parameters changed, and from which donors."""

    values: int
    parameters: int
    provenance: TransferProvenance


def transfer_folders(
    donors: Sequence[Donor], target: str | Path, output: str | Path, overlap: Overlap = "sum", *, force: bool = False
) -> Transferred:
    """Write ``target`` with the rows of the donors' channels as a new model folder.

    Args:
        donors: their ``model`` is a model folder with safetensors weights.
        target: a model folder; only read.
        output: the new folder; tokenizer, config, generation config and chat template are the target's.
        overlap: as in :func:`act.transfer_many`.

    Raises:
        act.editing.stored.RenamedWeights: names on disk are not the parameters' (load the models and use
            :func:`act.transfer_many`).
        ActError: as :func:`act.transfer_many`; ``output`` is one of the inputs, or exists and ``force`` is False.
    """
    output = Path(output)
    require_not_input(output, [*(str(donor.model) for donor in donors), target])
    source = StoredModel(target)
    parameters = source.parameters(donors[0].channels.space)
    plan = TransferPlan.make(donors, parameters, overlap)
    with (
        ThreadPoolExecutor(1) as aside,
        written_whole(output, force=force, directory=True) as folder,
        copied(source, folder, plan.given) as copies,
    ):
        fingerprints = aside.submit(plan.donor_fingerprints)
        others = Parameters(source, sorted(parameters.keys() - plan.given.keys()))
        before = {name: Diagonal.of(parameter) for name, parameter in others.items()}
        after = dict(before)
        values = 0
        coming = [*list(plan.given.values())[1:], []]
        for name, following in zip(plan.given, coming, strict=False):
            for given in following:
                _prefetch(given)
            changed, rows = plan.changed(name)
            parameter = copies[name]
            before[name] = Diagonal.of(parameter)
            plan.blend({name: parameter})
            after[name] = before[name].reread(parameter, changed.dim, rows)
            values += len(rows) * (parameter.numel() // parameter.shape[changed.dim])
        plan.require_models(digest(before), fingerprints.result())
        provenance = plan.provenance(digest(before), digest(after), list(parameters))
        write_card(folder, target, provenance)
    return Transferred(values, len(plan.given), provenance)


def patch_of_folders(donors: Sequence[Donor], target: str | Path, overlap: Overlap = "sum") -> Patch:
    """The patch of what :func:`transfer_folders` would change; all folders are only read.

    The target is mapped privately, so changed pages stay in memory: about twice the size of the patch.
    """
    return transfer_many(donors, StoredModel(target).parameters(donors[0].channels.space), overlap)


def patch_folder(
    patch: Patch, model: str | Path, output: str | Path, *, revert: bool = False, force: bool = False
) -> None:
    """Write a model folder with a patch applied, or reverted, as a new folder.

    Raises:
        ActError: the model is not the one the patch expects; ``output`` is ``model``, or exists and ``force`` is False.
    """
    output = Path(output)
    require_not_input(output, [model])
    source = StoredModel(model)
    names = patch.provenance.parameters or list(source)
    missing = [name for name in names if name not in source]
    if missing:
        raise ActError(f"the patch is for another model: {model} has no {missing[0]}")
    changed = [change.parameter.name for change in patch.changes]
    with written_whole(output, force=force, directory=True) as folder, copied(source, folder, changed) as copies:
        (patch.revert if revert else patch.apply)(Parameters(copies, names))


def _prefetch(given: DonorRows) -> None:
    """Begin to read what a donor gives: its rows, or the whole tensor if columns are wanted."""
    assert isinstance(given.weights, Parameters)
    rows = None if given.parameter.dim or given.tokens else given.rows
    given.weights.stored.prefetch(given.parameter.name, rows)

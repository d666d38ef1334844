"""Transfer: ``theta_target[row] += strength * (theta_donor[row] - theta_target[row])`` on the rows of a channel set.

One implementation serves models in memory and checkpoints on disk: both are mappings of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from act.core.errors import ActError, require_type
from act.editing.donor import Donor, weights_of
from act.editing.earlier import remember_earlier
from act.editing.patch import ChangedRows, Patch
from act.editing.remembered import believed
from act.editing.rows import Overlap, Tokens, Weights, matrix_of
from act.editing.stored import Parameters, diagonals_of, digests
from act.editing.transfer_plan import TransferPlan
from act.models.fingerprint import Diagonal, digest
from act.ranking.channel_set import ChannelSet


def transfer(
    donor: nn.Module | Weights | str | Path,
    target: nn.Module | Weights,
    channels: ChannelSet,
    strength: float | Mapping[str, float] = 0.4,
    *,
    tokens: Tokens | None = None,
) -> Patch:
    """Blend the parameter rows of ``channels`` from donor into target, in place.

    Args:
        donor, target: models of the channel set's architecture, or their weights by parameter name; the donor, which
            may also be a model folder, is only read.
        channels: the channels to transfer.
        strength: the paper's lambda; 1 copies the donor's rows bit for bit. Or one for each pattern: :class:`Donor`.
        tokens: the tokens shared with a donor of another vocabulary: :func:`shared_tokens`.

    Returns:
        A :class:`Patch`: ``revert(target)`` gives back the original bytes, ``notes`` say what was left out.

    Raises:
        ActError: a negative or non-finite strength; models of another architecture, or other models than those the set
            was made for; a parameter that is not float32, bfloat16 or float16.

    >>> channels = act.rank(act.profile_pair(donor, target, corpus), top=0.05)
    >>> patch = act.transfer(donor, target, channels, strength=0.4)
    >>> patch.notes
    []
    >>> patch.revert(target)
    """
    return transfer_many([Donor(donor, channels, strength, tokens)], target)


def transfer_many(donors: Sequence[Donor], target: nn.Module | Weights, overlap: Overlap = "sum") -> Patch:
    """Blend rows of several donors into one target, in place.

    Args:
        donors: the models to take from, with their channels and strengths.
        target: the model to change, or its weights by parameter name.
        overlap: for a row that several donors give, with steps ``strength_i * (theta_i - theta_target)``: their ``sum``
            or ``mean``; or the step of the ``first`` donor listed, or of the ``stronger`` one (higher channel score).

    Raises:
        ActError: as :func:`transfer`; an unknown rule; rows of one donor that cross columns of another.

    >>> channels = act.rank(act.profile_pair(donor, target, corpus), top=0.05)
    >>> donors = [act.Donor(donor, channels, 0.3), act.Donor(donor, channels, 0.1)]
    >>> patch = act.transfer_many(donors, target, overlap="mean")
    >>> patch.revert(target)
    """
    if isinstance(donors, Donor):
        raise ActError("the donors are one act.Donor; expected a list of them, such as [act.Donor(model, channels)]")
    for each in donors:
        require_type("a donor", each, Donor, "an act.Donor, which names a model, its channels and a strength")
    weights = weights_of(target, "target")
    plan = TransferPlan.make(donors, weights, overlap)
    diagonals = believed(lambda: _checked(plan, weights))
    before = digest(diagonals)
    # Models in memory change in one launch per device. From disk, one parameter is mapped at a time.
    together = [list(plan.given)] if isinstance(target, nn.Module) else plan.parts.values()
    changes: dict[str, list[ChangedRows]] = {name: [] for name in plan.parts}
    for parts in together:
        matrices = {part: matrix_of(part, weights) for part in parts}
        old = plan.values(matrices)
        plan.blend(matrices)
        for part, earlier, later in zip(parts, old, plan.values(matrices), strict=True):
            changes[part.key].append(ChangedRows(part, plan.changed(part), earlier, later))
    after = diagonals | {name: diagonals[name].after(changed) for name, changed in changes.items()}
    changed = [change for parts in changes.values() for change in parts]
    if isinstance(target, nn.Module):
        chosen_for = [one.made_for["target"].fingerprint for one in donors if "target" in one.made_for]
        remember_earlier(target, [before, *chosen_for])
    return Patch(changed, plan.provenance(before, digest(after), list(weights)))


def _checked(plan: TransferPlan, weights: Weights) -> dict[str, Diagonal]:
    """The diagonals of a target, which fit the rows that a transfer reads.

    Raises:
        ActError: a channel set was made for other models.
        Outdated: what an earlier run has kept of a target in a folder is wrong.
    """
    stored = weights if isinstance(weights, Parameters) else None
    diagonals = diagonals_of(weights, stored.unsummed(plan.given) if stored else ())
    plan.require_models(weights, digests(weights, diagonals), plan.donor_fingerprints())
    if stored:
        for part in plan.given:
            rows = plan.changed(part)
            stored.require(part, rows, stored.matrix(part)[rows])
        stored.remember()
    return diagonals

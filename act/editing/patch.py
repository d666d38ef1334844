"""Patches: the rows that a transfer changed, before and after, as a reversible edit and a small file of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import TypeAdapter
from torch import nn

from act.core.counted import counted
from act.core.errors import ActError, option, require_choice, require_type
from act.core.plain import Label, checked
from act.core.tensor_files import FLOATS, indices, load_tensors, save_tensors, taken, understood
from act.editing.earlier import remember_earlier
from act.editing.provenance import TransferProvenance
from act.editing.remembered import believed
from act.editing.rows import MODEL_OR_WEIGHTS, Weights, by_slice, described, form_of, matrix_of, shape_in
from act.editing.stored import Parameters, diagonals_of
from act.models.fingerprint import digest
from act.models.placement import require_in_memory, require_whole
from act.models.sites import Dim, ParameterSlice
from act.models.views import language_view

SCHEMA = "act-patch/1"
_PARTS = TypeAdapter(tuple[tuple[Label, Dim] | ParameterSlice, ...])
Conflict = Literal["refuse", "first", "last"]


@dataclass(frozen=True)
class ChangedRows:
    """The rows of one part of a parameter that a transfer changed (columns, where ``parameter.dim`` is 1).

    Attributes:
        rows: where in the part, along ``parameter.dim``, sorted and distinct, int64 ``[K]``.
        before, after: their values ``[K, W]`` in the parameter's dtype.
    """

    parameter: ParameterSlice
    rows: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


class Patch:
    """What a transfer changed in a model, with the original bytes.

    Attributes:
        changes: the rows changed; no value lies in two changes.
        provenance: the donors, and the fingerprints of the model before and after.

    >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=8, include="lm_head")
    >>> patch = act.transfer(donor, target, channels)
    >>> len(patch), patch.nbytes, patch.parameters  # 8 rows of 32 values of float32
    (256, 1024, 1)
    >>> patch.notes  # nothing was left out
    []
    >>> patch.revert(target)  # the bytes from before
    >>> patch.apply(target)
    """

    def __init__(self, changes: Sequence[ChangedRows], provenance: TransferProvenance) -> None:
        self.changes = list(changes)
        self.provenance = provenance

    def __len__(self) -> int:
        """Number of values changed."""
        return sum(change.before.numel() for change in self.changes)

    def __repr__(self) -> str:
        return f"<Patch: {self._size()}, from {self._donors()} to {self.provenance.target}>"

    def _repr_html_(self) -> str:
        """The table that a notebook shows: one row per donor."""
        rows = "".join(
            f"<tr><td>{escape(donor.name or 'unnamed')}</td><td>{donor.channels:,}</td>"
            f"<td>{escape(str(donor.strength))}</td></tr>"
            for donor in self.provenance.donors
        )
        return (
            f"<table><caption>Patch of {self._size()}, to {escape(self.provenance.target)}</caption>"
            f"<thead><tr><th>donor</th><th>channels</th><th>strength</th></tr></thead><tbody>{rows}</tbody></table>"
        )

    def _size(self) -> str:
        rows = sum(len(change.rows) for change in self.changes)
        size = f"{counted(rows, 'row')} of {counted(self.parameters, 'parameter')}, {_readable(self.nbytes)}"
        return " of ".join([size, *([" and ".join(self.types)] if self.changes else [])])

    def _donors(self) -> str:
        return " and ".join(donor.name or "an unnamed donor" for donor in self.provenance.donors) or "no donor"

    @property
    def parameters(self) -> int:
        """Number of parameters that it changes, in one part or several."""
        return len({change.parameter.name for change in self.changes})

    @property
    def types(self) -> list[str]:
        """The types of the values that it changes.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=8)
        >>> patch = act.transfer(donor, target, channels)
        >>> patch.types
        ['float32']
        >>> patch.revert(target)
        """
        return sorted({_called(change.after.dtype) for change in self.changes})

    @property
    def nbytes(self) -> int:
        """Bytes of the values that the patch writes; it holds as many original ones."""
        return sum(change.after.nbytes for change in self.changes)

    @property
    def notes(self) -> list[str]:
        """What was left out, and why."""
        return list(self.provenance.notes)

    def apply(self, model: nn.Module | Weights) -> None:
        """Write the rows into a model that holds the original ones.

        Raises:
            ActError: the model's fingerprint is not the one before the transfer, or rows differ; nothing is written.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=10)
        >>> patch = act.transfer(donor, target, channels)
        >>> patch.revert(target)
        >>> patch.apply(target)  # the target again holds what was transferred
        """
        self._write(model, forward=True)

    def revert(self, model: nn.Module | Weights) -> None:
        """Give ``model`` back the bytes it had before the transfer.

        Raises:
            ActError: the model's fingerprint is not the one after the transfer, or rows no longer hold what the
                transfer wrote; nothing is written then.

        >>> before = target.lm_head.weight.clone()
        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=10, include="head")
        >>> patch = act.transfer(donor, target, channels)
        >>> patch.revert(target)
        >>> torch.equal(target.lm_head.weight, before)
        True
        """
        self._write(model, forward=False)

    def _write(self, model: nn.Module | Weights, forward: bool) -> None:
        require_type("the model", model, (nn.Module, Mapping), MODEL_OR_WEIGHTS)
        if isinstance(model, nn.Module):
            require_whole(model)
            require_in_memory(model, "model")
        weights = dict(language_view(model).named_parameters()) if isinstance(model, nn.Module) else model
        self.require_parts(weights)
        for change in self.changes:
            found, expected = matrix_of(change.parameter, weights), change.before if forward else change.after
            if change.rows.max() >= len(found) or not same_bytes(found[change.rows.to(found.device)], expected):
                raise ActError(f"{described(change.parameter)} {_unexpected(change, found, forward, self.provenance)}")
        expected_print = self.provenance.before if forward else self.provenance.after
        if expected_print and (found_print := self._fingerprint_of(weights, forward)) != expected_print:
            raise ActError(_changed_elsewhere(found_print, expected_print, forward))
        for change in self.changes:
            view = matrix_of(change.parameter, weights)
            view[change.rows.to(view.device)] = (change.after if forward else change.before).to(view.device)
        if isinstance(model, nn.Module) and expected_print:
            remember_earlier(model, [expected_print])

    def _fingerprint_of(self, weights: Weights, forward: bool) -> str:
        """The fingerprint of weights that hold the rows of before, or of after; kept for later runs if from files."""
        if not isinstance(weights, Parameters):
            return digest(diagonals_of(weights))
        stored = weights

        def read() -> str:
            diagonals = stored.diagonals(anew=stored.unsummed(change.parameter for change in self.changes))
            for change in self.changes:
                stored.require(change.parameter, change.rows, change.before if forward else change.after)
            stored.remember()
            return digest(diagonals)

        return believed(read)

    def require_parts(self, weights: Weights) -> None:
        """Check that ``weights``, parameters by name, have all that the patch changes, in the same shapes and types.

        Raises:
            ActError: a part is missing, or of another shape or type.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=8)
        >>> patch = act.transfer(donor, target, channels)
        >>> patch.require_parts(dict(target.named_parameters()))
        """
        for change in self.changes:
            part, expected = change.parameter, change.before
            shape, dtype = form_of(part, weights) if part.key in weights else ((), None)
            _, width = shape_in(part, shape) or (0, 0)
            if width != expected[:1].numel():
                raise ActError(
                    f"the patch is for another model: it changes {described(part)} "
                    f"({expected[:1].numel()} values per row), which this model does not have"
                )
            if dtype != expected.dtype:
                raise ActError(
                    f"the patch is in {_called(expected.dtype)}, and {described(part)} of this model in "
                    f"{_called(dtype)}; make the patch again, on this very model (transfer writes it in the types of "
                    "the target), or give the model in the type of the patch"
                )

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the patch to a safetensors file.

        Raises:
            ActError: ``path`` exists and ``force`` is False; it cannot be written.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=10)
        >>> act.transfer(donor, target, channels).save("ability.safetensors")
        """
        tensors = {}
        for number, change in enumerate(self.changes):
            for name in ("rows", "before", "after"):
                tensors[f"{number}.{name}"] = getattr(change, name)
            tensors[f"{number}.rows"] = change.rows.clone()  # a file cannot share tensors, as weight and bias do
        header = {
            **self.provenance.to_json(),
            "parts": [_to_json(change.parameter) for change in self.changes],
        }
        save_tensors(Path(path), tensors, SCHEMA, header, force=force)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch from the file ``path``.

        Raises:
            ActError: the file is missing, damaged or of another schema version.

        >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=10)
        >>> act.transfer(donor, target, channels).save("ability.safetensors")
        >>> act.Patch.load("ability.safetensors").revert(target)
        """
        tensors, header = load_tensors(Path(path), SCHEMA)
        with understood(Path(path)):
            changes, parts = [], checked(_PARTS, header["parts"])
            for number, part in enumerate(parts):
                rows = indices(tensors, f"{number}.rows")
                after = taken(tensors, f"{number}.after", FLOATS, (len(rows), None))
                before = taken(tensors, f"{number}.before", (after.dtype,), tuple(after.shape))
                place = part if isinstance(part, ParameterSlice) else ParameterSlice(*part)
                changes.append(ChangedRows(place, rows, before, after))
            if len(tensors) != 3 * len(changes) or not all(len(change.rows) for change in changes):
                raise ValueError("it has tensors of no part, or a part without rows")
            if len(by_slice(changes, "part")) != len(changes):
                raise ValueError("it changes one part of a parameter twice")
            return cls(changes, TransferProvenance.from_json(header))


def _to_json(part: ParameterSlice) -> Any:
    """A part of a parameter as plain data: name and dimension suffice for one that is no expert's."""
    plain = part == ParameterSlice(part.name, part.dim)
    return [part.name, part.dim] if plain else part.to_json()


def _unexpected(change: ChangedRows, found: torch.Tensor, forward: bool, made: TransferProvenance) -> str:
    """What is wrong with rows that the patch does not expect, as the end of a sentence."""
    there = change.rows.max() < len(found)
    if there and same_bytes(found[change.rows.to(found.device)], change.after if forward else change.before):
        done = "after the transfer already" if forward else "before the transfer"
        return f"holds the values from {done}, so there is nothing to {'apply' if forward else 'revert'}"
    if forward:
        return (
            f"does not hold the values the patch was made on; apply it to the model it was made for, {made.target}, "
            f"or, if that has another patch in it by now, {_both()}"
        )
    return (
        "does not hold the values that the transfer wrote: it was changed since, which reverting would lose, or it is "
        "another model; give the model that came out of the transfer"
    )


def _changed_elsewhere(found: str, expected: str, forward: bool) -> str:
    """What is wrong with a model that holds the rows that a patch expects, beside others that it does not expect."""
    if forward:
        return (
            f"the model is not as it was when the patch was made on it (fingerprint {found}, expected {expected}): "
            "rows that this patch does not change are others, as after another patch or a tune; to have two patches in "
            f"one model, {_both()}"
        )
    return (
        f"the model is not as the patch left it (fingerprint {found}, expected {expected}): rows that this patch does "
        "not change are others, as after a tune or where several patches were composed; revert what was done last, "
        "such as the composed patch"
    )


def _both() -> str:
    """How a model comes to have two patches."""
    how = option("act-profile patch compose", "act.compose")
    return f"compose both ({how}) and apply the result to the model without either"


def compose(patches: Iterable[Patch], conflict: Conflict = "refuse") -> Patch:
    """Several patches of one model as one.

    Args:
        patches: made on the same model, each on its own.
        conflict: what happens to a row that two of them change: ``refuse``, or the ``first`` or ``last`` one wins.

    Raises:
        ActError: patches of different models, or in different types; conflicts under ``refuse``, or rows of one
            crossing columns of another.

    >>> channels = act.rank(act.profile_pair(donor, target, corpus), top=0.05)
    >>> patches = []
    >>> for strength in (0.2, 0.4):
    ...     patches.append(act.transfer(donor, target, channels, strength))
    ...     patches[-1].revert(target)
    >>> both = act.compose(patches, conflict="last")
    >>> both.apply(target)
    >>> both.revert(target)
    """
    if isinstance(patches, Patch):
        raise ActError("the patches are one act.Patch; expected a list of them, such as [one, other]")
    patches = list(patches)
    require_choice("conflict", conflict, get_args(Conflict))
    if not patches:
        raise ActError("no patch was given; expected at least one")
    for patch in patches:
        require_type("a patch", patch, Patch, "an act.Patch; read a file with its load")
    before = {patch.provenance.before for patch in patches}
    if len(before) > 1:
        raise ActError("the patches were made on different models; make each on the model it is to be applied to")
    _require_same_types(patches)
    found = conflicts(patches)
    if found and conflict == "refuse":
        name, count = next(iter(found.items()))
        first = option("--conflict first", "conflict='first'")
        raise ActError(
            f"changed by two patches: {counted(sum(found.values()), 'row')}, {count:,} of them in {name}; "
            f"say which wins: {first}, or last"
        )
    changes = [change for patch in (patches[::-1] if conflict == "last" else patches) for change in patch.changes]
    provenance = TransferProvenance(
        donors=tuple(donor for patch in patches for donor in patch.provenance.donors),
        before=before.pop(),
        after=None,  # the model itself is not here to be hashed; each row is compared instead
        parameters=patches[0].provenance.parameters,
        notes=tuple(note for patch in patches for note in patch.notes),
        conflict=conflict,
        conflicts=found,
        card=next((patch.provenance.card for patch in patches if patch.provenance.card is not None), None),
    )
    return Patch([_joined(held) for held in by_slice(changes, "patch").values()], provenance)


def _require_same_types(patches: Iterable[Patch]) -> None:
    """Raise :class:`ActError` if a parameter has one type in one patch and another one in another."""
    types: dict[str, torch.dtype] = {}
    for change in (change for patch in patches for change in patch.changes):
        name, dtype = change.parameter.name, change.after.dtype
        if (other := types.setdefault(name, dtype)) != dtype:
            raise ActError(
                f"the patches are in different types: {name} is {_called(other)} in one and {_called(dtype)} in "
                "another; make them all on one model, in one type"
            )


def conflicts(patches: Iterable[Patch]) -> dict[str, int]:
    """Parameter name -> rows that more than one patch changes.

    Raises:
        ActError: rows of one patch cross columns of another.
    """
    counts: Counter[str] = Counter()
    changes = (change for patch in patches for change in patch.changes)
    for part, held in by_slice(changes, "patch").items():
        counts[part.name] += int((torch.cat([change.rows for change in held]).unique(return_counts=True)[1] > 1).sum())
    return {name: count for name, count in counts.items() if count}


def _joined(held: Sequence[ChangedRows]) -> ChangedRows:
    """The changes of one part of a parameter as one; a row that several change is the first one's."""
    if len(held) == 1:
        return held[0]
    rows, order = torch.cat([change.rows for change in held]).sort(stable=True)
    first = torch.ones(len(rows), dtype=torch.bool)
    first[1:] = rows.diff() > 0
    before, after = (
        torch.cat([getattr(change, side) for change in held])[order[first]] for side in ("before", "after")
    )
    return ChangedRows(held[0].parameter, rows[first], before, after)


def _called(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _readable(size: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits (NaN equals itself, 0 is not -0)."""
    return torch.equal(one.cpu().contiguous().view(torch.uint8), other.cpu().contiguous().view(torch.uint8))

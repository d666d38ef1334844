"""Patches: the rows that a transfer changed, before and after, as a reversible edit and a small file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from act.core.errors import ActError, require_choice
from act.core.tensor_files import load_tensors, save_tensors
from act.models.channels import ParameterSlice
from act.models.fingerprint import fingerprint

SCHEMA = "act-patch/1"
Conflict = Literal["refuse", "first", "last"]
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Change:
    """The rows of one parameter that a transfer changed, before and after, each ``[K, W]`` in the parameter's dtype."""

    part: ParameterSlice
    rows: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


class Patch:
    """What a transfer changed in a model, with the bytes that were there before.

    Attributes:
        changes: the rows changed; no value lies in two changes.
        header: plain data: ``grafts`` (donors, channels, strengths), ``overlap``, ``notes``, and the fingerprints of
            the model ``before`` and ``after``, over its ``parameters``.
    """

    def __init__(self, changes: list[Change], header: dict[str, Any]) -> None:
        self.changes = changes
        self.header = header

    def __len__(self) -> int:
        """Values changed."""
        return sum(change.before.numel() for change in self.changes)

    @property
    def notes(self) -> list[str]:
        """What was left out, and why."""
        return self.header.get("notes", [])

    def apply(self, model: nn.Module | Weights) -> None:
        """Write the rows into a model that holds those from before.

        Raises:
            ActError: the model's fingerprint is not the one before the transfer, or rows differ; nothing is written.
        """
        self._write(model, forward=True)

    def revert(self, model: nn.Module | Weights) -> None:
        """Give ``model`` back the bytes it had before the transfer.

        Raises:
            ActError: the model's fingerprint is not the one after the transfer, or rows no longer hold what the
                transfer wrote; nothing is written then.
        """
        self._write(model, forward=False)

    def _write(self, model: nn.Module | Weights, forward: bool) -> None:
        weights = dict(model.named_parameters()) if isinstance(model, nn.Module) else model
        for change in self.changes:
            found = rows_view(weights[change.part.name], change.part.dim) if change.part.name in weights else None
            expected = change.before if forward else change.after
            if found is None or found.shape[1:].numel() != expected[:1].numel() or found.dtype != expected.dtype:
                raise ActError(
                    f"the patch is for another model: it changes {change.part.name} "
                    f"({expected.dtype}, {expected[:1].numel()} values a row), which this model does not have"
                )
            if change.rows.max() >= len(found) or not same_bytes(found[change.rows.to(found.device)], expected):
                raise ActError(f"{change.part.name} {_unexpected(change, found, forward)}")
        side = "before" if forward else "after"
        expected_print = self.header.get(side)
        if expected_print and (found_print := fingerprint(weights)) != expected_print:
            raise ActError(
                f"the model has the fingerprint {found_print}, the patch expects {expected_print} {side} the "
                f"transfer: some parameter was changed after the transfer, or it is another model"
            )
        for change in self.changes:
            view = rows_view(weights[change.part.name], change.part.dim)
            view[change.rows.to(view.device)] = (change.after if forward else change.before).to(view.device)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the patch; raises ActError if ``path`` exists and ``force`` is False, or the disk is full."""
        tensors = {}
        for number, change in enumerate(self.changes):
            for name in ("rows", "before", "after"):
                tensors[f"{number}.{name}"] = getattr(change, name)
            tensors[f"{number}.rows"] = change.rows.clone()  # weight and bias share theirs, which a file cannot
        header = {**self.header, "parts": [[change.part.name, change.part.dim] for change in self.changes]}
        save_tensors(Path(path), tensors, SCHEMA, header, force=force)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch; raises ActError if the file is missing, damaged or of another schema version."""
        tensors, header = load_tensors(Path(path), SCHEMA)
        try:
            changes = [
                Change(ParameterSlice(*part), *(tensors[f"{number}.{name}"] for name in ("rows", "before", "after")))
                for number, part in enumerate(header.pop("parts"))
            ]
        except KeyError as error:
            raise ActError(f"{path} lacks {error}; make it again") from error
        return cls(changes, header)


def _unexpected(change: Change, found: torch.Tensor, forward: bool) -> str:
    """What is wrong with rows that are not those the patch expects."""
    there = change.rows.max() < len(found)
    if there and same_bytes(found[change.rows.to(found.device)], change.after if forward else change.before):
        done = "after the transfer already" if forward else "before the transfer"
        return f"holds the values from {done}, so there is nothing to {'apply' if forward else 'revert'}"
    if forward:
        return "does not hold the values the patch was made on; apply it to the model it was made for"
    return (
        "does not hold the values that the transfer wrote: it was changed since, which reverting would lose, or it is "
        "another model; give the model that came out of the transfer"
    )


def compose(patches: Iterable[Patch], conflict: Conflict = "refuse") -> Patch:
    """Several patches of one model as one.

    Args:
        patches: made on the same model, each on its own.
        conflict: what happens to a row that two of them change: ``refuse``, or the ``first`` or ``last`` one wins.

    Raises:
        ActError: patches of different models; conflicts under ``refuse``, or rows of one crossing columns of another.
    """
    patches = list(patches)
    require_choice("conflict", conflict, get_args(Conflict))
    if not patches:
        raise ActError("no patch was given; expected at least one")
    before = {patch.header.get("before") for patch in patches}
    if len(before) > 1:
        raise ActError("the patches were made on different models; make each on the model they are to be applied to")
    found = conflicts(patches)
    if found and conflict == "refuse":
        name, count = next(iter(found.items()))
        raise ActError(
            f"{sum(found.values())} rows are changed by two patches, {count} of them in {name}; "
            "say which wins with conflict 'first' or 'last'"
        )
    merged: dict[str, Change] = {}
    for patch in patches if conflict != "last" else reversed(patches):
        for change in patch.changes:
            held = merged.get(change.part.name)
            if held is None:
                merged[change.part.name] = change
                continue
            if held.part != change.part:
                raise ActError(f"rows of one patch cross columns of another in {change.part.name}; apply one of them")
            new = ~torch.isin(change.rows, held.rows)
            rows = torch.cat([held.rows, change.rows[new]])
            order = rows.argsort()
            joined = {
                side: torch.cat([getattr(held, side), getattr(change, side)[new]])[order]
                for side in ("before", "after")
            }
            merged[change.part.name] = replace(held, rows=rows[order], before=joined["before"], after=joined["after"])
    header = {
        "grafts": [graft for patch in patches for graft in patch.header.get("grafts", [])],
        "conflict": conflict,
        "conflicts": found,
        "notes": [note for patch in patches for note in patch.notes],
        "before": before.pop(),
        "parameters": patches[0].header.get("parameters"),
        "after": None,  # each row is compared instead: the model itself is not here to be hashed
    }
    return Patch(list(merged.values()), header)


def conflicts(patches: Iterable[Patch]) -> dict[str, int]:
    """Parameter name -> rows that more than one patch changes."""
    rows: dict[tuple[str, int], list[torch.Tensor]] = {}
    for patch in patches:
        for change in patch.changes:
            rows.setdefault((change.part.name, change.part.dim), []).append(change.rows)
    counts = {
        name: int((torch.cat(found).unique(return_counts=True)[1] > 1).sum()) for (name, _), found in rows.items()
    }
    return {name: count for name, count in counts.items() if count}


def rows_view(parameter: torch.Tensor, dim: int) -> torch.Tensor:
    """The parameter as ``[rows, rest]`` with channels first; a view that shares its memory."""
    data = parameter.detach()
    return data[:, None] if data.dim() == 1 else data.movedim(dim, 0)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits (NaN equals itself, 0 is not -0)."""
    return torch.equal(one.cpu().contiguous().view(torch.uint8), other.cpu().contiguous().view(torch.uint8))

"""Rows that were routed: sorted by expert, each with the token that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RoutedRows:
    """What all experts of a layer gave in one role.

    Attributes:
        rows: ``[R, C]``, expert by expert.
        tokens: int64 ``[R]``: the place of each row's token in the flattened batch.
        offsets: int ``[E + 1]``: expert ``e`` gave the rows ``offsets[e]:offsets[e + 1]``.
        swapped: what the donor's experts give on the same inputs, in the order of the rows; None where that is not
            wanted, or not known.
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    offsets: torch.Tensor
    swapped: torch.Tensor | None = None

    @classmethod
    def of_experts(cls, given: Sequence[tuple[int, torch.Tensor, torch.Tensor]], count: int) -> RoutedRows:
        """Expert, rows and tokens of each call, in any order."""
        ordered = sorted(given, key=lambda one: one[0])
        lengths = [0] * (count + 1)
        for expert, rows, _ in ordered:
            lengths[expert + 1] += len(rows)
        first = ordered[0][1]
        rows = first if len(ordered) == 1 else torch.cat([rows for _, rows, _ in ordered])
        tokens = torch.cat([tokens for _, _, tokens in ordered])
        return cls(rows, tokens, torch.tensor(lengths, device=first.device).cumsum(0))

    @classmethod
    def of_ids(cls, rows: torch.Tensor, tokens: torch.Tensor, ids: torch.Tensor, count: int) -> RoutedRows:
        """Rows in any order, with the number of each row's expert, int64 ``[R]``."""
        order = ids.argsort(stable=True)
        lengths = torch.bincount(ids, minlength=count)[:count]
        return cls(rows[order], tokens[order], torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))

    def to(self, device: torch.device) -> RoutedRows:
        """The same on another device."""
        swapped = None if self.swapped is None else self.swapped.to(device)
        return RoutedRows(self.rows.to(device), self.tokens.to(device), self.offsets.to(device), swapped)

    @property
    def experts(self) -> torch.Tensor:
        """The expert of each row, int64 ``[offsets[-1]]``."""
        lengths = self.offsets.diff()
        return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)

    def where_both(self, other: RoutedRows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of tokens that met the same expert in both.

        Returns:
            Places of these rows in this and in ``other``, int64 ``[M]``, expert by expert, and their offsets.
        """
        span = 1 + max((int(one.tokens.max()) for one in (self, other) if len(one.tokens)), default=0)
        keys = [one.experts * span + one.tokens[: int(one.offsets[-1])] for one in (self, other)]
        (mine, my_place), (theirs, their_place) = (key.sort() for key in keys)
        if not len(theirs):
            return my_place[:0], their_place, torch.zeros_like(self.offsets)
        at = torch.searchsorted(theirs, mine).clamp(max=len(theirs) - 1)
        met = theirs[at] == mine
        lengths = torch.bincount(mine[met] // span, minlength=len(self.offsets) - 1)
        return my_place[met], their_place[at[met]], torch.nn.functional.pad(lengths.cumsum(0), (1, 0))

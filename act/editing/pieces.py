"""How a parameter is put together from stored tensors: which part of it each of them holds, and how it lies there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch

from act.models.sites import ParameterSlice

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that one stored tensor holds, or a part of that tensor.

    Attributes:
        stored: the name of the tensor.
        start: where in the parameter the first value lies.
        shape, stride, offset: the piece as a view of the contiguous tensor, in values.
    """

    stored: str
    start: Shape
    shape: Shape
    stride: Shape
    offset: int = 0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The piece of the stored tensor: a view."""
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset)


@dataclass(frozen=True)
class Layout:
    """A parameter of a shape, in pieces that cover each value once."""

    shape: Shape
    pieces: tuple[Piece, ...]

    @classmethod
    def whole(cls, stored: str, shape: Shape) -> Layout:
        """A tensor as it is stored."""
        return cls(shape, (Piece(stored, (0,) * len(shape), shape, torch.empty(shape, device="meta").stride()),))

    @cached_property
    def _by_row(self) -> dict[int, list[Piece]]:
        found = defaultdict(list)
        for piece in self.pieces:
            found[piece.start[0]].append(piece)
        return found

    def holding(self, part: ParameterSlice) -> tuple[Piece, ParameterSlice] | None:
        """The piece that holds a part of the parameter, and the part of the piece that it is; None if none does."""
        if len(self.pieces) == 1:
            return self.pieces[0], part
        if part.rows is not None:
            return None
        axis = part.dim if part.expert is None else part.dim + 1
        low, high = [0] * len(self.shape), [*self.shape]
        if part.expert is not None:
            low[0], high[0] = part.expert, part.expert + 1
        if part.span is not None:
            taken = range(*part.span)
            low[axis], high[axis] = taken[0], taken[-1] + 1
        for piece in self._by_row.get(low[0], self.pieces):
            ends = [start + size for start, size in zip(piece.start, piece.shape, strict=True)]
            if all(a <= b and c <= d for a, b, c, d in zip(piece.start, low, high, ends, strict=True)):
                first = piece.start[axis]
                span = part.span and (part.span[0] - first, part.span[1] - first, part.span[2])
                expert = None if part.expert is None else part.expert - piece.start[0]
                return piece, replace(part, expert=expert, span=span)
        return None


def stacked(layouts: Sequence[Layout], dim: int) -> Layout:
    """Layouts of one shape along a new dimension.

    Raises:
        ValueError: their shapes differ.
    """
    shape = _same(one.shape for one in layouts)
    pieces = [
        replace(
            piece,
            start=_with(piece.start, dim, number),
            shape=_with(piece.shape, dim, 1),
            stride=_with(piece.stride, dim, 1),
        )
        for number, one in enumerate(layouts)
        for piece in one.pieces
    ]
    return Layout(_with(shape, dim, len(layouts)), tuple(pieces))


def joined(layouts: Sequence[Layout], dim: int) -> Layout:
    """Layouts one after the other along a dimension.

    Raises:
        ValueError: they differ in another dimension.
    """
    _same(_without(one.shape, dim) for one in layouts)
    starts = [0, *accumulate(one.shape[dim] for one in layouts)]
    pieces = [
        replace(piece, start=_set(piece.start, dim, start + piece.start[dim]))
        for start, one in zip(starts, layouts, strict=False)
        for piece in one.pieces
    ]
    return Layout(_set(layouts[0].shape, dim, starts[-1]), tuple(pieces))


def turned(layout: Layout, first: int, second: int) -> Layout:
    """Two dimensions in each other's place."""

    def swap(values: Shape) -> Shape:
        order = [*range(len(values))]
        order[first], order[second] = order[second], order[first]
        return tuple(values[at] for at in order)

    pieces = [
        replace(piece, start=swap(piece.start), shape=swap(piece.shape), stride=swap(piece.stride))
        for piece in layout.pieces
    ]
    return Layout(swap(layout.shape), tuple(pieces))


def cut(layout: Layout, count: int, dim: int) -> list[Layout]:
    """Equal parts along a dimension.

    Raises:
        ValueError: it does not divide.
    """
    if layout.shape[dim] % count:
        raise ValueError(f"{layout.shape[dim]} rows do not divide by {count}")
    size = layout.shape[dim] // count
    return [_narrowed(layout, dim, low, high) for low, high in pairwise(range(0, layout.shape[dim] + 1, size))]


def gathered(layout: Layout, dim: int) -> Layout:
    """The even places along a dimension before the odd ones.

    Raises:
        ValueError: it is in several pieces, or its size is odd.
    """
    if len(layout.pieces) > 1 or layout.shape[dim] % 2:
        raise ValueError("what alternates is in several pieces, or not in pairs")
    (piece,) = layout.pieces
    half, stride = piece.shape[dim] // 2, piece.stride[dim]
    pieces = [
        replace(
            piece,
            start=_set(piece.start, dim, odd * half),
            shape=_set(piece.shape, dim, half),
            stride=_set(piece.stride, dim, 2 * stride),
            offset=piece.offset + odd * stride,
        )
        for odd in (0, 1)
    ]
    return Layout(layout.shape, tuple(pieces))


def halved(layout: Layout, heads: int) -> Layout:
    """The even rows of each head before its odd ones, as where rotary pairs that lay side by side are to lie apart.

    Raises:
        ValueError: the rows do not divide by twice the number of heads, or are in several pieces.
    """
    parts = cut(layout, heads, 0)
    return joined([gathered(part, 0) for part in parts], 0)


def _narrowed(layout: Layout, dim: int, low: int, high: int) -> Layout:
    pieces = []
    for piece in layout.pieces:
        first = max(piece.start[dim], low)
        last = min(piece.start[dim] + piece.shape[dim], high)
        if first < last:
            skipped = (first - piece.start[dim]) * piece.stride[dim]
            pieces.append(
                replace(
                    piece,
                    start=_set(piece.start, dim, first - low),
                    shape=_set(piece.shape, dim, last - first),
                    offset=piece.offset + skipped,
                )
            )
    return Layout(_set(layout.shape, dim, high - low), tuple(pieces))


def _same(shapes: Iterable[Shape]) -> Shape:
    found = set(shapes)
    if len(found) != 1:
        raise ValueError(f"shapes differ: {' and '.join(map(str, sorted(found)))}")
    return found.pop()


def _set(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim + 1 :])


def _with(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim:])


def _without(values: Shape, dim: int) -> Shape:
    return (*values[:dim], *values[dim + 1 :])

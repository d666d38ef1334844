"""Which sequences begin alike, so that what they share is computed once.

Sorted by their tokens, sequences that begin alike stand side by side, and the tokens that neighbours share make up a
tree: each node is a run of sequences and the number of tokens with which all of them begin. Tokens are alike if their
ids are and if they count alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np

from act.data.batching import Segment, Sequence

LEAST = 8
"""Tokens that a prefix must have: attention to a prefix needs a mask, which costs more than a few tokens do."""
SHARE = 0.25
"""Tokens that a prefix must save, as a share of a batch: it takes a forward, and often leaves a batch half full."""


@dataclass(frozen=True)
class Group:
    """Sequences that begin alike, without what they share.

    Attributes:
        sequences: the rest of each, at least one token.
        shared: what they begin with, piece by piece; groups that begin alike share the first pieces as objects.
        opened: how many tokens of ``shared`` no group before this one has begun with.
    """

    sequences: list[Sequence]
    shared: tuple[Segment, ...] = ()
    opened: int = 0

    @property
    def spared(self) -> int:
        """How many tokens need not be computed."""
        return len(self.sequences) * sum(map(len, self.shared)) - self.opened


def grouped(sequences: Iterable[Sequence], token_budget: int) -> Iterator[Group]:
    """Divide sequences into groups that begin alike, where that saves enough tokens; each group is of one ability.

    Groups come in an order in which those that share pieces follow one another. Sequences with a source or with images
    share nothing.
    """
    ordered = sorted(sequences, key=lambda each: (*_kind(each), _key(each)))
    before: tuple[Segment, ...] = ()
    for (_, more), run in groupby(ordered, key=_kind):
        alike = list(run)
        for group in [Group(alike)] if more else _Tree(alike, token_budget).groups():
            opened = sum(len(segment) for segment in group.shared if all(segment is not one for one in before))
            before = group.shared
            yield replace(group, opened=opened)


def _kind(sequence: Sequence) -> tuple[str, bool]:
    """The ability of a sequence, and whether there is more to it than its tokens."""
    return sequence.ability, bool(sequence.source or sequence.beside)


def _key(sequence: Sequence) -> bytes:
    """Bytes that sort as the tokens do, and tell those that count from others."""
    key: bytes = (2 * sequence.input_ids.astype(np.int64) + sequence.count_mask).astype(">u4").tobytes()
    return key


class _Tree:
    """The groups of sorted sequences.

    Args:
        ordered: sequences sorted by their tokens.
        token_budget: see :data:`SHARE`.
    """

    def __init__(self, ordered: list[Sequence], token_budget: int) -> None:
        self._ordered = ordered
        self._least_saved = token_budget * SHARE
        self._alike = np.array([_alike(*two) for two in pairwise(ordered)], dtype=np.int64)

    def groups(self) -> Iterator[Group]:
        """The groups, depth first; sequences that share nothing more than those around them come before these."""
        waiting: list[tuple[int, int, tuple[Segment, ...]]] = [(0, len(self._ordered), ())]
        while waiting:
            start, stop, shared = waiting.pop()
            depth = sum(map(len, shared))
            inner = list(self._inner(start, stop, depth))
            waiting += [(first, last, (*shared, self._segment(first, depth, end))) for first, last, end in inner[::-1]]
            taken = {number for first, last, _ in inner for number in range(first, last)}
            rest = [self._ordered[number] for number in range(start, stop) if number not in taken]
            if rest:
                yield Group([_without(each, depth) for each in rest], shared)

    def _inner(self, start: int, stop: int, depth: int) -> Iterator[tuple[int, int, int]]:
        """The largest runs inside a run that are worth a longer prefix, each with the length of that prefix."""
        waiting = [(start, stop)]
        while waiting:
            first, last = waiting.pop()
            if last - first < 2:
                continue
            between = self._alike[first : last - 1]
            end = int(between.min())
            if end - depth >= LEAST and (last - first - 1) * (end - depth) >= self._least_saved:
                yield first, last, end
                continue
            cuts = first + 1 + np.flatnonzero(between == end)
            waiting += list(zip([first, *cuts.tolist()], [*cuts.tolist(), last], strict=True))[::-1]

    def _segment(self, number: int, start: int, stop: int) -> Segment:
        sequence = self._ordered[number]
        return Segment(sequence.input_ids[start:stop], sequence.count_mask[start:stop])


def _alike(one: Sequence, other: Sequence) -> int:
    """With how many tokens both begin; each keeps at least one of its own."""
    most = min(len(one), len(other)) - 1
    same = (one.input_ids[:most] == other.input_ids[:most]) & (one.count_mask[:most] == other.count_mask[:most])
    return most if same.all() else int(same.argmin())


def _without(sequence: Sequence, tokens: int) -> Sequence:
    if not tokens:
        return sequence
    return replace(sequence, input_ids=sequence.input_ids[tokens:], count_mask=sequence.count_mask[tokens:])

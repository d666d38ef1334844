"""Encoded records as pieces that fit a model: what a forward for answers or for a fine-tune reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from act.data.encode import Encoded


@dataclass(frozen=True)
class Piece:
    """A part of a record that fits the model; tokens ``[first, end)`` are predicted."""

    record: int
    ids: list[int]
    first: int


def pieces(records: Sequence[Encoded], max_length: int, *, every_answer: bool = False) -> Iterator[Piece]:
    """The answer of every record, or all its answers, in parts of at most ``max_length`` tokens.

    Each predicted token is in one of them.
    """
    for place, record in enumerate(records):
        for answer, stop in record.answers if every_answer else record.answers[-1:]:
            start, first = 0, max(1, answer)
            while first < stop:
                end = min(start + max_length, stop)
                yield Piece(place, record.input_ids[start:end].tolist(), first - start)
                start, first = end - 1, end  # the last token of a piece predicts the first of the next

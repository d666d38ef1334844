"""Encoded records as pieces that fit a model, and as padded batches, for evaluation and fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from act.data.encoded import Encoded

IGNORED = -100
"""The label of a token that is not to be predicted: ``cross_entropy`` leaves it out by default."""


@dataclass(frozen=True)
class Piece:
    """A part of a record that fits the model; the tokens from index ``first`` on are predicted."""

    record: int
    ids: list[int]
    first: int


def pieces(records: Sequence[Encoded], max_length: int, *, every_answer: bool = False) -> Iterator[Piece]:
    """The answer of every record, or all its answers, in pieces of at most ``max_length`` tokens.

    Each answer token is predicted in exactly one piece.
    """
    for place, record in enumerate(records):
        for answer, stop in record.answers if every_answer else record.answers[-1:]:
            start, first = 0, max(1, answer)
            while first < stop:
                end = min(start + max_length, stop)
                yield Piece(place, record.input_ids[start:end].tolist(), first - start)
                start, first = end - 1, end  # the last token of a piece predicts the first of the next


def padded(
    rows: Sequence[Sequence[int]], pad_id: int = 0, *, side: Literal["left", "right"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of several lengths as one batch, padded on one side.

    Returns:
        ``input_ids`` and ``attention_mask`` (1 for a token, 0 for padding), both int64 ``[len(rows), longest]``.
    """
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    width = int(lengths.max())
    places = torch.arange(width)
    present = places < lengths if side == "right" else places >= width - lengths
    ids = torch.full(present.shape, pad_id)
    ids[present] = torch.tensor([token for row in rows for token in row])  # both in the order of the rows
    return ids, present.long()


def collate(batch: Sequence[Piece], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Pieces as a batch to train on, padded on the right.

    Returns:
        ``input_ids`` and ``attention_mask`` as :func:`padded`, and ``labels`` of the same shape: the id of each
        predicted token, :data:`IGNORED` elsewhere. Labels are not shifted: logits at position ``i`` predict the label
        at ``i + 1``.
    """
    ids, mask = padded([piece.ids for piece in batch], pad_id)
    first = torch.tensor([piece.first for piece in batch])[:, None]
    predicted = mask.bool() & (torch.arange(ids.shape[1]) >= first)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(predicted, IGNORED)}

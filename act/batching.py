"""Batches of similar length, filled to a token budget, from a stream that is never held whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

LOOK_AHEAD = 2048  # sequences sorted together: padding of a few percent, memory of a few megabytes


@dataclass(frozen=True)
class Sequence:
    """Token ids ``[length]`` (int64) and which of them count (bool ``[length]``)."""

    input_ids: np.ndarray
    count_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


def batches(sequences: Iterable[Sequence], token_budget: int, pad_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches of at most ``token_budget`` tokens, padding included (a longer sequence gets one of its own).

    Each is a dict of ``input_ids`` (int64), ``attention_mask`` (int64) and ``count_mask`` (bool), all
    ``[batch, length]``. Sequences are taken in windows of :data:`LOOK_AHEAD` and sorted by length within each, longest
    first, so that a budget too large for the memory shows at once. The order depends on nothing else.
    """
    stream = iter(sequences)
    while window := list(itertools.islice(stream, LOOK_AHEAD)):
        window.sort(key=len, reverse=True)
        while window:
            fitting = max(1, token_budget // len(window[0]))
            yield _pad(window[:fitting], pad_id)
            del window[:fitting]


def _pad(sequences: list[Sequence], pad_id: int) -> dict[str, torch.Tensor]:
    shape = len(sequences), len(sequences[0])
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "count_mask": torch.zeros(shape, dtype=torch.bool),
    }
    for row, sequence in enumerate(sequences):
        batch["input_ids"][row, : len(sequence)] = torch.from_numpy(sequence.input_ids)
        batch["attention_mask"][row, : len(sequence)] = 1
        batch["count_mask"][row, : len(sequence)] = torch.from_numpy(sequence.count_mask)
    return batch

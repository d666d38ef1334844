"""Is the donor better than the target on a text? The losses of both on some of the tokens that a profile counts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from act.core.counted import counted
from act.core.errors import ActError
from act.data.corpus import Corpus
from act.data.encoded import Encoded
from act.evaluation.likelihoods import likelihoods
from act.models.calls import reader_of

TOKENS = 2048  # of the records that are looked at
RECORDS = 64


@dataclass(frozen=True)
class Sides:
    """The mean losses of donor and target on the same tokens, in nats.

    Attributes:
        donor, target: the losses.
        tokens, records: how many counted tokens of how many records they are over, the first of the corpus.
    """

    donor: float
    target: float
    tokens: int
    records: int

    @property
    def swapped(self) -> bool:
        """Whether the target is the better one."""
        return self.target < self.donor

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"donor": self.donor, "target": self.target, "tokens": self.tokens, "records": self.records}

    def __str__(self) -> str:
        return (
            f"loss on {counted(self.tokens, 'counted token')} of the first {counted(self.records, 'record')}: "
            f"donor {self.donor:.3f}, target {self.target:.3f} nats a token"
        )


def sides_of(donor: nn.Module, target: nn.Module, corpus: Corpus) -> Sides | None:
    """The losses of donor and target on the first counted tokens of a corpus.

    Returns:
        None for models that predict no next token, or where none of the first records has counted tokens.

    >>> from act.evaluation.sides import sides_of
    >>> sides_of(donor, target, corpus).tokens > 0
    True
    """
    if any(reader_of(model) != "decoder" or _head_of(model) is None for model in (donor, target)):
        return None
    fitted = corpus.for_models(donor, target)
    records, tokens = list[Encoded](), 0
    for _, encoded in itertools.islice(fitted.numbered(), RECORDS):
        if isinstance(encoded, ActError) or encoded.beside:
            continue
        mask = encoded.counted("answer" if fitted.count == "predict" else fitted.count)[: fitted.max_length]
        if longest := _longest(mask):
            answer = np.zeros_like(mask)
            answer[longest.start : longest.stop] = True
            records.append(replace(encoded, input_ids=encoded.input_ids[: len(mask)], answer=answer))
            tokens += len(longest)
        if tokens >= TOKENS:
            break
    if not records:
        return None
    losses = []
    for model in (donor, target):
        found = likelihoods(model, records)
        losses.append(float(found.nll.sum() / found.tokens.sum()))
    if not all(map(np.isfinite, losses)):
        return None
    return Sides(losses[0], losses[1], int(found.tokens.sum()), len(records))


def _longest(mask: np.ndarray) -> range:
    """The longest run of counted tokens."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    runs = [range(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return max(runs, key=len, default=range(0))


def _head_of(model: nn.Module) -> torch.nn.Module | None:
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    found: torch.nn.Module | None = find()
    return found

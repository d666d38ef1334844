"""What several test files need."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from act.data.corpus import Corpus
from act.data.stream import Stream


def batches_of(corpus: Corpus, token_budget: int = 8192) -> Iterator[dict[str, torch.Tensor]]:
    """The padded batches of a corpus as a model takes them, with ``count_mask``."""
    for batch in Stream({"": corpus}, token_budget=token_budget):
        yield {**batch.inputs, "count_mask": batch.count_mask}

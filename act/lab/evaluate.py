"""How many exercises a model solves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.lab.tokenizer import Encoded, encode


class Exam:
    """Records tokenised once, to examine many models: ``exam(model)`` is the share of records solved.

    A record is solved if its greedy decoding is exactly the completion, end-of-sequence token included. Nothing is
    generated. Greedy decoding gives the right answer if and only if, after the prompt and after every right token so
    far, the most likely next token is the right one; so one forward over prompt and completion tells. Records of one
    length share a batch: there is no padding.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[Mapping[str, str]], batch_size: int = 256
    ) -> None:
        if not records:
            raise ValueError("no records to evaluate")
        by_length: dict[int, list[Encoded]] = defaultdict(list)
        for encoded in encode(tokenizer, records):
            by_length[len(encoded.ids)].append(encoded)
        self._records = len(records)
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        for group in by_length.values():
            ids = torch.tensor([encoded.ids for encoded in group])
            in_prompt = torch.arange(1, ids.shape[1]) < torch.tensor([encoded.answer for encoded in group])[:, None]
            self._batches += zip(ids.split(batch_size), in_prompt.split(batch_size), strict=True)

    def __call__(self, model: PreTrainedModel) -> float:
        """The share of records that ``model`` solves."""
        training = model.training
        model.eval()
        try:
            return sum(_count_right(model, *batch) for batch in self._batches) / self._records
        finally:
            model.train(training)


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Mapping[str, str]],
    batch_size: int = 256,
) -> float:
    """The share of records that ``model`` solves, for one look; see :class:`Exam`."""
    return Exam(tokenizer, records, batch_size)(model)


@torch.inference_mode()
def _count_right(model: PreTrainedModel, ids: torch.Tensor, in_prompt: torch.Tensor) -> int:
    ids, in_prompt = ids.to(model.device), in_prompt.to(model.device)
    predicted = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
    return int(((predicted == ids[:, 1:]) | in_prompt).all(1).sum())

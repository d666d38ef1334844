"""How many exercises a model solves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.lab.tokenizer import Encoded, encode


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Mapping[str, str]],
    batch_size: int = 256,
) -> float:
    """The share of records whose greedy decoding is exactly the completion, end-of-sequence token included.

    Nothing is generated. Greedy decoding gives the right answer if and only if, after the prompt and after every
    right token so far, the most likely next token is the right one; so one forward over prompt and completion tells.
    Records of one length share a batch: there is no padding.
    """
    if not records:
        raise ValueError("no records to evaluate")
    by_length: dict[int, list[Encoded]] = defaultdict(list)
    for encoded in encode(tokenizer, records):
        by_length[len(encoded.ids)].append(encoded)
    training = model.training
    model.eval()
    try:
        right = sum(
            _count_right(model, group[start : start + batch_size])
            for group in by_length.values()
            for start in range(0, len(group), batch_size)
        )
    finally:
        model.train(training)
    return right / len(records)


@torch.inference_mode()
def _count_right(model: PreTrainedModel, batch: list[Encoded]) -> int:
    ids = torch.tensor([encoded.ids for encoded in batch], device=model.device)
    answers = torch.tensor([encoded.answer for encoded in batch], device=model.device)
    predicted = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
    in_prompt = torch.arange(1, ids.shape[1], device=model.device) < answers[:, None]
    return int(((predicted == ids[:, 1:]) | in_prompt).all(1).sum())

"""How many exercises a model solves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.corpus import Encoded
from act.evaluate import likelihoods
from act.lab.tokenizer import encode


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Mapping[str, str]],
    token_budget: int = 8192,
) -> float:
    """The share of records whose greedy decoding is exactly the completion, end-of-sequence token included.

    Nothing is generated: one word is one token, so a completion has one spelling, and greedy decoding gives it if and
    only if each of its tokens is the likeliest after those before.
    """
    if not records:
        raise ValueError("no records to evaluate")
    encoded = [Encoded(ids, answer, len(ids)) for ids, answer in encode(tokenizer, records)]
    return likelihoods(model, encoded, token_budget=token_budget).greedy.double().mean().item()

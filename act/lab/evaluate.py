"""How many exercises of the synthetic language a model solves, from the likelihoods of :mod:`act.evaluation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.evaluation.evaluate import Evaluation
from act.evaluation.likelihoods import Likelihoods, likelihoods
from act.lab.tokenizer import encode
from act.models.fingerprint import fingerprint


class Exam:
    """Records tokenised once for many models: ``exam(model)`` is the share of records that a model solves.

    A record is solved if its greedy decoding is exactly the completion, end-of-sequence token included. Nothing is
    generated: one word is one token, so a completion has one spelling, and greedy decoding gives it if and only if each
    of its tokens is the likeliest after those before.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[Mapping[str, str]], token_budget: int | None = None
    ) -> None:
        if not records:
            raise ValueError("no records to evaluate")
        self._encoded = encode(tokenizer, records)
        self._token_budget = token_budget

    def __call__(self, model: nn.Module) -> float:
        """The share of records that ``model`` solves."""
        return self._answered(model).greedy.double().mean().item()

    def read(self, model: nn.Module, name: str, corpus: str) -> Evaluation:
        """Which records ``model`` solves, under names of the model and of the records."""
        found = self._answered(model)
        return Evaluation(name, fingerprint(model), corpus, None, "exact", found.nll, found.tokens, found.greedy)

    def _answered(self, model: nn.Module) -> Likelihoods:
        return likelihoods(model, self._encoded, token_budget=self._token_budget)


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Mapping[str, str]],
    token_budget: int | None = None,
) -> float:
    """The share of records that ``model`` solves; for several models, :class:`Exam` tokenises only once."""
    return Exam(tokenizer, records, token_budget)(model)

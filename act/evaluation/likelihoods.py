"""How likely a model finds the answers, from one forward per record."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from act.core.progress import Progress, silent
from act.data.encoded import Encoded
from act.data.pieces import IGNORED, Piece, collate, pieces
from act.models.calls import without_cache
from act.models.limits import default_token_budget, require_known_token, vocabulary
from act.models.modes import evaluating
from act.models.placement import input_device

LOGITS_AT_ONCE = 1024  # rows, as wide as the vocabulary, that are converted to float32 together


@dataclass(frozen=True)
class Choice:
    """The place of the token that is a record's answer, and the tokens that could be there, one per option."""

    place: int
    candidates: list[int]


@dataclass(frozen=True)
class Likelihoods:
    """What one forward per record shows.

    Attributes:
        nll: negative log-likelihood of each record's answer in nats, float64 ``[R]``.
        tokens: how many tokens each answer has, int64 ``[R]``.
        greedy: whether every token of the answer was the likeliest one, so that greedy decoding gives exactly this
            answer, bool ``[R]``.
        picked: where choices were given, the index of the likeliest candidate of each record.
    """

    nll: torch.Tensor
    tokens: torch.Tensor
    greedy: torch.Tensor
    picked: list[int]


@torch.inference_mode()
def likelihoods(
    model: nn.Module,
    records: Sequence[Encoded],
    *,
    choices: Sequence[Choice] = (),
    max_length: int = 1 << 30,
    token_budget: int | None = None,
    progress: Progress = silent,
) -> Likelihoods:
    """The likelihood of every record's answer; for texts, of all tokens but the first.

    Args:
        model: a Hugging Face causal language model.
        records: tokens with the span of the answer; longer texts than ``max_length`` are cut into pieces.
        choices: none, or one per record.
        token_budget: tokens per batch, padding included; by default 2048 on a CPU, 8192 on a GPU.

    Raises:
        ActError: a token id is beyond the model's embedding.
    """
    require_known_token(max((int(record.input_ids.max()) for record in records), default=0), vocabulary(model))
    device = input_device(model)
    budget = token_budget or default_token_budget(device)
    nll = torch.zeros(len(records), dtype=torch.float64)
    tokens, wrong = (torch.zeros(len(records), dtype=torch.int64) for _ in range(2))
    picked = [0] * len(choices)
    parts = list(pieces(records, max_length))
    done = 0
    progress("scoring", done, len(parts))
    with evaluating(model):
        for places in by_length([len(piece.ids) for piece in parts], budget):
            batch = [parts[place] for place in places]
            logits, labels, start = _logits(model, batch, device)
            rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
            owners = torch.tensor([piece.record for piece in batch])[rows]
            for chunk in torch.split(torch.arange(len(rows)), LOGITS_AT_ONCE):
                found = logits[rows[chunk], columns[chunk]].float()
                wanted = labels[rows[chunk], columns[chunk]].to(found.device)
                loss = nn.functional.cross_entropy(found, wanted, reduction="none")
                nll.index_add_(0, owners[chunk], loss.double().cpu())
                wrong.index_add_(0, owners[chunk], (found.argmax(-1) != wanted).long().cpu())
                tokens.index_add_(0, owners[chunk], torch.ones_like(chunk))
            if choices:
                for row, piece in enumerate(batch):
                    choice = choices[piece.record]
                    picked[piece.record] = int(logits[row, choice.place - 1 - start, choice.candidates].argmax())
            done += len(batch)
            progress("scoring", done, len(parts))
    return Likelihoods(nll, tokens, wrong == 0, picked)


def _logits(model: nn.Module, batch: Sequence[Piece], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Logits, the tokens they should predict, and the position of the first.

    Logits are ``[B, T, vocabulary]`` and begin at the first position that predicts an answer token; the tokens are
    int64 ``[B, T]``, :data:`IGNORED` where none counts. Rows are padded on the right.
    """
    inputs = collate(batch)
    width = inputs["input_ids"].shape[1]
    start = min(piece.first for piece in batch) - 1
    keep = {"logits_to_keep": width - start} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits: torch.Tensor = model(
        input_ids=inputs["input_ids"].to(device),
        attention_mask=inputs["attention_mask"].to(device),
        **without_cache(model),
        **keep,
    ).logits
    return logits[:, start - width : -1], inputs["labels"][:, start + 1 :], start


def by_length(lengths: Sequence[int], token_budget: int, extra: int = 0) -> Iterator[list[int]]:
    """Places of sequences in batches of at most ``token_budget`` tokens, the longest first.

    Each row counts ``extra`` more tokens than its sequence has.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        fitting = max(1, token_budget // (lengths[order[0]] + extra))
        yield order[:fitting]
        order = order[fitting:]

"""How well a model does on a corpus: likelihood of the answers, and whether it finds them; two models compared."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from act.core.errors import ActError, require_choice
from act.data.corpus import Corpus
from act.data.encode import Encoded
from act.data.pieces import Piece, pieces
from act.data.stream import DEFAULT_TOKEN_BUDGET
from act.evaluation.answers import is_number, letter, number, options
from act.evaluation.significance import Difference, finite, mcnemar, mean_and_error, ratio_and_error, sign_flip
from act.models.fingerprint import fingerprint

Metric = Literal["auto", "exact", "number", "choice", "nll"]
"""What makes an answer right: the same text, the same final number, the likeliest letter; ``nll`` judges none."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, records done and records in all."""

ROOM = 8  # tokens beyond the longest answer: the same text may be spelt by other tokens
ROOM_TO_REASON = 256  # a model may reason before its number where the reference gives the number only
LOGITS_AT_ONCE = 1024  # rows of the vocabulary's width turned to float32 together


@dataclass(frozen=True)
class Likelihoods:
    """Of every record: NLL of its answer in nats (float64 ``[R]``), its tokens (int64), and whether each answer token
    was the likeliest one (bool): then greedy decoding gives just this answer."""

    nll: torch.Tensor
    tokens: torch.Tensor
    greedy: torch.Tensor


@dataclass(frozen=True)
class Evaluation:
    """A model on a corpus, record by record.

    Attributes:
        model, model_fingerprint, corpus, corpus_fingerprint: what was evaluated on what.
        metric: what ``right`` means; see :data:`Metric`.
        nll, tokens: of the answers (of all tokens but the first, for texts), ``[R]``.
        right: bool ``[R]``; None for ``nll``.
        outputs: what the model answered; None for ``nll``.
        cut: answers that reached the limit of new tokens.
    """

    model: str
    model_fingerprint: str
    corpus: str
    corpus_fingerprint: str | None
    metric: str
    nll: torch.Tensor
    tokens: torch.Tensor
    right: torch.Tensor | None = None
    outputs: list[str] | None = field(default=None, repr=False)
    cut: int = 0

    def summary(self) -> dict[str, Any]:
        """Means with their standard errors, as plain data; None for what there is none of, or is no finite number."""
        per_token, per_record = ratio_and_error(self.nll, self.tokens), mean_and_error(self.nll)
        match = (None, None) if self.right is None else mean_and_error(self.right.double())
        return {
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "corpus": self.corpus,
            "metric": self.metric,
            "records": len(self.nll),
            "tokens": int(self.tokens.sum()),
            "nll_per_token": finite(per_token[0]),
            "nll_per_token_se": finite(per_token[1]),
            "nll_per_record": finite(per_record[0]),
            "nll_per_record_se": finite(per_record[1]),
            "match": match[0],
            "match_se": finite(match[1]),
            "cut": self.cut,
        }


@dataclass(frozen=True)
class Comparison:
    """``after`` minus ``before`` on the same records: NLL per answer token, and share of right answers.

    ``nll`` is None if the models' tokenizers cut the answers differently, ``match`` if the metric judges none.
    """

    before: str
    after: str
    corpus: str
    nll: Difference | None
    match: Difference | None
    gained: int = 0
    lost: int = 0

    def summary(self) -> dict[str, Any]:
        """Plain data; the figures of what could not be compared are None."""
        return {
            "before": self.before,
            "after": self.after,
            "corpus": self.corpus,
            "nll_per_token_difference": finite(self.nll.difference if self.nll else None),
            "nll_per_token_difference_se": finite(self.nll.standard_error if self.nll else None),
            "nll_p": finite(self.nll.p if self.nll else None),
            "match_difference": self.match and self.match.difference,
            "match_difference_se": finite(self.match.standard_error if self.match else None),
            "match_p": self.match and self.match.p,
            "gained": self.gained,
            "lost": self.lost,
        }


def evaluate(
    model: nn.Module,
    corpus: Corpus,
    metric: Metric = "auto",
    *,
    max_new_tokens: int | None = None,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    name: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a Hugging Face causal language model on every record of ``corpus``.

    Args:
        metric: ``exact``: greedy decoding gives the text of the answer, white space around it aside; ``number``: it
            gives the same final number; ``choice``: among the letters of the prompt's options, the right one is the
            likeliest to begin the answer; ``nll``: likelihood only; ``auto``: the one that all records fit.
        max_new_tokens: limit of an answer; by default the longest answer and some room.
        token_budget: tokens a batch, padding and answers included.
        name: what to call the model; else the name it was loaded by, which of an adapter is its base's.

    Raises:
        ActError: no record; an unknown metric, or one that a record does not fit; a number out of range.
    """
    require_choice("metric", metric, get_args(Metric))
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ActError(f"max new tokens is {max_new_tokens}; expected at least 1")
    if token_budget < 1:
        raise ActError(f"token budget is {token_budget}; expected at least 1 token")
    corpus = corpus.for_models(model)
    records = list(corpus.encoded())
    if not records:
        raise ActError(f"{corpus.name}: no record to evaluate")
    report = progress or (lambda what, done, total: None)
    exercises = [_Exercise.of(corpus.tokenizer, record) for record in records]
    chosen = _fitting(exercises) if metric == "auto" else metric
    choices = [_choice(corpus, *numbered) for numbered in enumerate(exercises)] if chosen == "choice" else []
    if chosen in ("exact", "number"):
        _require_answers(corpus, exercises, chosen)
    with _evaluating(model):
        scored, letters = _score(model, records, choices, corpus.max_length, token_budget, report)
        right, outputs, cut = None, None, 0
        if chosen == "choice":
            outputs = [exercises[i].options[picked] for i, picked in enumerate(letters)]
            right = torch.tensor([picked == letter(e.answer) for picked, e in zip(outputs, exercises, strict=True)])
        elif chosen != "nll":
            limit = max_new_tokens or _limit(records, chosen)
            outputs, cut = _answers(model, corpus, exercises, scored.greedy, limit, token_budget, report)
            right = torch.tensor([_same(chosen, given, e.answer) for given, e in zip(outputs, exercises, strict=True)])
    return Evaluation(
        name or getattr(model, "name_or_path", "") or type(model).__name__,
        fingerprint(model),
        corpus.name,
        corpus.source.fingerprint,
        chosen,
        scored.nll,
        scored.tokens,
        right,
        outputs,
        cut,
    )


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """What changed between two models on the same records, with paired tests.

    Raises:
        ActError: the evaluations are of different corpora or metrics.
    """
    if (before.corpus_fingerprint, len(before.nll)) != (after.corpus_fingerprint, len(after.nll)):
        raise ActError(f"cannot compare figures of {before.corpus} with those of {after.corpus}: give the same records")
    if before.metric != after.metric:
        raise ActError(f"cannot compare {before.metric} with {after.metric}; evaluate both with one metric")
    nll = match = None
    gained = lost = 0
    if torch.equal(before.tokens, after.tokens):
        nll = sign_flip((after.nll - before.nll) / before.tokens.double().mean())
    if before.right is not None and after.right is not None:
        match = mcnemar(before.right, after.right)
        gained, lost = int((after.right & ~before.right).sum()), int((before.right & ~after.right).sum())
    return Comparison(before.model, after.model, before.corpus, nll, match, gained, lost)


def likelihoods(
    model: nn.Module, records: Sequence[Encoded], *, max_length: int = 1 << 30, token_budget: int = DEFAULT_TOKEN_BUDGET
) -> Likelihoods:
    """Likelihood of every record's answer in one forward each; texts longer than ``max_length`` are cut to pieces."""
    with _evaluating(model):
        return _score(model, records, [], max_length, token_budget, lambda what, done, total: None)[0]


@torch.inference_mode()
def generate(
    model: nn.Module, prompts: Sequence[list[int]], *, limit: int, stop: set[int], pad_id: int, token_budget: int
) -> Iterator[tuple[int, list[int], bool]]:
    """Greedy continuations of at most ``limit`` tokens, in batches of prompts of similar length.

    Yields the prompt's number, the new tokens before the first of ``stop``, and whether one of these was met. Nothing
    of the model's own generation settings (sampling, penalties) is used.

    Raises:
        ActError: a prompt leaves no room in the model's positions.
    """
    from transformers import GenerationConfig

    longest = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    own = model.generation_config
    device = next(model.parameters()).device
    try:
        for batch in _by_length([len(prompt) for prompt in prompts], token_budget, limit):
            width = len(prompts[batch[0]])
            room = min(limit, longest - width)
            if room < 1:
                raise ActError(f"a prompt of {width} tokens leaves no room in the model's {longest} positions")
            ids = torch.full((len(batch), width), pad_id)
            for row, at in enumerate(batch):
                ids[row, width - len(prompts[at]) :] = torch.tensor(prompts[at])
            lengths = torch.tensor([len(prompts[at]) for at in batch])[:, None]
            mask = (torch.arange(width) >= width - lengths).long()
            # The model's own settings would fill what these leave unset, so they step aside.
            model.generation_config = GenerationConfig(  # type: ignore[assignment]
                max_new_tokens=room, do_sample=False, eos_token_id=sorted(stop) or None, pad_token_id=pad_id
            )
            written = model.generate(ids.to(device), attention_mask=mask.to(device))  # type: ignore[operator]
            for at, tokens in zip(batch, written[:, width:].tolist(), strict=True):
                end = next((i for i, token in enumerate(tokens) if token in stop), None)
                yield at, tokens[:end], end is not None
    finally:
        model.generation_config = own


@dataclass(frozen=True)
class _Exercise:
    """A record, the text of its answer, and the letters of its options."""

    record: Encoded
    answer: str
    options: str

    @classmethod
    def of(cls, tokenizer: Any, record: Encoded) -> _Exercise:
        ids = record.input_ids.tolist()
        answer = tokenizer.decode(ids[record.start : record.end], skip_special_tokens=True)
        return cls(record, answer, options(tokenizer.decode(ids[: record.start])))

    @property
    def is_choice(self) -> bool:
        found = letter(self.answer)
        return found is not None and found in self.options


def _fitting(exercises: list[_Exercise]) -> Metric:
    if any(exercise.record.start == 0 for exercise in exercises):
        return "nll"
    if all(exercise.is_choice for exercise in exercises):
        return "choice"
    return "number" if all(is_number(exercise.answer) for exercise in exercises) else "exact"


def _require_answers(corpus: Corpus, exercises: list[_Exercise], metric: str) -> None:
    for place, exercise in enumerate(exercises):
        if exercise.record.start == 0:
            raise ActError(f"{corpus.name}, record {place} is a text without a prompt to answer; use --metric nll")
        if metric == "number" and number(exercise.answer) is None:
            raise ActError(f"{corpus.name}, record {place}: no number in the answer {exercise.answer!r:.60}")


def _choice(corpus: Corpus, place: int, exercise: _Exercise) -> tuple[int, list[int]]:
    """Where the letter of the answer is in the record, and the tokens that would be there for each option."""
    if not exercise.is_choice:
        raise ActError(
            f"{corpus.name}, record {place}: expected options in the prompt, one a line (A. … B. …), and an answer "
            f"that begins with one of their letters; got {exercise.answer!r:.60}"
        )
    tokenizer, ids, right = corpus.tokenizer, exercise.record.input_ids.tolist(), letter(exercise.answer)
    at = next(i for i in range(exercise.record.start, len(ids)) if right in tokenizer.convert_ids_to_tokens(ids[i]))
    piece = tokenizer.convert_ids_to_tokens(ids[at])
    vocabulary = tokenizer.get_vocab()
    pieces = [piece.replace(right, other, 1) for other in exercise.options]
    missing = [other for other in pieces if other not in vocabulary]
    if missing:
        raise ActError(f"{corpus.name}, record {place}: the tokenizer has no token {missing[0]!r} to answer with")
    return at, [vocabulary[other] for other in pieces]


def _limit(records: Sequence[Encoded], metric: str) -> int:
    longest = max(record.end - record.start for record in records)
    return max(2 * longest, ROOM_TO_REASON) if metric == "number" else longest + ROOM


def _same(metric: str, given: str, answer: str) -> bool:
    return number(given) == number(answer) if metric == "number" else given.strip() == answer.strip()


def _answers(
    model: nn.Module,
    corpus: Corpus,
    exercises: list[_Exercise],
    greedy: torch.Tensor,
    limit: int,
    token_budget: int,
    report: Progress,
) -> tuple[list[str], int]:
    """What the model writes. Where every answer token was the likeliest, that is the answer: nothing is generated."""
    tokenizer = corpus.tokenizer
    special = set(tokenizer.all_special_ids)
    last = [int(exercise.record.input_ids[exercise.record.end - 1]) for exercise in exercises]
    stop = {token for token in last if token in special} | _end_tokens(model, tokenizer)
    pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    outputs = [exercise.answer for exercise in exercises]
    todo = (~greedy).nonzero()[:, 0].tolist()
    cut = 0
    prompts = [exercises[at].record.input_ids[: exercises[at].record.start].tolist() for at in todo]
    written = generate(model, prompts, limit=limit, stop=stop, pad_id=pad_id, token_budget=token_budget)
    for done, (row, tokens, ended) in enumerate(written, 1):
        at = todo[row]
        if last[at] not in stop:  # nothing in the record says where an answer ends
            tokens, ended = tokens[: exercises[at].record.end - exercises[at].record.start], True
        outputs[at] = tokenizer.decode(tokens, skip_special_tokens=True)
        cut += not ended
        report("answering", done, len(todo))
    return outputs, cut


def _end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id  # type: ignore[union-attr]
    own = own if isinstance(own, list) else [own]
    return {token for token in (tokenizer.eos_token_id, *own) if token is not None}


@torch.inference_mode()
def _score(
    model: nn.Module,
    records: Sequence[Encoded],
    choices: list[tuple[int, list[int]]],
    max_length: int,
    token_budget: int,
    report: Progress,
) -> tuple[Likelihoods, list[int]]:
    """Likelihoods, and for each of ``choices`` (position, candidate tokens) the number of the likeliest candidate."""
    nll = torch.zeros(len(records), dtype=torch.float64)
    tokens, wrong = (torch.zeros(len(records), dtype=torch.int64) for _ in range(2))
    picked = [0] * len(choices)
    parts = list(pieces(records, max_length))
    done = 0
    for batch in _by_length([len(piece.ids) for piece in parts], token_budget):
        rows = [parts[at] for at in batch]
        logits, start = _logits(model, rows)
        owners = torch.tensor([piece.record for piece in rows for _ in piece.ids[piece.first :]])
        targets = torch.tensor([token for piece in rows for token in piece.ids[piece.first :]])
        at_row = torch.tensor([row for row, piece in enumerate(rows) for _ in piece.ids[piece.first :]])
        at_column = torch.tensor([i - 1 - start for piece in rows for i in range(piece.first, len(piece.ids))])
        for chunk in torch.arange(len(targets)).split(LOGITS_AT_ONCE):
            found = logits[at_row[chunk], at_column[chunk]].float()
            wanted = targets[chunk].to(found.device)
            loss = nn.functional.cross_entropy(found, wanted, reduction="none")
            nll.index_add_(0, owners[chunk], loss.double().cpu())
            wrong.index_add_(0, owners[chunk], (found.argmax(-1) != wanted).long().cpu())
            tokens.index_add_(0, owners[chunk], torch.ones_like(chunk))
        if choices:
            for row, piece in enumerate(rows):
                position, candidates = choices[piece.record]
                picked[piece.record] = int(logits[row, position - 1 - start, candidates].argmax())
        done += len(rows)
        report("scoring", done, len(parts))
    return Likelihoods(nll, tokens, wrong == 0), picked


def _logits(model: nn.Module, rows: list[Piece]) -> tuple[torch.Tensor, int]:
    """Logits ``[rows, length - start, vocabulary]`` of right-padded pieces from position ``start`` on."""
    width = max(len(piece.ids) for piece in rows)
    start = min(piece.first for piece in rows) - 1
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, piece in enumerate(rows):
        ids[row, : len(piece.ids)] = torch.tensor(piece.ids)
    mask = (torch.arange(width) < torch.tensor([len(piece.ids) for piece in rows])[:, None]).long()
    device = next(model.parameters()).device
    keep = {"logits_to_keep": width - start} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    found = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **keep).logits
    return found[:, start - width :], start


def _by_length(lengths: list[int], token_budget: int, extra: int = 0) -> Iterator[list[int]]:
    """Numbers of sequences in batches of at most ``token_budget`` tokens, the longest first."""
    order = sorted(range(len(lengths)), key=lambda at: -lengths[at])
    while order:
        fitting = max(1, token_budget // (lengths[order[0]] + extra))
        yield order[:fitting]
        order = order[fitting:]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)

"""How well a model does on a corpus: likelihood of the answers, and whether it finds them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

import torch
from torch import nn

from act.core.counted import counted
from act.core.errors import ActError, require_choice, require_number
from act.core.progress import Progress, silent
from act.data.batching import PADDING
from act.data.corpus import Corpus, require_corpus
from act.evaluation.exercises import (
    Exercise,
    Metric,
    chance_of,
    choices_of,
    exercises_of,
    fitting_metric,
    majority_of,
    require_answers,
    room_for,
)
from act.evaluation.generation import generate
from act.evaluation.likelihoods import likelihoods
from act.evaluation.significance import finite, mean_and_error, ratio_and_error, with_error
from act.models.calls import require_decoder
from act.models.fingerprint import fingerprint
from act.models.limits import default_token_budget
from act.models.loading import name_of, require_model
from act.models.modes import evaluating
from act.models.placement import input_device
from act.profiling.dtype_speed import warn_of_half

MATCHES = {"exact": "exact match", "number": "right numbers", "choice": "right choices"}


class Summary(TypedDict):
    """Means with their standard errors (``_se``); None where there is no figure, or no finite one.

    ``chance`` and ``majority`` are the shares of right answers of guesses, and of the commonest right answer to all.
    """

    model: str
    model_fingerprint: str
    corpus: str
    metric: str
    records: int
    tokens: int
    nll_per_token: float | None
    nll_per_token_se: float | None
    nll_per_record: float | None
    nll_per_record_se: float | None
    match: float | None
    match_se: float | None
    chance: float | None
    majority: float | None
    cut: int


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """A model on a corpus, record by record.

    Attributes:
        model, model_fingerprint, corpus, corpus_fingerprint: what was evaluated on what.
        metric: what ``right`` means, as in :func:`act.evaluate`.
        nll, tokens: negative log-likelihood in nats (float64) and number of tokens (int64) of each answer, ``[R]``; for
            texts, of all tokens but the first.
        right: whether each answer is right, bool ``[R]``; None for the metric ``nll``.
        outputs: what the model answered; None for the metric ``nll``.
        cut: how many answers reached the limit of new tokens.
        chance: the share that guesses among the options would find; None without options.
        majority: the share that the commonest right answer would find, given to every record; None for ``nll``.
        expected: the right answers; None for the metric ``nll``.

    >>> act.evaluate(model, corpus, "nll", name="tiny")
    <Evaluation of tiny on records: 12 records, NLL ... ± ... per token>
    """

    model: str
    model_fingerprint: str
    corpus: str
    corpus_fingerprint: str | None
    metric: Metric
    nll: torch.Tensor
    tokens: torch.Tensor
    right: torch.Tensor | None = None
    outputs: list[str] | None = None
    cut: int = 0
    chance: float | None = None
    majority: float | None = None
    expected: list[str] | None = None

    def summary(self) -> Summary:
        """The figures as plain data.

        >>> figures = act.evaluate(model, corpus, "nll", name="mine").summary()
        >>> figures["model"], figures["records"], figures["match"]
        ('mine', 12, None)
        """
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
            "chance": self.chance,
            "majority": self.majority,
            "cut": self.cut,
        }

    def to_json(self) -> dict[str, Any]:
        """The figures of every record as plain data; :meth:`from_json` reads it back.

        >>> result = act.evaluate(model, corpus, "nll")
        >>> act.Evaluation.from_json(result.to_json()).summary() == result.summary()
        True
        """
        right = None if self.right is None else self.right.tolist()
        return {**vars(self), "nll": self.nll.tolist(), "tokens": self.tokens.tolist(), "right": right}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Evaluation:
        """The evaluation that ``data`` is of: the inverse of :meth:`to_json`."""
        nll, tokens = torch.tensor(data["nll"], dtype=torch.float64), torch.tensor(data["tokens"])
        right = None if data["right"] is None else torch.tensor(data["right"])
        return cls(**{**data, "nll": nll, "tokens": tokens, "right": right})

    def __repr__(self) -> str:
        return f"<Evaluation of {self.model} on {self.corpus}: {', '.join(self._figures())}>"

    def _repr_html_(self) -> str:
        figures = "".join(f"<li>{figure}</li>" for figure in self._figures())
        return f"<b>{html.escape(self.model)}</b> on {html.escape(self.corpus)}<ul>{figures}</ul>"

    def _levels(self) -> str:
        """What would be right without knowing anything."""
        levels = [
            f"{name} {100 * level:.1f} %"
            for name, level in {"chance": self.chance, "majority": self.majority}.items()
            if level is not None
        ]
        return f" ({', '.join(levels)})" if levels else ""

    def _figures(self) -> list[str]:
        found = [counted(len(self.nll), "record")]
        if self.right is not None:
            mean, error = mean_and_error(100 * self.right.double())
            found.append(f"{MATCHES[self.metric]} {with_error(mean, error, 1)} %{self._levels()}")
        return [*found, f"NLL {with_error(*ratio_and_error(self.nll, self.tokens), 3)} per token"]


def evaluate(
    model: nn.Module,
    corpus: Corpus,
    metric: Metric = "auto",
    *,
    max_new_tokens: int | None = None,
    token_budget: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a Hugging Face causal language model on every record of ``corpus``.

    Args:
        metric: ``exact``: greedy decoding gives the text of the answer, apart from surrounding white space;
            ``number``: it gives the same final number; ``choice``: among the letters of the prompt's options, the right
            one is the likeliest to begin the answer; ``nll``: likelihood only; ``auto``: the metric that all records
            fit.
        max_new_tokens: limit per answer; by default, the length of the longest answer and some room.
        token_budget: tokens per batch, padding and answers included; by default 2048 on a CPU, 8192 on a GPU.
        name: what to call the model; by default the name it was loaded by, which for an adapter is its base's.
        progress: called with what is being done, records done and records in all.

    Raises:
        ActError: no records; an unknown metric, or one that a record does not fit; a number out of range.

    >>> result = act.evaluate(model, corpus, "nll", name="mine")
    >>> result.nll.shape == result.tokens.shape
    True
    >>> result.summary()["model"], result.right
    ('mine', None)
    """
    require_model("the model", model)
    require_decoder(model, "evaluation", "score it by its own task, before and after the transfer")
    require_corpus("the corpus", corpus)
    require_choice("metric", metric, get_args(Metric))
    for what, number in (("max new tokens", max_new_tokens), ("token budget", token_budget)):
        if number is not None:
            require_number(what, number, whole=True)
            if number < 1:
                raise ActError(f"{what} is {number}; expected at least 1")
    warn_of_half(model)
    budget = token_budget or default_token_budget(input_device(model))
    corpus = corpus.for_models(model)
    exercises = exercises_of(corpus)
    chosen = fitting_metric(exercises) if metric == "auto" else metric
    choices = choices_of(corpus, exercises) if chosen == "choice" else []
    if chosen in ("exact", "number"):
        require_answers(corpus, exercises, chosen)
    report = progress or silent
    with evaluating(model):
        scored = likelihoods(
            model,
            [exercise.record for exercise in exercises],
            choices=choices,
            max_length=corpus.max_length,
            token_budget=budget,
            progress=report,
        )
        outputs, cut = None, 0
        if chosen == "choice":
            outputs = [exercise.options[picked] for exercise, picked in zip(exercises, scored.picked, strict=True)]
        elif chosen != "nll":
            limit = max_new_tokens or room_for(exercises, chosen)
            outputs, cut = _answers(model, corpus, exercises, scored.greedy, limit, budget, report)
    right = None
    if outputs is not None:
        right = torch.tensor([one.solved_by(given, chosen) for one, given in zip(exercises, outputs, strict=True)])
    return Evaluation(
        model=name or name_of(model),
        model_fingerprint=fingerprint(model),
        corpus=corpus.name,
        corpus_fingerprint=corpus.source.fingerprint,
        metric=chosen,
        nll=scored.nll,
        tokens=scored.tokens,
        right=right,
        outputs=outputs,
        cut=cut,
        chance=chance_of(exercises) if chosen == "choice" else None,
        majority=None if outputs is None else majority_of(exercises, chosen),
        expected=None if outputs is None else [exercise.answer for exercise in exercises],
    )


def _answers(
    model: nn.Module,
    corpus: Corpus,
    exercises: Sequence[Exercise],
    greedy: torch.Tensor,
    limit: int,
    token_budget: int,
    report: Progress,
) -> tuple[list[str], int]:
    """What the model writes for each exercise, and how many answers were cut.

    Where every token of the right answer was the likeliest, the model writes that answer, so nothing is generated.
    """
    tokenizer = corpus.tokenizer
    special = set(tokenizer.all_special_ids)
    stop = {exercise.last_token for exercise in exercises} & special | _end_tokens(model, corpus)
    outputs = [exercise.answer for exercise in exercises]
    todo: list[int] = (~greedy).nonzero()[:, 0].tolist()
    prompts = [exercises[place].prompt for place in todo]
    cut = 0
    written = generate(model, prompts, limit=limit, stop=stop, pad_id=PADDING, token_budget=token_budget)
    report("answering", 0, len(todo))
    for done, answer in enumerate(written, start=1):
        place = todo[answer.place]
        exercise, tokens, ended = exercises[place], answer.tokens, answer.ended
        if exercise.last_token not in stop:  # nothing in the record says where an answer ends
            tokens, ended = tokens[: exercise.answer_length], True
        outputs[place] = str(tokenizer.decode(tokens, skip_special_tokens=True))
        cut += not ended
        report("answering", done, len(todo))
    return outputs, cut


def _end_tokens(model: nn.Module, corpus: Corpus) -> set[int]:
    own = model.generation_config.eos_token_id  # type: ignore[union-attr]
    found = (corpus.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own]))
    return {token for token in found if token is not None}

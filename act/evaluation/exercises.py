"""Records as exercises: what is asked, which answer is right, and what makes an answer right."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from act.core.errors import ActError, option
from act.data.corpus import Corpus
from act.data.encoded import Encoded
from act.evaluation.answers import THOUGHT, is_number, letter, number, options, said
from act.evaluation.likelihoods import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Metric = Literal["auto", "exact", "number", "choice", "nll"]
"""What makes an answer right: the same text, the same final number, the likeliest letter; ``nll`` judges no answer."""

ROOM = 8  # tokens beyond the longest answer: the same text may take other tokens
ROOM_TO_REASON = 256  # a model may reason before its number where the reference gives the number only


@dataclass(frozen=True)
class Exercise:
    """A record, the text of its answer, the letters of the options in its prompt, and whether it has one.

    The special tokens that begin a text are no prompt.
    """

    record: Encoded
    answer: str
    options: str
    prompted: bool

    @property
    def prompt(self) -> list[int]:
        """The tokens before the answer."""
        ids: list[int] = self.record.input_ids[: self.record.start].tolist()
        return ids

    @property
    def answer_length(self) -> int:
        """Tokens of the answer."""
        return self.record.end - self.record.start

    @property
    def last_token(self) -> int:
        """The token that ends the answer."""
        return int(self.record.input_ids[self.record.end - 1])

    @property
    def is_choice(self) -> bool:
        """Whether the answer begins with the letter of an option."""
        found = letter(said(self.answer))
        return found is not None and found in self.options

    def solved_by(self, given: str, metric: Metric) -> bool:
        """Whether ``given`` is right."""
        given, right = said(given), said(self.answer)
        if metric == "choice":
            return given == letter(right)
        return number(given) == number(right) if metric == "number" else given.strip() == right.strip()


def exercises_of(corpus: Corpus) -> list[Exercise]:
    """Every record of a corpus as an exercise; raises ActError if there is none."""
    tokenizer, found = corpus.tokenizer, []
    special = {*tokenizer.all_special_ids}
    for record in corpus.encoded():
        ids = record.input_ids.tolist()
        prompt = ids[: record.start]
        answer = str(tokenizer.decode(ids[record.start : record.end], skip_special_tokens=True))
        found.append(Exercise(record, answer, options(str(tokenizer.decode(prompt))), not special.issuperset(prompt)))
    if not found:
        raise ActError(f"{corpus.name}: no record to evaluate")
    return found


def require_metric(corpus: Corpus, metric: Metric) -> None:
    """Raise :class:`ActError` for a metric that a record of a corpus does not fit."""
    exercises = exercises_of(corpus)
    metric = fitting_metric(exercises) if metric == "auto" else metric
    if metric == "choice":
        choices_of(corpus, exercises)
    elif metric != "nll":
        require_answers(corpus, exercises, metric)


def fitting_metric(exercises: Sequence[Exercise]) -> Metric:
    """The metric that all records fit."""
    if not all(exercise.prompted for exercise in exercises):
        return "nll"
    if all(exercise.is_choice for exercise in exercises):
        return "choice"
    return "number" if all(is_number(said(exercise.answer)) for exercise in exercises) else "exact"


def require_answers(corpus: Corpus, exercises: Sequence[Exercise], metric: Metric) -> None:
    """Raise :class:`ActError` for a record without a prompt, or, if numbers are compared, one whose answer has none."""
    for place, exercise in enumerate(exercises):
        if not exercise.prompted:
            use = option("--metric nll", "metric='nll'")
            raise ActError(f"{corpus.name}, record {place} is a text without a prompt to answer; use {use}")
        if metric == "number" and number(said(exercise.answer)) is None:
            raise ActError(f"{corpus.name}, record {place}: no number in the answer {exercise.answer!r:.60}")


def choices_of(corpus: Corpus, exercises: Sequence[Exercise]) -> list[Choice]:
    """Where the letter of each answer is, and the tokens that would be there for each option.

    Raises:
        ActError: a record without options, or whose answer is none of them; an option without a token of its own.
    """
    tokenizer = corpus.tokenizer
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    found = []
    for place, exercise in enumerate(exercises):
        right = letter(said(exercise.answer))
        if right is None or not exercise.is_choice:
            raise ActError(
                f"{corpus.name}, record {place}: expected options in the prompt, one per line (A. … B. …), and an "
                f"answer that begins with one of their letters; got {exercise.answer!r:.60}"
            )
        tokens = list(tokenizer.convert_ids_to_tokens(exercise.record.input_ids.tolist()))
        at = next(i for i in range(_said_at(exercise, tokenizer), len(tokens)) if right in tokens[i])
        candidates = [tokens[at].replace(right, other, 1) for other in exercise.options]
        if missing := [token for token in candidates if token not in vocabulary]:
            raise ActError(f"{corpus.name}, record {place}: the tokenizer has no token {missing[0]!r} to answer with")
        found.append(Choice(at, [vocabulary[token] for token in candidates]))
    return found


def _said_at(exercise: Exercise, tokenizer: PreTrainedTokenizerBase) -> int:
    """The first token after the thoughts of an answer."""
    start, end = exercise.record.start, exercise.record.end
    ids = exercise.record.input_ids[start:end].tolist()
    if THOUGHT not in exercise.answer:
        return start
    return start + bisect_left(range(len(ids)), True, key=lambda i: THOUGHT not in str(tokenizer.decode(ids[i:])))


def chance_of(exercises: Sequence[Exercise]) -> float:
    """The share of right answers that guesses among the options would find."""
    return sum(1 / len(exercise.options) for exercise in exercises) / len(exercises)


def majority_of(exercises: Sequence[Exercise], metric: Metric) -> float:
    """The share of right answers of whoever gives the commonest right answer to every record."""

    def answer(exercise: Exercise) -> object:
        right = said(exercise.answer)
        return letter(right) if metric == "choice" else number(right) if metric == "number" else right.strip()

    (_, most), *_ = Counter(map(answer, exercises)).most_common(1)
    return most / len(exercises)


def room_for(exercises: Sequence[Exercise], metric: Metric) -> int:
    """How many new tokens an answer may take: those of the longest answer, and some more."""
    longest = max(exercise.answer_length for exercise in exercises)
    return max(2 * longest, ROOM_TO_REASON) if metric == "number" else longest + ROOM

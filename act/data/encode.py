"""Records as token ids, with a mask of the answer.

The answer is found by token ids: those of the whole record must begin with those of its prompt, or an error is raised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from act.core.errors import ActError, require_choice
from act.core.names import require_name
from act.data.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Count = Literal["answer", "predict", "all", "prompt"]
"""Counted positions: of answer tokens (as in the paper), of tokens that predict an answer token, all, or the rest."""

AnswerTurns = Literal["last", "all"]
"""Which of the assistant's messages are answers."""

EXPECTED = (
    "messages, prompt and completion, question and answer, instruction and output, text, or input_ids and loss_mask"
)

LARGEST_ID = np.iinfo(np.int32).max

Steps = Generator[list[str], list[list[int]], "Encoded"]
"""A generator that yields the texts of one record, is sent their token ids, and returns the result."""


@dataclass(frozen=True)
class Encoded:
    """One record as tokens.

    Attributes:
        input_ids: int32 ``[length]``.
        answer: bool ``[length]``: the tokens that are its answer.
        ability: its label, if the records are labelled.
    """

    input_ids: np.ndarray
    answer: np.ndarray
    ability: str | None = None

    def counted(self, count: Count) -> np.ndarray:
        """The positions that count, bool ``[length]``."""
        if count == "all":
            return np.ones_like(self.answer)
        if count == "prompt":
            return ~self.answer
        return np.append(self.answer[1:], False) if count == "predict" else self.answer

    @cached_property
    def answers(self) -> list[tuple[int, int]]:
        """The half-open range of every answer; the last is *the* answer, and earlier turns come before it."""
        edges = np.flatnonzero(np.diff(self.answer, prepend=False, append=False)).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))

    @property
    def start(self) -> int:
        """Index of the first token of the answer."""
        return self.answers[-1][0]

    @property
    def end(self) -> int:
        """Index after the last token of the answer."""
        return self.answers[-1][1]


class Encoder:
    """Encodes records, many at a time; can be pickled and sent to another process.

    Args:
        tokenizer: a Hugging Face tokenizer; conversations need its chat template.
        answer_turns: see :data:`AnswerTurns`.
        ability_column: the column that labels a record with its ability, if any.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, answer_turns: AnswerTurns = "last", ability_column: str | None = None
    ) -> None:
        require_choice("answer turns", answer_turns, get_args(AnswerTurns))
        self.tokenizer = tokenizer
        self.answer_turns: AnswerTurns = answer_turns
        self.ability_column = ability_column

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary, its rules and the chat template."""
        inner = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = inner.to_str() if inner is not None else json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{vocabulary}{self.tokenizer.chat_template}".encode()).hexdigest()[:16]

    @cached_property
    def vocabulary(self) -> str:
        """A hash of the tokens and their ids only; a chat template does not change it."""
        tokens = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(tokens.encode(errors="surrogatepass")).hexdigest()[:16]

    def __call__(self, records: Iterable[Record | ActError]) -> list[Encoded | ActError]:
        """Each record as :class:`Encoded` or as its error, in order, with one call of the tokenizer for all."""
        results: list[Encoded | ActError] = []
        waiting: list[tuple[int, Steps, slice]] = []
        texts: list[str] = []
        for record in records:
            try:
                steps = self._steps(record)
                wanted = next(steps)
                for text in wanted:
                    _require_characters(text)
                waiting.append((len(results), steps, slice(len(texts), len(texts) + len(wanted))))
                texts += wanted
                results.append(ActError("not encoded"))
            except StopIteration as done:
                results.append(done.value)
            except ActError as error:
                results.append(error)
        ids = self._bare(texts)
        for number, steps, part in waiting:
            try:
                steps.send(ids[part])
            except StopIteration as done:
                results[number] = done.value
            except ActError as error:
                results[number] = error
        return results

    def _bare(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        ids: list[list[int]] = self.tokenizer(texts, **options)["input_ids"]
        return ids

    @cached_property
    def lead(self) -> list[int]:
        """The special tokens that the tokenizer puts in front of a text."""
        ids, bare = self.tokenizer("a")["input_ids"], self._bare(["a"])[0]
        return next((ids[:i] for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare), [])

    def _steps(self, record: Record | ActError) -> Steps:
        if isinstance(record, ActError):
            raise record
        if not isinstance(record, Mapping):
            raise ActError(f"expected a JSON object with {EXPECTED}; got {record!r:.60}")
        ability = self._ability(record)
        mask = record.get("loss_mask")
        if _has(record, "messages"):
            encoded = yield from self._messages(record["messages"], mask)
        elif _has(record, "prompt", "completion"):
            encoded = yield from self._completion(record["prompt"], record["completion"], mask)
        elif _has(record, "question", "answer"):
            encoded = yield from self._turn(record["question"], record["answer"], mask)
        elif _has(record, "instruction", "output"):
            more = record.get("input")
            instruction = f"{record['instruction']}\n\n{more}" if more else record["instruction"]
            encoded = yield from self._turn(instruction, record["output"], mask)
        elif _has(record, "input_ids"):
            encoded = _masked(record["input_ids"], mask)
        elif _has(record, "text"):
            encoded = yield from self._text(record["text"], mask)
        else:
            raise ActError(f"expected {EXPECTED}; got the keys {sorted(map(str, record))}")
        return Encoded(encoded.input_ids, encoded.answer, ability)

    def _ability(self, record: Record) -> str | None:
        if self.ability_column is None:
            return None
        ability = record.get(self.ability_column)
        if not isinstance(ability, (str, int)):
            raise ActError(f"the ability, column {self.ability_column}, is {ability!r:.60}; expected a name")
        return require_name(f"the ability, column {self.ability_column},", str(ability))

    def _text(self, text: Any, mask: Any) -> Steps:
        (ids,) = yield [_nonempty("text", text)]
        if mask is None:  # special tokens in front are not text, and have the largest activations
            mask = [0] * len(self.lead) + [1] * len(ids)
        return _masked([*self.lead, *ids], mask)

    def _completion(self, prompt: Any, completion: Any, mask: Any) -> Steps:
        if not isinstance(prompt, str):
            raise ActError(f"prompt must be a string, got {prompt!r:.60}")
        prefix, whole = yield [prompt, prompt + _nonempty("completion", completion)]
        eos = self.tokenizer.eos_token_id
        if eos is not None and whole[-1:] != [eos]:
            whole = [*whole, eos]
        if mask is not None:
            return _masked([*self.lead, *whole], mask)
        return _answered([*self.lead, *whole], [_after([*self.lead, *prefix], [*self.lead, *whole])])

    def _turn(self, question: Any, answer: Any, mask: Any) -> Steps:
        if not isinstance(question, str):
            raise ActError(f"the question must be a string, got {question!r:.60}")
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return (yield from self._messages(messages, mask))

    def _messages(self, messages: Any, mask: Any) -> Steps:
        if not (isinstance(messages, list) and messages and all(isinstance(m, Mapping) for m in messages)):
            raise ActError(f"messages must be a list of objects with role and content, got {messages!r:.60}")
        turns = self._answer_turns(messages, mask)
        for turn in turns:
            _nonempty("the assistant's content", messages[turn].get("content"))
        if not self.tokenizer.chat_template:
            raise ActError("the tokenizer has no chat template; use prompt and completion, or set one")
        before = [self._rendered(messages[:turn], add_generation_prompt=True) for turn in turns]
        after = [self._rendered(messages[: turn + 1], add_generation_prompt=False) for turn in turns]
        if turns[-1] + 1 < len(messages):
            after.append(self._rendered(messages, add_generation_prompt=False))
        ids = yield [*before, *after]
        prefixes, ends = ids[: len(turns)], ids[len(turns) :]
        whole = ends[-1]
        spans = []
        for prefix, end in zip(prefixes, ends, strict=False):
            _require_beginning(end, whole)
            spans.append(self._without_white_space(whole, _after(prefix, end)))
        return _answered(whole, spans)

    def _answer_turns(self, messages: list[Mapping[str, Any]], mask: Any) -> list[int]:
        turns = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
        if mask is not None:
            _require_mask(mask, len(messages), "messages")
            turns = [turn for turn in turns if mask[turn]]
            if not turns:
                raise ActError("the record has no answer: loss_mask marks no message by the assistant")
        elif self.answer_turns == "last":
            if messages[-1].get("role") != "assistant":
                raise ActError(f"the record has no answer: its last message is by {messages[-1].get('role')!r}")
            turns = turns[-1:]
        elif not turns:
            raise ActError("the record has no answer: no message is by 'assistant'")
        return turns

    def _without_white_space(self, ids: list[int], span: range) -> range:
        """The span without white space that the template adds after its end-of-turn token."""
        last = max((i for i in span if ids[i] in self._special), default=None)
        if last is not None and not str(self.tokenizer.decode(ids[last + 1 : span.stop])).strip():
            return range(span.start, last + 1)
        return span

    @cached_property
    def _special(self) -> set[int]:
        return set(self.tokenizer.all_special_ids)

    def _rendered(self, messages: list[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # jinja2 and templates raise anything
            raise ActError(f"the chat template refused the messages: {error}") from error
        return str(rendered)


def _has(record: Record, *keys: str) -> bool:
    """Whether the record has values in these columns; in tables of mixed records, missing values are None."""
    return all(record.get(key) is not None for key in keys)


def _after(prefix: list[int], whole: list[int]) -> range:
    """The positions of ``whole`` after ``prefix``; ``whole`` must begin with ``prefix``."""
    _require_beginning(prefix, whole)
    if len(whole) == len(prefix):
        raise ActError("the record has no answer: prompt and whole record are the same tokens")
    return range(len(prefix), len(whole))


def _require_beginning(prefix: list[int], whole: list[int]) -> None:
    if whole[: len(prefix)] != prefix:
        at = next(i for i, (a, b) in enumerate(zip([*whole, None], prefix, strict=False)) if a != b)
        raise ActError(
            f"the prompt's {len(prefix)} tokens are not the beginning of the whole record's {len(whole)} "
            f"(they differ from token {at} on), so the answer cannot be separated; end the prompt where a token ends"
        )


def _answered(ids: list[int], spans: Iterable[range]) -> Encoded:
    answer = np.zeros(len(ids), dtype=bool)
    for span in spans:
        answer[span.start : span.stop] = True
    return Encoded(np.asarray(ids, dtype=np.int32), answer)


def _masked(ids: Any, mask: Any) -> Encoded:
    if not (isinstance(ids, list) and ids):
        raise ActError(f"input_ids must be a list of token ids, got {ids!r:.60}")
    for token in ids:
        if not (isinstance(token, int) and 0 <= token <= LARGEST_ID):
            raise ActError(f"input_ids must be a list of token ids, from 0 to {LARGEST_ID}, got {token!r:.60} in it")
    if mask is None:
        mask = [1] * len(ids)
    _require_mask(mask, len(ids), "tokens")
    return Encoded(np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=bool))


def _require_mask(mask: Any, length: int, what: str) -> None:
    if not isinstance(mask, list) or len(mask) != length:
        size = f"{len(mask)} entries" if isinstance(mask, list) else f"{mask!r:.60}"
        raise ActError(f"loss_mask must have one entry for each of the {length} {what}, got {size}")
    for entry in mask:
        if not (isinstance(entry, (bool, int, float)) and entry in (0, 1)):
            raise ActError(f"loss_mask must hold 0 (does not count) and 1 (counts), got {entry!r:.60} in it")


def _require_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ActError(
            f"the text has half a character, {half!r} at position {error.start}, perhaps from a cut emoji; repair it"
        ) from error


def _nonempty(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ActError(f"the record has no answer: {what} is {value!r:.60}")
    return value

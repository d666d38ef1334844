"""Records as token ids, with a mask of the answer.

The answer is found by token ids: those of the whole record must begin with those of its prompt, or an error is raised.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from act.core.errors import ActError, option, require_choice
from act.core.names import require_name
from act.data import sharegpt
from act.data.chat import Written, require_answer, why_not_a_beginning, written
from act.data.columns import answer_in, columns_option, ignore_option, label_of, mapping_of, require_nothing_lost
from act.data.conversation import (
    FLAGS,
    MEDIA,
    PLACE,
    Conversation,
    Message,
    calls_of,
    conversation_of,
    flagged,
    texts_in,
)
from act.data.encoded import (
    Encoded,
    after,
    answered,
    mask_of_ids,
    masked,
    require_beginning,
    require_mask,
)
from act.data.images import COLUMNS, Vision, column_of, taken_out
from act.data.records import Record
from act.models.calls import Reader

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

AnswerTurns = Literal["last", "all"]
"""Which of the assistant's messages are answers."""

EXPECTED = (
    "messages or conversations, prompt and completion, question and answer, instruction and output, text, "
    "input_ids and loss_mask, or a prompt alone"
)

ONLY_TEXT = "only text is read here (a vision tower stays unread)"

ENCODING = 3  # changes whenever a record may become other tokens, so that tokens in a cache are not taken for them


class Asked(str):
    """A text that is tokenised as an encoder reads it: with all its special tokens."""


class Answered(str):
    """A text that is tokenised as a decoder beside an encoder writes it."""


_Read = tuple[list[list[int]], Mapping[str, np.ndarray]]

Steps = Generator[list[str], list[list[int]], Encoded]
"""A generator that yields the texts of one record, is sent their token ids, and returns the result."""


class Encoder:
    """Encodes records, many at a time; can be pickled and sent to another process.

    Args:
        tokenizer: a Hugging Face tokenizer; conversations need its chat template.
        answer_turns: see :data:`AnswerTurns`.
        ability_column: the column that labels a record with its ability, if any.
        ignore_columns: columns, and keys of messages, to leave out on purpose (see :mod:`act.data.columns`).
        reader: how the model reads, which decides where special tokens stand, and whether there are two texts.
        vision: the processor of a model that reads images; or why images are not read.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        answer_turns: AnswerTurns = "last",
        ability_column: str | None = None,
        ignore_columns: Iterable[str] = (),
        reader: Reader = "decoder",
        vision: Vision | str = ONLY_TEXT,
    ) -> None:
        require_choice("answer turns", answer_turns, get_args(AnswerTurns))
        self.tokenizer = tokenizer
        self.answer_turns: AnswerTurns = answer_turns
        self.ability_column = ability_column
        self.ignore_columns = frozenset(ignore_columns)
        self.reader: Reader = reader
        self.vision = vision

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

    @cached_property
    def unknown(self) -> int | None:
        """The token for text that the tokenizer does not know; None if there is none that means this alone."""
        found = self.tokenizer.unk_token_id
        return None if found in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) else found

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
            except RecursionError:
                results.append(ActError("the record is nested too deeply; expected objects a few levels deep"))
        ids = self._tokens(texts)
        for number, steps, part in waiting:
            try:
                steps.send(ids[part])
            except StopIteration as done:
                results[number] = done.value
            except ActError as error:
                results[number] = error
        return results

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """The token ids of texts, each kind of text with one call of the tokenizer."""
        found: list[list[int]] = [[]] * len(texts)
        for kind, tokenise in ((str, self._bare), (Asked, self._asked), (Answered, self._answered)):
            places = [place for place, text in enumerate(texts) if type(text) is kind]
            for place, ids in zip(places, tokenise([texts[place] for place in places]), strict=True):
                found[place] = ids
        return found

    def _asked(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer([*map(str, texts)], verbose=False)["input_ids"] if texts else []
        return ids

    def _answered(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = (
            self.tokenizer(text_target=[*map(str, texts)], verbose=False)["input_ids"] if texts else []
        )
        return ids

    def _bare(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        ids: list[list[int]] = self.tokenizer(texts, **options)["input_ids"]
        return ids

    @cached_property
    def lead(self) -> list[int]:
        """The special tokens that the tokenizer puts in front of a text."""
        return self._around[0]

    @cached_property
    def trail(self) -> list[int]:
        """The special tokens that the tokenizer puts behind a text for an encoder."""
        return self._around[1] if self.reader == "encoder" else []

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        ids, bare = self.tokenizer("a")["input_ids"], self._bare(["a"])[0]
        starts = (i for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare)
        start = next(starts, None)
        return ([], []) if start is None else (ids[:start], ids[start + len(bare) :])

    def _steps(self, given: Record | ActError) -> Steps:
        if isinstance(given, ActError):
            raise given
        if not isinstance(given, Mapping):
            raise ActError(f"expected a JSON object with {EXPECTED}; got {given!r:.60}")
        ability = self._ability(given)
        mask = given.get("loss_mask")
        apart = {*self.ignore_columns, self.ability_column, "loss_mask"}
        record = {key: value for key, value in given.items() if value is not None and key not in apart}
        record, images = self._images(record)
        if self.reader == "encoder-decoder":
            encoded = yield from self._two_texts(record, mask)
        elif "messages" in record:
            encoded = yield from self._messages(record, record["messages"], ("messages",), mask, images)
        elif _has(record, "prompt", "completion"):
            encoded = yield from self._completion(record, mask, images)
        elif _has(record, "question", "answer"):
            turn = self._turn(record["question"], record["answer"], images)
            encoded = yield from self._messages(record, turn, ("question", "answer"), mask, images)
        elif _has(record, "instruction", "output"):
            turn = self._turn(_instruction(record), record["output"], images)
            encoded = yield from self._messages(record, turn, ("instruction", "input", "output"), mask, images)
        elif column := sharegpt.column_of(record):
            turns = sharegpt.messages_of(record[column])
            encoded = yield from self._messages(record, turns, (column,), mask, images)
        elif "input_ids" in record:
            if images:
                raise ActError("the record has images beside input_ids, in which they have no place; give its text")
            encoded = masked(record["input_ids"], mask_of_ids(record) if mask is None else mask)
        elif "text" in record:
            encoded = yield from self._text(record, mask, images)
        elif alone := next((name for name in ("prompt", "question", "instruction") if name in record), None):
            encoded = yield from self._prompt_alone(record, alone, mask, images)
        else:
            raise ActError(f"expected {EXPECTED}; got the keys {sorted(map(str, given))}; {_otherwise(given)}")
        return replace(encoded, ability=ability)

    def _images(self, record: dict[str, Any]) -> tuple[dict[str, Any], list[Image]]:
        """The record with the places of its images alone, and these."""
        column = column_of(record)
        more = next((name for name in MEDIA if name not in COLUMNS and record.get(name)), None)
        if more is None and (column is None or isinstance(self.vision, Vision)):
            return (record, []) if column is None else taken_out(record)
        name, why = column or more, self.vision
        if isinstance(why, Vision):
            name, why = more, "only text and images are read"
        if name == "messages":
            raise ActError(f"the messages have images, and {why}; leave such records out")
        raise ActError(
            f"the column {name} is more than text, and {why}; leave such records out, or measure their text alone "
            f"({ignore_option(str(name))})"
        )

    def _read(self, texts: list[str], images: list[Image]) -> Generator[list[str], list[list[int]], _Read]:
        """The token ids of texts, the last of which is the whole record, and what a processor gives beside them."""
        if isinstance(self.vision, str) or not (images or self.vision.place in texts[-1]):
            return (yield texts), {}
        self.vision.require_places(texts[-1], images)
        found = [self.vision(text, images) for text in texts]
        return [ids for ids, _ in found], found[-1][1]

    def _seen(
        self, encoded: Encoded, whole: list[int], images: list[Image], beside: Mapping[str, np.ndarray]
    ) -> Encoded:
        """An encoded record with its images, whose tokens are none of an answer; ``whole``: its tokens before others
        were put around them, which inputs with a value for each token lack.
        """
        if isinstance(self.vision, str) or not images:
            return encoded
        length = len(encoded.input_ids)
        first = 0 if encoded.input_ids[: len(whole)].tolist() == whole else len(self.lead)
        around = (0, 0), (first, length - first - len(whole))
        by_token = {name: x for name, x in beside.items() if x.shape[:2] == (1, len(whole))}
        padded = {name: np.pad(x, (*around, *[(0, 0)] * (x.ndim - 2))) for name, x in by_token.items()}
        answer = encoded.answer & ~np.isin(encoded.input_ids, self.vision.tokens)
        return replace(encoded, answer=answer, images=len(images), beside={**beside, **padded})

    def _two_texts(self, record: Record, mask: Any) -> Steps:
        """A source for the encoder, and what the decoder is to write."""
        if mask is not None:
            raise ActError("loss_mask is for one text; an encoder and a decoder read two: leave it out")
        if _has(record, "prompt", "completion"):
            columns: tuple[str, ...] = ("prompt", "completion")
            asked, answer = record["prompt"], record["completion"]
        elif _has(record, "question", "answer"):
            columns, asked, answer = ("question", "answer"), record["question"], record["answer"]
        elif _has(record, "instruction", "output"):
            columns = ("instruction", "input", "output")
            asked, answer = _instruction(record), record["output"]
        elif _has(record, "input_ids", "labels"):
            ids, labels = (masked(record[name], None).input_ids.tolist() for name in ("input_ids", "labels"))
            return self._apart(ids, labels)
        else:
            raise ActError(
                "the record has no source beside its answer, and the model is an encoder with a decoder; expected "
                "prompt and completion, question and answer, instruction and output, or input_ids and labels; got the "
                f"keys {sorted(map(str, record))}"
            )
        if not (isinstance(asked, str) and asked.strip()):
            raise ActError(f"the record has no source: the {columns[0]} is {asked!r:.60}")
        answer = _nonempty(columns[-1], answer)
        require_nothing_lost(record, columns, f"{asked}\n{answer}", (asked, answer))
        source, target = yield [Asked(asked), Answered(answer)]
        eos = self.tokenizer.eos_token_id
        return self._apart(source, target if eos is None or eos in target[-2:] else [*target, eos])

    def _apart(self, source: list[int], target: list[int]) -> Encoded:
        """Both as one sequence, with the answer behind the special tokens that begin it."""
        lead = next((place for place, token in enumerate(target) if token not in self._special), 0)
        encoded = answered([*source, *target], [range(len(source) + lead, len(source) + len(target))])
        return replace(encoded, source=len(source))

    def _ability(self, record: Record) -> str | None:
        if self.ability_column is None:
            return None
        ability = label_of(record, self.ability_column)
        if not isinstance(ability, (str, int)):
            raise ActError(f"the ability, column {self.ability_column}, is {ability!r:.60}; expected a name")
        return require_name(f"the ability, column {self.ability_column},", str(ability))

    def _text(self, record: Record, mask: Any, images: list[Image]) -> Steps:
        text = _nonempty("text", record["text"])
        require_nothing_lost(record, ("text",), text, (), only_prompts=True)
        (bare,), beside = yield from self._read([text], images)
        ids = [*self._led(bare), *self.trail]
        if mask is None:  # special tokens are not text, and have the largest activations
            text_length = len(ids) - len(self.lead) - len(self.trail)
            mask = [0] * len(self.lead) + [1] * text_length + [0] * len(self.trail)
        return self._seen(masked(ids, mask), bare, images, beside)

    def _completion(self, record: Record, mask: Any, images: list[Image]) -> Steps:
        prompt, completion = record["prompt"], record["completion"]
        if not isinstance(prompt, str):
            raise ActError(f"prompt must be a string, got {prompt!r:.60}")
        text = prompt + _nonempty("completion", completion)
        require_nothing_lost(record, ("prompt", "completion"), text, (prompt, completion))
        ended = str(self.tokenizer.eos_token or "") if images else ""  # for which the processor gives values, too
        (prefix, bare), beside = yield from self._read([prompt, text.removesuffix(ended) + ended], images)
        prefix, whole = self._led(prefix), self._led(bare)
        eos = self.tokenizer.eos_token_id
        end = len(whole)
        if self.reader == "encoder":
            whole = [*whole, *self.trail]
        elif eos is not None and whole[-1:] != [eos]:
            whole, end = [*whole, eos], end + 1
        if mask is None:
            spaced = prompt != prompt.rstrip() and completion == completion.lstrip()
            way = (
                "begin the completion with the white space that ends the prompt"
                if spaced
                else "end the prompt where a token ends"
            )
            encoded = answered(whole, [after(prefix, whole[:end], way)])
        else:
            encoded = masked(whole, mask)
        return self._seen(encoded, bare, images, beside)

    def _prompt_alone(self, record: Record, column: str, mask: Any, images: list[Image]) -> Steps:
        """A record without an answer: a ``prompt`` as it is, a question or instruction as the template asks it."""
        if mask is not None:
            raise ActError("loss_mask marks an answer, and the record has a prompt alone; leave it out")
        if column != "prompt":
            asked = _instruction(record) if column == "instruction" else record[column]
            said = _nonempty(f"the {column}", asked)
            columns = ("instruction", "input") if column == "instruction" else (column,)
            encoded = yield from self._messages(record, self._question(said, images), columns, None, images)
            return replace(encoded, unanswered=_unanswered(record, column, columns))
        text = _nonempty("the prompt", record["prompt"])
        require_nothing_lost(record, ("prompt",), text, (text,))
        (bare,), beside = yield from self._read([text], images)
        why = _unanswered(record, column, (column,))
        return self._seen(replace(answered(self._led(bare), []), unanswered=why), bare, images, beside)

    def _led(self, ids: list[int]) -> list[int]:
        """The ids with the special tokens in front, which a text that was rendered before has already."""
        return ids if ids[: len(self.lead)] == self.lead else [*self.lead, *ids]

    def _messages(
        self, record: Record, messages: Any, columns: tuple[str, ...], mask: Any, images: list[Image]
    ) -> Steps:
        conversation = conversation_of(record, messages, columns, ignored=self.ignore_columns)
        unanswered = mask is None and self.answer_turns == "last" and conversation.messages[-1]["role"] != "assistant"
        if unanswered:
            return (yield from self._asked_alone(record, conversation, images))
        turns = self._answer_turns(conversation.messages, mask, len(messages))
        answers = [conversation.messages[turn] for turn in turns]
        for answer in answers:
            if not (any(map(str.strip, texts_in(answer))) or calls_of(answer)):
                raise ActError(f"the record has no answer: the assistant's content is {answer.get('content')!r:.60}")
        text = self._written(record, conversation, turns)
        ids, beside = yield from self._read([*text.before, *text.after], images)
        prefixes, ends = ids[: len(turns)], ids[len(turns) :]
        whole = ends[-1]
        spans = []
        for number, (prefix, end) in enumerate(zip(prefixes, ends, strict=False)):
            prompt, so_far = text.before[number], text.after[number]
            last = option("--answer-turns last", "answer_turns='last'")
            later = f"{why_not_a_beginning(so_far, text.whole)}, or the last answer alone ({last})"
            require_beginning(end, whole, later)
            span = after(prefix, end, why_not_a_beginning(prompt, so_far))
            if not so_far.startswith(prompt):  # other characters, same tokens
                require_answer(answers[number], str(self.tokenizer.decode(end[span.start :])))
            spans.append(self._without_white_space(whole, span))
        return self._seen(answered(whole, spans), whole, images, beside)

    def _asked_alone(self, record: Record, conversation: Conversation, images: list[Image]) -> Steps:
        """A conversation that ends before an answer, with what makes the model begin one; none of its tokens is one."""
        text = self._written(record, conversation, [len(conversation.messages)]).before[0]
        (whole,), beside = yield from self._read([text], images)
        why = f"the record has no answer: its last message is by {conversation.messages[-1]['role']!r}"
        return self._seen(replace(answered(whole, []), unanswered=why), whole, images, beside)

    def _written(self, record: Record, conversation: Conversation, turns: list[int]) -> Written:
        """A conversation in the words of the chat template, of which no column of the record is lost."""
        tokenizer = self.tokenizer if isinstance(self.vision, str) else self.vision.tokenizer
        if not tokenizer.chat_template:
            how = (
                option(" (--columns prompt=question,completion=answer)", " (columns={'prompt': '{question}', …})")
                if {"messages", "conversations"}.isdisjoint(conversation.columns)
                else ""
            )
            template = option("--chat-template", "tokenizer.chat_template")
            raise ActError(
                f"the tokenizer has no chat template; use prompt and completion{how}, or give one ({template})"
            )
        text = written(tokenizer, conversation, turns)
        if settings := sorted(self._settings.intersection(record).difference(conversation.columns)):
            raise ActError(
                f"the chat template has the setting {settings[0]}, which is also a column; give it as "
                f"chat_template_kwargs, or ignore it on purpose ({ignore_option(settings[0])})"
            )
        essence = [part for message in conversation.messages[-2:] for part in texts_in(message)]
        require_nothing_lost(record, conversation.columns, text.whole, essence)
        return text

    def _answer_turns(self, messages: list[Message], mask: Any, own: int) -> list[int]:
        """The numbers of the messages that are answers; a mask is for the last ``own`` messages."""
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if mask is not None:
            require_mask(mask, own, "messages")
            turns = [turn for turn in turns if turn >= len(messages) - own and mask[turn - len(messages)]]
            if not turns:
                raise ActError("the record has no answer: loss_mask marks no message by the assistant")
            return turns
        learned = flagged(messages)
        if self.answer_turns == "last":
            turns = turns[-1:]
        elif not turns:
            raise ActError("the record has no answer: no message is by 'assistant'")
        if not (turns := [turn for turn in turns if learned[turn]]):
            ignored = option("--ignore-columns", "ignore_columns")
            every = option("--answer-turns all", "answer_turns='all'")
            raise ActError(
                f"the record has no answer: its flags ({', '.join(FLAGS)}) say that the last message is not learned; "
                f"take the others as answers ({every}), or ignore the flags ({ignored})"
            )
        return turns

    def _without_white_space(self, ids: list[int], span: range) -> range:
        """The span without white space that the template adds after its end-of-turn token."""
        last = max((i for i in span if ids[i] in self._special), default=None)
        if last is not None and not str(self.tokenizer.decode(ids[last + 1 : span.stop])).strip():
            return range(span.start, last + 1)
        return span

    def _turn(self, question: Any, answer: Any, images: list[Image]) -> list[Message]:
        """A question and its answer as messages."""
        asked = self._question(question, images)
        return [*asked, {"role": "assistant", "content": _nonempty("the answer", answer)}]

    def _question(self, question: Any, images: list[Image]) -> list[Message]:
        """A question as a message; images without a place in it come before it."""
        if not isinstance(question, str):
            raise ActError(f"the question must be a string, got {question!r:.60}")
        content: Any = question
        if isinstance(self.vision, Vision) and images and self.vision.place not in question:
            content = [*([PLACE] * len(images)), {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    @cached_property
    def _settings(self) -> set[str]:
        """The names that the chat template reads if they are given, such as ``enable_thinking``."""
        return set(re.findall(r"(?<![.\w])(\w+) is (?:not )?defined", str(self.tokenizer.chat_template)))

    @cached_property
    def _special(self) -> set[int]:
        return set(self.tokenizer.all_special_ids)


def _has(record: Record, *keys: str) -> bool:
    """Whether the record has values in these columns; in tables of mixed records, missing values are None."""
    return all(record.get(key) is not None for key in keys)


def _unanswered(record: Record, asked: str, read: Collection[str]) -> str:
    """Why a record with a prompt alone has no answer, and which column may be one."""
    others = {name: value for name, value in record.items() if name not in read}
    why = f"the record has no answer: beside its {asked} it has {', '.join(others) or 'nothing'}"
    new = ("prompt", "completion") if asked == "prompt" else ("question", "answer")
    answer = answer_in(others)
    if answer is None:
        return why
    return f"{why}, one of which may be it ({columns_option({new[0]: f'{{{asked}}}', new[1]: f'{{{answer}}}'})})"


def _otherwise(record: Record) -> str:
    """What may be done with a record of which no column is read."""
    inside = next((name for name, value in record.items() if _is_records(value)), None)
    if inside is not None:
        return f"the records seem to be those in {inside!r}; write these alone into a file (jq .{inside})"
    return f"columns of other names can be mapped ({mapping_of(record)})"


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _instruction(record: Record) -> Any:
    """The instruction, and below it the input, if there is one."""
    more = record.get("input") or ""
    if not isinstance(more, str):
        raise ActError(f"input must be a string, got {more!r:.60}")
    return (
        f"{record['instruction']}\n\n{more}"
        if more and isinstance(record["instruction"], str)
        else record["instruction"]
    )


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
        expected = "" if isinstance(value, str) else "; expected a text, which stands in quotes"
        raise ActError(f"the record has no answer: {what} is {value!r:.60}{expected}")
    return value

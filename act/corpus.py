"""Corpora: records that exercise an ability, tokenised, with the tokens that count.

A record has ``messages`` (the last one by the assistant is the answer), ``prompt`` and ``completion``, or ``text`` (all
of it counts). The answer is found by token ids: the whole record must begin with those of its prompt, or an error says
so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from act.batching import Sequence, batches
from act.errors import ActError

Count = Literal["answer", "predict", "all"]
"""Counted positions: the answer tokens' own (as in the paper), those that predict an answer token, or all tokens."""

DEFAULT_TOKEN_BUDGET = 8192


@dataclass(frozen=True)
class Encoded:
    """Token ids of one record, and the half-open range of its answer."""

    input_ids: list[int]
    start: int
    end: int

    def counted(self, count: Count) -> range:
        """The positions that count."""
        if count == "all":
            return range(len(self.input_ids))
        shift = 1 if count == "predict" else 0
        return range(max(0, self.start - shift), self.end - shift)


class Corpus:
    """Records and the tokenizer that turns them into counted tokens; reads its source anew on each pass.

    Args:
        records: a function that returns a fresh iterator of ``(place, record)``; place names the record in errors.
        tokenizer: a Hugging Face tokenizer; ``messages`` need its chat template.
        count: see :data:`Count`.
        max_length: longest sequence in tokens. A longer ``text`` is cut to pieces; other longer records are errors.
        name: for provenance and errors.
        fingerprint: hash of the content, for provenance.
        size: number of records, if known, for progress.
    """

    def __init__(
        self,
        records: Callable[[], Iterable[tuple[str, Mapping[str, Any]]]],
        tokenizer: Any,
        *,
        count: Count = "answer",
        max_length: int = 2048,
        name: str = "records",
        fingerprint: str | None = None,
        size: int | None = None,
    ) -> None:
        if count not in get_args(Count):
            raise ActError(f"count is {count!r}; expected one of {', '.join(get_args(Count))}")
        if max_length < 2:
            raise ActError(f"max length is {max_length}; expected at least 2 tokens")
        self._records = records
        self.tokenizer = tokenizer
        self.count: Count = count
        self.max_length = max_length
        self.name = name
        self.fingerprint = fingerprint
        self.size = size

    @classmethod
    def from_file(cls, path: str | Path, tokenizer: Any, **options: Any) -> Corpus:
        """A corpus from a JSONL file (one record a line) or a ``.txt`` file (one text a line)."""
        path = Path(path)
        if not path.is_file():
            raise ActError(f"no such corpus: {path}; expected a .jsonl or .txt file")
        if path.suffix not in (".jsonl", ".txt"):
            raise ActError(f"cannot read {path}: expected a .jsonl file (one record a line) or a .txt file")
        fingerprint, size = _hash_and_lines(path)
        return cls(lambda: _lines(path), tokenizer, name=str(path), fingerprint=fingerprint, size=size, **options)

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], tokenizer: Any, **options: Any) -> Corpus:
        """A corpus from records in memory."""
        held = list(records)
        fingerprint = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:16]
        options = {"fingerprint": fingerprint, "size": len(held), **options}
        return cls(lambda: ((f"record {i}", record) for i, record in enumerate(held)), tokenizer, **options)

    def encoded(self) -> Iterator[Encoded]:
        """Every record as tokens with its answer span, in order.

        Raises:
            ActError: a malformed record, an answer that is empty or cannot be told from its prompt, no record at all.
        """
        for place, record in self._records():
            try:
                yield self._encode(record)
            except ActError as error:
                raise ActError(f"{self.name}, {place}: {error}") from error.__cause__

    def sequences(self) -> Iterator[Sequence]:
        """Every record as sequences of at most ``max_length`` tokens with a count mask."""
        counted = 0
        for encoded in self.encoded():
            ids = np.asarray(encoded.input_ids, dtype=np.int64)
            mask = np.zeros(len(ids), dtype=bool)
            positions = encoded.counted(self.count)
            mask[positions.start : positions.stop] = True
            counted += len(positions)
            for start in range(0, len(ids), self.max_length):
                yield Sequence(ids[start : start + self.max_length], mask[start : start + self.max_length])
        if not counted:
            raise ActError(f"{self.name}: no token would be counted; the corpus is empty or its records have no answer")

    def batches(self, token_budget: int = DEFAULT_TOKEN_BUDGET) -> Iterator[dict[str, torch.Tensor]]:
        """Padded batches to a token budget; see :func:`act.batching.batches`."""
        if token_budget < 1:
            raise ActError(f"token budget is {token_budget}; expected at least 1 token")
        pad_id = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        return batches(self.sequences(), token_budget, pad_id)

    def spans(self, limit: int) -> Iterator[tuple[str, str]]:
        """What comes before the counted tokens and what counts, decoded, for the first records: a preview."""
        for _, encoded in zip(range(limit), self.encoded(), strict=False):
            positions = encoded.counted(self.count)
            yield (
                self.tokenizer.decode(encoded.input_ids[: positions.start]),
                self.tokenizer.decode(encoded.input_ids[positions.start : positions.stop]),
            )

    def _encode(self, record: Mapping[str, Any]) -> Encoded:
        if not isinstance(record, Mapping):
            raise ActError(f"expected a JSON object with messages, prompt and completion, or text; got {record!r:.60}")
        if "messages" in record:
            encoded = self._encode_messages(record["messages"])
        elif "prompt" in record and "completion" in record:
            encoded = self._encode_completion(record["prompt"], record["completion"])
        elif "text" in record:
            return self._encode_text(record["text"])
        else:
            raise ActError(f"expected messages, prompt and completion, or text; got the keys {sorted(record)}")
        if len(encoded.input_ids) > self.max_length:
            raise ActError(
                f"the record has {len(encoded.input_ids)} tokens and the limit is {self.max_length}; "
                "raise the maximum length (--max-length) or shorten the record"
            )
        return encoded

    def _encode_text(self, text: Any) -> Encoded:
        ids = self._tokens(_nonempty("text", text))
        return Encoded(ids, 0, len(ids))

    def _encode_completion(self, prompt: Any, completion: Any) -> Encoded:
        if not isinstance(prompt, str):
            raise ActError(f"prompt must be a string, got {prompt!r:.60}")
        whole = self._tokens(prompt + _nonempty("completion", completion))
        eos = self.tokenizer.eos_token_id
        if eos is not None and whole[-1:] != [eos]:
            whole = [*whole, eos]
        return self._after_prefix(self._tokens(prompt), whole)

    def _encode_messages(self, messages: Any) -> Encoded:
        if not (isinstance(messages, list) and messages and all(isinstance(m, Mapping) for m in messages)):
            raise ActError(f"messages must be a list of objects with role and content, got {messages!r:.60}")
        if messages[-1].get("role") != "assistant":
            raise ActError(f"the record has no answer: its last message is by {messages[-1].get('role')!r}")
        _nonempty("the assistant's content", messages[-1].get("content"))
        if not self.tokenizer.chat_template:
            raise ActError("the tokenizer has no chat template; use prompt and completion, or set one")
        before = self._rendered(messages[:-1], add_generation_prompt=True)
        encoded = self._after_prefix(before, self._rendered(messages, add_generation_prompt=False))
        # White space that a template puts after its end-of-turn token is no part of the answer.
        special = set(self.tokenizer.all_special_ids)
        last = max((i for i in range(encoded.start, encoded.end) if encoded.input_ids[i] in special), default=None)
        if last is not None and not self.tokenizer.decode(encoded.input_ids[last + 1 :]).strip():
            return Encoded(encoded.input_ids, encoded.start, last + 1)
        return encoded

    def _rendered(self, messages: list[Mapping[str, Any]], *, add_generation_prompt: bool) -> list[int]:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # jinja2 and the template itself raise anything
            raise ActError(f"the chat template refused the messages: {error}") from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _tokens(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer puts in front, without those it puts at the end."""
        ids = self.tokenizer(text)["input_ids"]
        bare = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        lead = next((i for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare), 0)
        return ids[: lead + len(bare)]

    @staticmethod
    def _after_prefix(prefix: list[int], whole: list[int]) -> Encoded:
        if whole[: len(prefix)] != prefix:
            at = next(i for i, (a, b) in enumerate(zip([*whole, None], prefix, strict=False)) if a != b)
            raise ActError(
                f"the prompt's {len(prefix)} tokens are not the beginning of the whole record's {len(whole)} "
                f"(they part at token {at}), so the answer cannot be told apart; end the prompt where a token ends"
            )
        if len(whole) == len(prefix):
            raise ActError("the record has no answer: prompt and whole record are the same tokens")
        return Encoded(whole, len(prefix), len(whole))


def _nonempty(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ActError(f"the record has no answer: {what} is {value!r:.60}")
    return value


def _hash_and_lines(path: Path) -> tuple[str, int]:
    digest, lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
    return digest.hexdigest()[:16], lines


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if line:
                    yield place, json.loads(line) if path.suffix == ".jsonl" else {"text": line}
            except UnicodeDecodeError as error:
                raise ActError(f"{path}, {place}: not UTF-8 ({error}); convert the file") from error
            except json.JSONDecodeError as error:
                raise ActError(f"{path}, {place}: not JSON ({error}); expected one object a line") from error

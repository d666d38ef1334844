"""Corpora: records that exercise an ability, tokenised, with the tokens that count, in batches."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import nn

from act.batching import BEGINNING, LOOK_AHEAD, LOOK_AHEAD_TOKENS, Batch, Position, Sequence, batches, pieces
from act.encode import AnswerTurns, Count, Encoded, Encoder
from act.errors import ActError, BadRecord
from act.limits import learned_positions, trained_positions
from act.records import Dataset, Entry, Memory, Record, Shard, Source, Wanted, every, open_source
from act.token_cache import TokenCache
from act.workers import ordered_map

DEFAULT_TOKEN_BUDGET = 8192
DEFAULT_MAX_LENGTH = 2048
CHUNK = 128  # records tokenised together
NOTHING_COUNTS = "no token would be counted; the corpus is empty or its records have no answer"


class Corpus:
    """Records and the tokenizer that turns them into counted tokens; reads its source anew on each pass.

    Args:
        source: where the records come from; :meth:`from_file`, :meth:`from_records` and :meth:`from_dataset` make one.
        tokenizer: a Hugging Face tokenizer; conversations need its chat template.
        count: see :data:`act.encode.Count`.
        answer_turns: see :data:`act.encode.AnswerTurns`.
        max_length: longest sequence in tokens; None: the positions of the model, at most 2048. A longer ``text`` is cut
            to pieces; other longer records are errors.
        overlap: tokens that a piece repeats from the one before as context, uncounted; None: a sixteenth of the length.
        ability_column: the column that labels each record with its ability.
        name: for provenance and errors, instead of the source's.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Any,
        *,
        count: Count = "answer",
        answer_turns: AnswerTurns = "last",
        max_length: int | None = None,
        overlap: int | None = None,
        ability_column: str | None = None,
        name: str | None = None,
    ) -> None:
        if count not in get_args(Count):
            raise ActError(f"count is {count!r}; expected one of {', '.join(get_args(Count))}")
        if max_length is not None and max_length < 2:
            raise ActError(f"max length is {max_length}; expected at least 2 tokens")
        if overlap is not None and not 0 <= overlap < (max_length or DEFAULT_MAX_LENGTH):
            raise ActError(f"overlap is {overlap}; expected 0 or more tokens, and fewer than the maximum length")
        self.source = source
        self.encoder = Encoder(tokenizer, answer_turns, ability_column)
        self.count: Count = count
        self.name = name or source.name
        self._max_length, self._overlap = max_length, overlap
        self._tokens: TokenCache | None = None

    @classmethod
    def from_file(cls, path: str | Path, tokenizer: Any, **options: Any) -> Corpus:
        """A corpus from a file, folder, glob or hub id: see :func:`act.records.open_source`."""
        return cls(open_source(path), tokenizer, **options)

    @classmethod
    def from_records(cls, records: Iterable[Record], tokenizer: Any, **options: Any) -> Corpus:
        """A corpus from records in memory."""
        return cls(Memory(records), tokenizer, **options)

    @classmethod
    def from_dataset(cls, dataset: Any, tokenizer: Any, *, fingerprint: str | None = None, **options: Any) -> Corpus:
        """A corpus from a Hugging Face dataset, map-style or streaming.

        Args:
            fingerprint: what tells a streaming dataset from others, such as its name and revision; checkpoints and the
                token cache need it.
        """
        return cls(Dataset(dataset, fingerprint=fingerprint), tokenizer, **options)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.encoder.tokenizer

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        return self._max_length or DEFAULT_MAX_LENGTH

    @property
    def overlap(self) -> int:
        """Tokens of context that a later piece of a text repeats."""
        return self.max_length // 16 if self._overlap is None else self._overlap

    def fitted(self, learned: int | None, trained: int | None = None) -> Corpus:
        """This corpus for a model.

        Args:
            learned: positions that the model has parameters for, and cannot go beyond; None: it computes them.
            trained: positions that its configuration says it was made for; beyond them only where that was asked for.

        Raises:
            ActError: a maximum length that was asked for and does not fit, or an overlap that leaves nothing of it.
        """
        if self._max_length is not None and learned is not None and self._max_length > learned:
            raise ActError(
                f"the maximum length is {self.max_length} tokens and the model has learned {learned} positions; "
                f"set it to at most {learned} (--max-length)"
            )
        positions = min((given for given in (learned, trained) if given is not None), default=DEFAULT_MAX_LENGTH)
        if self._max_length is not None or self.max_length <= positions:
            return self
        if self.overlap >= positions and self._overlap is not None:
            raise ActError(
                f"overlap is {self.overlap} tokens and the model has {positions} positions; "
                f"set it below {positions} (--overlap)"
            )
        fitted = copy.copy(self)
        fitted._max_length = positions
        return fitted

    def for_models(self, *models: nn.Module) -> Corpus:
        """This corpus :meth:`fitted` to the positions that all these models have."""
        learned = [positions for model in models if (positions := learned_positions(model)) is not None]
        found = [trained_positions(getattr(model, "config", None)) for model in models]
        trained = [positions for positions in found if positions is not None]
        return self.fitted(min(learned, default=None), min(trained, default=None))

    def cached(
        self,
        folder: str | Path,
        workers: int = 0,
        report: Callable[[str, int, int], None] = lambda name, done, total: None,
    ) -> Corpus:
        """This corpus, read from its tokens in ``folder``; tokenised now, to its end, if they are not there.

        What counts is decided on reading, so one file serves every count mode and maximum length.

        Args:
            folder: made if it is missing; a file in it for each corpus.
            workers: processes that tokenise; 0: this one.
            report: called while tokenising with the name, and how many records of how many (0: unknown) are done.

        Raises:
            ActError: a source whose content has no fingerprint; a folder that cannot be written.
        """
        if not self.source.fingerprint:
            raise ActError(
                f"{self.name}: a stream has no fingerprint to find its tokens by; give it one "
                "(Corpus.from_dataset(…, fingerprint=…)), or leave the token cache out"
            )
        identity = self.identity()
        deciding = ("fingerprint", "tokenizer", "answer_turns", "ability_column")  # not what counts, nor the cuts
        tokens = TokenCache(Path(folder), {name: identity[name] for name in deciding})
        if not tokens.there:
            tokens.write(
                self._tokenised(0, (0, 1), workers, every), lambda done: report(self.name, done, self.source.size or 0)
            )
        cached = copy.copy(self)
        cached._tokens = tokens
        return cached

    def identity(self) -> dict[str, Any]:
        """What decides which tokens count: content, tokenizer and settings, as plain data."""
        return {
            "fingerprint": self.source.fingerprint,
            "tokenizer": self.encoder.fingerprint,
            "vocabulary": self.encoder.vocabulary,
            "count": self.count,
            "answer_turns": self.encoder.answer_turns,
            "max_length": self.max_length,
            "overlap": self.overlap,
            "ability_column": self.encoder.ability_column,
        }

    def numbered(
        self, start: int = 0, shard: Shard = (0, 1), workers: int = 0, wanted: Wanted = every
    ) -> Iterator[tuple[Entry, Encoded | ActError]]:
        """The wanted records of a shard from a number on, each with its tokens or what is wrong with it, in order."""
        tokens = self._tokens
        found = tokens.read(start, shard, wanted) if tokens else self._tokenised(start, shard, workers, wanted)
        return ((entry, self._checked(result)) for entry, result in found)

    def _tokenised(
        self, start: int, shard: Shard, workers: int, wanted: Wanted
    ) -> Iterator[tuple[Entry, Encoded | ActError]]:
        entries = self.source.read(start, shard, wanted)
        # The results come in the order of the chunks, so each finds its entries at the front of the queue.
        sent: list[list[Entry]] = []

        def chunks() -> Iterator[list[Record | ActError]]:
            while chunk := list(itertools.islice(entries, CHUNK)):
                sent.append(chunk)
                yield [entry.record for entry in chunk]

        for results in ordered_map(self.encoder, chunks(), workers):
            yield from zip(sent.pop(0), results, strict=True)

    def encoded(self) -> Iterator[Encoded]:
        """Every record as tokens with its answer, in order.

        Raises:
            ActError: a malformed record, an answer that is empty or cannot be told from its prompt.
        """
        for entry, result in self.numbered():
            if isinstance(result, ActError):
                raise ActError(f"{entry.place}: {result}") from result
            yield result

    def sequences(self) -> Iterator[Sequence]:
        """Every record as sequences of at most ``max_length`` tokens with a count mask; errors as :meth:`encoded`."""
        for number, encoded in enumerate(self.encoded()):
            yield from self.pieces_of(encoded, number)

    def pieces_of(self, encoded: Encoded, document: int, ability: str = "") -> Iterator[Sequence]:
        """The sequences of one record."""
        mask = encoded.counted(self.count)
        return pieces(encoded.input_ids, mask, self.max_length, self.overlap, document, encoded.ability or ability)

    def batches(self, token_budget: int = DEFAULT_TOKEN_BUDGET) -> Iterator[dict[str, torch.Tensor]]:
        """Padded batches: ``input_ids``, ``attention_mask`` and ``count_mask``, all ``[batch, length]``."""
        for batch in Stream({"": self}, token_budget=token_budget):
            yield {**batch.inputs, "count_mask": batch.count_mask}

    def spans(self, limit: int) -> Iterator[list[tuple[str, bool]]]:
        """The first records as decoded runs of tokens, each with whether it counts: a preview."""
        return map(self.runs_of, itertools.islice(self.encoded(), limit))

    def runs_of(self, encoded: Encoded) -> list[tuple[str, bool]]:
        """The decoded runs of one record, each with whether it counts."""
        counted = encoded.counted(self.count)
        edges = [0, *(np.flatnonzero(counted[1:] != counted[:-1]) + 1), len(counted)]
        return [
            (self.tokenizer.decode(encoded.input_ids[start:end].tolist()), bool(counted[start]))
            for start, end in itertools.pairwise(edges)
        ]

    def _checked(self, result: Encoded | ActError) -> Encoded | ActError:
        if isinstance(result, ActError) or len(result.input_ids) <= self.max_length:
            return result
        if result.answer[len(self.encoder.lead) :].all():  # a text, which may be cut
            return result
        return ActError(
            f"the record has {len(result.input_ids)} tokens and the limit is {self.max_length}; "
            "raise the maximum length (--max-length) or shorten the record"
        )


class Skipped(NamedTuple):
    """A bad record that a run left out."""

    ability: str
    record: int
    place: str
    reason: str


class Stream:
    """The batches of one pass over named corpora, one corpus after the other; the same settings give the same batches.

    Windows hold :data:`act.batching.LOOK_AHEAD` records of one corpus (fewer long ones), so a window's documents appear
    in no other. They begin at multiples of that number, so that several readers share out the very windows of one.

    Args:
        corpora: by ability; the name is empty where there is only one and nobody named it.
        token_budget: tokens a batch, padding included.
        packing: pieces follow each other in one row, without padding (see :class:`act.batching.Batch`).
        shard: ``(i, n)``: only the records whose number leaves i when divided by n.
        workers: processes that tokenise; 0: this one.
        skip_bad_records: how many bad records to leave out before giving up.
        look_ahead: records a window.
        windows: ``(i, n)``: of the shard's windows, every n-th from the i-th on.
        start: where to go on.
        skipped: what was left out before ``start``.
        part: these corpora are parts of larger ones, so there may be nothing in them that counts.

    Attributes:
        skipped: the bad records left out so far.
        stopped: abilities of which no more is wanted; add to it at any time.

    Raises:
        ActError: on iteration, a malformed record, or a corpus of which nothing counts.
    """

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        *,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        packing: bool = False,
        shard: Shard = (0, 1),
        workers: int = 0,
        skip_bad_records: int = 0,
        look_ahead: int = LOOK_AHEAD,
        windows: Shard = (0, 1),
        start: Position = BEGINNING,
        skipped: Iterable[Skipped] = (),
        part: bool = False,
    ) -> None:
        if token_budget < 1:
            raise ActError(f"token budget is {token_budget}; expected at least 1 token")
        for name, number in (("workers", workers), ("bad records to skip", skip_bad_records)):
            if number < 0:
                raise ActError(f"{name} is {number}; expected 0 or more")
        if not (shard[1] >= 1 and 0 <= shard[0] < shard[1]):
            raise ActError(f"shard is {shard[0]}/{shard[1]}; expected i/n with 0 <= i < n")
        self.corpora = dict(corpora)
        self.shard, self.windows = shard, windows
        self.start = start
        self.skipped = list(skipped)
        self.stopped: set[str] = set()
        self._token_budget, self._packing, self._workers = token_budget, packing, workers
        self._skip_bad_records, self._look_ahead = skip_bad_records, look_ahead
        self._part = part or shard[1] > 1 or windows[1] > 1

    def skipped_before(self, position: Position) -> list[Skipped]:
        """What was left out before a position; the window under way is read again."""
        order = {ability: number for number, ability in enumerate(self.corpora)}
        return [skipped for skipped in self.skipped if (order[skipped.ability], skipped.record) < position[:2]]

    def __iter__(self) -> Iterator[Batch]:
        for number, (ability, corpus) in enumerate(self.corpora.items()):
            if number >= self.start.corpus and ability not in self.stopped:
                start = self.start if number == self.start.corpus else Position(number)
                yield from self._of(corpus, ability, start)

    def _of(self, corpus: Corpus, ability: str, start: Position) -> Iterator[Batch]:
        pad_id = next((i for i in (corpus.tokenizer.pad_token_id, corpus.tokenizer.eos_token_id) if i is not None), 0)
        counted = start != Position(start.corpus)  # what counted before the start is not known here
        for first, following, window in self._windows(corpus, ability, start.record):
            made = list(batches(window, self._token_budget, pad_id, self._packing))
            for number, batch in enumerate(made, 1):
                counted = counted or bool(batch.count_mask.any())
                if first == start.record and number <= start.batch:
                    continue
                done = (
                    Position(start.corpus, first, number) if number < len(made) else Position(start.corpus, following)
                )
                yield replace(batch, after=done)
            if ability in self.stopped:
                return
        if not counted and not self._part:
            raise ActError(f"{corpus.name}: {NOTHING_COUNTS}")

    def _windows(self, corpus: Corpus, ability: str, start: int) -> Iterator[tuple[int, int, list[Sequence]]]:
        """Windows with the record number at which each begins, and at which the next one does."""
        window: list[Sequence] = []
        records = tokens = 0
        following = start

        def block(number: int) -> int:
            return number // self.shard[1] // self._look_ahead

        def wanted(number: int) -> bool:
            return block(number) % self.windows[1] == self.windows[0]

        for entry, result in corpus.numbered(start, self.shard, self._workers, wanted):
            following = entry.number + 1
            records += 1
            if isinstance(result, ActError):
                self._skip(Skipped(ability, entry.number, entry.place, str(result)))
            else:
                window += corpus.pieces_of(result, entry.number, ability)
                tokens += len(result.input_ids)
            if tokens >= LOOK_AHEAD_TOKENS or block(entry.number + self.shard[1]) != block(entry.number):
                yield start, following, window
                start, window, records, tokens = following, [], 0, 0
        if records:
            yield start, following, window

    def _skip(self, skipped: Skipped) -> None:
        self.skipped.append(skipped)
        if len(self.skipped) > self._skip_bad_records:
            before = len(self.skipped) - 1
            after = f" (after {before} others that were skipped)" if before else ""
            raise BadRecord(f"{skipped.place}: {skipped.reason}{after}")

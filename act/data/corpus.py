"""Corpora: records that exercise an ability, as tokens, with a mask of those that count."""

from __future__ import annotations

import copy
import functools
import html
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from torch import nn

from act.core.errors import ActError, BadRecord, option, require_choice, require_type
from act.data.batching import Sequence, pieces
from act.data.encode import ENCODING, AnswerTurns, Encoder
from act.data.encoded import Count, Encoded
from act.data.images import Vision, column_of, processor_beside
from act.data.mapped import Mapped
from act.data.parts import Part, Picked
from act.data.records import Dataset, Entry, Memory, Record, Shard, Source, Wanted, every, open_source
from act.data.token_cache import TokenCache
from act.data.workers import ordered_map
from act.models.calls import Reader, reader_of, takes_images
from act.models.limits import learned_positions, trained_positions
from act.models.loading import code_of

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048
CHUNK, CHUNK_BYTES = 128, 4 << 20  # records tokenised together, and their size
IMAGES_IN_CHUNK = 8  # records with images, which take megabytes each
UNKNOWN = 0.1  # share of the tokens
_TOLD: set[tuple[str, int | None]] = set()


class Corpus:
    """Records, and the tokenizer that turns them into tokens, some of which count.

    Every pass reads the source again.

    Args:
        source: the records; :meth:`from_file`, :meth:`from_records` and :meth:`from_dataset` create one.
        tokenizer: a Hugging Face tokenizer; conversations need its chat template. Or the processor of a model of text
            and images; without it, a corpus with images takes the one from the folder of the tokenizer.
        count: which tokens count: those of the ``answer`` (all of a text), as in the paper; the positions that
            ``predict`` one of them; ``all``; or those of the ``prompt``, which are all but the answer.
        answer_turns: which messages of the assistant are answers: the ``last``, or ``all``.
        max_length: longest sequence in tokens; None: the positions of the model, at most 2048. A longer ``text`` is cut
            into pieces; any other longer record is an error.
        overlap: tokens that a piece repeats from the one before it as context, and that do not count again; None: a
            sixteenth of the maximum length.
        ability_column: the column that labels each record with its ability.
        ignore_columns: columns, and keys of messages, to leave out on purpose; any other text that is not read is an
            error.
        name: used in provenance and errors instead of the source's name.

    Raises:
        ActError: an unknown choice, or a length or overlap out of range.

    >>> corpus = act.Corpus.from_records([{"prompt": "What is two plus three?", "completion": " five"}], tokenizer)
    >>> corpus  # doctest: +ELLIPSIS
    <Corpus 'records': 1 record, answer tokens count, tokenizer ...>
    >>> [text for text, counted in next(corpus.spans(1)) if counted]
    [' five</s>']
    >>> corpus.tokenizer is tokenizer, corpus.max_length, corpus.overlap
    (True, 2048, 128)
    >>> corpus.vision is None  # it has no images
    True
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        *,
        count: Count = "answer",
        answer_turns: AnswerTurns = "last",
        max_length: int | None = None,
        overlap: int | None = None,
        ability_column: str | None = None,
        ignore_columns: Iterable[str] = (),
        name: str | None = None,
    ) -> None:
        if isinstance(tokenizer, str | Path):
            raise ActError(
                f"the tokenizer is given by its name, {tokenizer}; expected a tokenizer, such as "
                "AutoTokenizer.from_pretrained gives"
            )
        if not hasattr(source, "read"):
            raise ActError(
                f"the source is of type {type(source).__name__}; make a corpus of a file with act.Corpus.from_file, of "
                "records with from_records, of a dataset with from_dataset"
            )
        require_choice("count", count, get_args(Count))
        if max_length is not None and max_length < 2:
            raise ActError(f"max length is {max_length}; expected at least 2 tokens")
        if overlap is not None and not 0 <= overlap < (max_length or DEFAULT_MAX_LENGTH):
            raise ActError(
                f"{option('--stride', 'overlap')} is {overlap}; expected 0 or more tokens, and fewer than the maximum "
                "length"
            )
        self.source = source
        if isinstance(ignore_columns, str):
            raise ActError(f"the columns to ignore are {ignore_columns!r}; expected a list of names")
        self._processor: Any = tokenizer if hasattr(tokenizer, "image_processor") else None
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer) if self._processor else tokenizer
        self.encoder = Encoder(tokenizer, answer_turns, ability_column, ignore_columns)
        self.count: Count = count
        self.name = name or source.name
        self._max_length, self._overlap = max_length, overlap
        self._tokens: TokenCache | None = None

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        count: Count = "answer",
        answer_turns: AnswerTurns = "last",
        max_length: int | None = None,
        overlap: int | None = None,
        ability_column: str | None = None,
        ignore_columns: Iterable[str] = (),
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> Corpus:
        """A corpus from a file, folder, glob or hub id.

        Args:
            path: where it lies: JSONL, JSON, CSV, TSV, text, Parquet or Arrow, by its ending; a hub id is ``org/name``,
                ``org/name:split`` or ``org/name:config:split``.
            columns: which columns to read, as templates by new column: ``{"prompt": "{question}\\n"}``.
            tokenizer, count, answer_turns, max_length, overlap, ability_column, ignore_columns, name: as in
                :class:`Corpus`.

        Raises:
            ActError: there is no such file, or it is of no known format; and as :class:`Corpus`.

        >>> from pathlib import Path
        >>> written = Path("german.jsonl").write_text('{"prompt": "2 + 3 =", "completion": " 5"}')
        >>> act.Corpus.from_file("german.jsonl", tokenizer, count="predict").name
        'german.jsonl'
        """
        return cls(
            _mapped(open_source(path), columns, ability_column),
            tokenizer,
            count=count,
            answer_turns=answer_turns,
            max_length=max_length,
            overlap=overlap,
            ability_column=ability_column,
            ignore_columns=ignore_columns,
            name=name,
        )

    @classmethod
    def from_records(
        cls,
        records: Iterable[Record],
        tokenizer: PreTrainedTokenizerBase,
        *,
        count: Count = "answer",
        answer_turns: AnswerTurns = "last",
        max_length: int | None = None,
        overlap: int | None = None,
        ability_column: str | None = None,
        ignore_columns: Iterable[str] = (),
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> Corpus:
        """A corpus from records in memory.

        Args:
            records: dicts, such as ``{"prompt": …, "completion": …}`` or ``{"text": …}``.
            columns: as in :meth:`from_file`.
            tokenizer, count, answer_turns, max_length, overlap, ability_column, ignore_columns, name: as in
                :class:`Corpus`.

        Raises:
            ActError: no list of records; and as :class:`Corpus`.

        >>> corpus = act.Corpus.from_records([{"prompt": "2 + 3 =", "completion": " 5"}], tokenizer)
        >>> corpus.source.size
        1
        >>> asked = [{"ask": "2 + 3?", "reply": "5"}]
        >>> other = act.Corpus.from_records(asked, tokenizer, columns={"prompt": "{ask}", "completion": " {reply}"})
        >>> next(other.spans(1))
        [('2 + 3?', False), (' 5</s>', True)]
        """
        return cls(
            _mapped(Memory(records), columns, ability_column),
            tokenizer,
            count=count,
            answer_turns=answer_turns,
            max_length=max_length,
            overlap=overlap,
            ability_column=ability_column,
            ignore_columns=ignore_columns,
            name=name,
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset | datasets.IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        fingerprint: str | None = None,
        count: Count = "answer",
        answer_turns: AnswerTurns = "last",
        max_length: int | None = None,
        overlap: int | None = None,
        ability_column: str | None = None,
        ignore_columns: Iterable[str] = (),
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> Corpus:
        """A corpus from a Hugging Face dataset, map-style or streaming.

        Args:
            dataset: its rows are the records.
            fingerprint: identifies a streaming dataset, for example its name and revision; checkpoints and the token
                cache need it.
            columns: as in :meth:`from_file`.
            tokenizer, count, answer_turns, max_length, overlap, ability_column, ignore_columns, name: as in
                :class:`Corpus`.

        Raises:
            ActError: no dataset, or several splits of one; and as :class:`Corpus`.

        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"question": ["2 + 3?"], "answer": ["5"]})
        >>> act.Corpus.from_dataset(rows, tokenizer).source.size
        1
        """
        return cls(
            _mapped(Dataset(dataset, fingerprint=fingerprint), columns, ability_column),
            tokenizer,
            count=count,
            answer_turns=answer_turns,
            max_length=max_length,
            overlap=overlap,
            ability_column=ability_column,
            ignore_columns=ignore_columns,
            name=name,
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self)[1:-1])}</p>"

    def __repr__(self) -> str:
        size = self.source.size
        records = "records" if size is None else f"{size:,} record{'' if size == 1 else 's'}"
        tokenizer = self.tokenizer.name_or_path or type(self.tokenizer).__name__
        return f"<Corpus {self.name!r}: {records}, {self.count} tokens count, tokenizer {tokenizer}>"

    @property
    def place(self) -> str | None:
        """The file, folder, glob or hub id that it is read from, if that is not its name; None for records in memory.

        >>> from pathlib import Path
        >>> written = Path("german.jsonl").write_text('{"prompt": "2 + 3 =", "completion": " 5"}')
        >>> act.Corpus.from_file("german.jsonl", tokenizer, name="german").place
        'german.jsonl'
        """
        return self.source.place if self.source.place != self.name else None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the corpus."""
        return self.encoder.tokenizer

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        return self._max_length or DEFAULT_MAX_LENGTH

    @property
    def overlap(self) -> int:
        """Tokens that a piece of a cut text repeats from the one before it."""
        return self.max_length // 16 if self._overlap is None else self._overlap

    def part(self, residues: int | Iterable[int], of: int) -> Corpus:
        """This corpus with the records only whose number leaves ``residues``, one or several, when divided by ``of``.

        Raises:
            ActError: a remainder that the division does not leave.

        >>> corpus = act.Corpus.from_records([{"text": letter} for letter in "abcd"], tokenizer)
        >>> corpus.part(1, 2).source.size, corpus.part([0, 1], 3).source.size
        (2, 3)
        """
        return self._from(
            Part(self.source, residues=[residues] if isinstance(residues, int) else sorted(residues), of=of)
        )

    def only(self, numbers: Iterable[int]) -> Corpus:
        """This corpus with the records of these ``numbers``, from 0, only.

        >>> corpus = act.Corpus.from_records([{"text": letter} for letter in "abcd"], tokenizer)
        >>> corpus.only([0, 3]).source.size
        2
        """
        return self._from(Picked(self.source, numbers))

    def beginning(self, count: int) -> Corpus:
        """This corpus with its first ``count`` records only, or all of them if it has fewer.

        >>> corpus = act.Corpus.from_records([{"text": letter} for letter in "abcd"], tokenizer)
        >>> corpus.beginning(3).source.size, corpus.beginning(9).source.size
        (3, 4)
        """
        return self._from(Part(self.source, 0, count))

    def _from(self, source: Source) -> Corpus:
        corpus = copy.copy(self)
        corpus.source, corpus._tokens = source, None
        return corpus

    def fitted(self, learned: int | None, trained: int | None = None) -> Corpus:
        """This corpus for a model.

        Args:
            learned: number of positions for which the model has parameters, a hard limit; None: it computes them.
            trained: number of positions in its configuration; only an explicit ``max_length`` may exceed it.

        Raises:
            ActError: an explicit maximum length exceeds ``learned``, or an explicit overlap is not below the positions.

        >>> corpus.max_length, corpus.fitted(learned=None, trained=512).max_length
        (2048, 512)
        """
        if self._max_length is not None and learned is not None and self._max_length > learned:
            raise ActError(
                f"the maximum length is {self.max_length} tokens and the model has learned {learned} positions; "
                f"set it to at most {learned} ({option('--max-length', 'max_length')})"
            )
        if self._max_length is not None and trained is not None and self._max_length > trained:
            _warn_beyond(self._max_length, trained)
        positions = min((given for given in (learned, trained) if given is not None), default=DEFAULT_MAX_LENGTH)
        if self._max_length is not None or self.max_length <= positions:
            return self
        if self.overlap >= positions and self._overlap is not None:
            raise ActError(
                f"{option('--stride', 'overlap')} is {self.overlap} tokens and the model has {positions} positions; "
                f"set it below {positions}"
            )
        fitted = copy.copy(self)
        fitted._max_length = positions
        return fitted

    def for_models(self, *models: nn.Module) -> Corpus:
        """This corpus, :meth:`read_by` such models and :meth:`fitted` to the positions that all of them have.

        >>> corpus.for_models(model).max_length == model.config.max_position_embeddings
        True
        """
        learned = [positions for model in models if (positions := learned_positions(model)) is not None]
        found = [trained_positions(getattr(model, "config", None)) for model in models]
        trained = [positions for positions in found if positions is not None]
        corpus = self.read_by(reader_of(models[0])) if models else self
        return corpus.fitted(min(learned, default=None), min(trained, default=None))

    def read_by(self, reader: Reader) -> Corpus:
        """This corpus for models of one kind.

        Args:
            reader: how they read: token by token (``decoder``); a whole text at once (``encoder``); or so a source, for
                a decoder beside the encoder (``encoder-decoder``).

        >>> corpus.read_by("decoder") is corpus, corpus.read_by("encoder").encoder.reader
        (True, 'encoder')
        """
        return self if reader == self.encoder.reader else self._encoded_by(reader, self.encoder.vision)

    def seen_by(self, *models: nn.Module) -> Corpus:
        """This corpus with its images, if the models read images and the first records have some.

        Where they do not, a record with images is an error that says why.

        Raises:
            ActError: no processor of the model is found; the corpus is read from a token cache, which holds no images.

        >>> corpus.seen_by(model).vision is None  # a model of text
        True
        """
        reason = ""
        for model in models:
            if not takes_images(model):
                reason = f"{type(model).__name__} reads text alone"
            elif self.encoder.reader != "decoder":
                reason = f"images are not read for {type(model).__name__}, an {self.encoder.reader}"
        return self.with_images(reason)

    def with_images(self, reason: str = "") -> Corpus:
        """This corpus with its images, if the first records have some; ``reason``: why no model reads them.

        Raises:
            ActError: as :meth:`seen_by`.

        >>> corpus.with_images().vision is None  # these records have none
        True
        """
        first = itertools.islice((entry.record for entry in self.source.read()), CHUNK)
        ignored = self.encoder.ignore_columns
        if reason or not any(isinstance(one, Mapping) and column_of(one, ignored) for one in first):
            late = f"none of the first {CHUNK} records has any (let one that has come first)"
            return self._encoded_by(self.encoder.reader, reason or late)
        if self._tokens is not None:
            raise ActError(f"{self.name} has images, which a token cache does not hold; leave the cache out")
        given, tokenizer = self._processor, self.encoder.tokenizer
        vision = Vision(given) if given else Vision(processor_beside(tokenizer), tokenizer)
        return self._encoded_by(self.encoder.reader, vision)

    def _encoded_by(self, reader: Reader, vision: Vision | str) -> Corpus:
        corpus, encoder = copy.copy(self), self.encoder
        corpus.encoder = Encoder(
            encoder.tokenizer, encoder.answer_turns, encoder.ability_column, encoder.ignore_columns, reader, vision
        )
        corpus._tokens = None
        return corpus if self._tokens is None else corpus.cached(self._tokens.path.parent)

    @property
    def vision(self) -> Vision | None:
        """The processor that makes its images, if they are read."""
        return self.encoder.vision if isinstance(self.encoder.vision, Vision) else None

    def cached(
        self,
        folder: str | Path,
        workers: int = 0,
        report: Callable[[str, int, int], None] = lambda name, done, total: None,
    ) -> Corpus:
        """This corpus, read from tokens in ``folder``; if they are missing, the whole corpus is tokenised first.

        What counts is decided on reading, so one file serves every count mode and maximum length.

        Args:
            folder: holds one file per corpus; created if it is missing.
            workers: processes that tokenise; 0: this one.
            report: called while tokenising with the name, the records done, and the total (0: unknown).

        Raises:
            ActError: the source has no fingerprint; the folder cannot be written.

        >>> cached = corpus.cached("tokens")  # tokenises once; later runs read the folder
        >>> next(cached.encoded()).input_ids.tolist() == next(corpus.encoded()).input_ids.tolist()
        True
        """
        if not self.source.fingerprint:
            raise ActError(
                f"{self.name} is a stream without a fingerprint, so its tokens could not be found again; pass a "
                "fingerprint (Corpus.from_dataset(…, fingerprint=…)), or leave the token cache out"
            )
        if self.vision:
            raise ActError(f"{self.name} has images, which a token cache does not hold; leave the cache out")
        identity = self.identity()
        # Not what counts, nor where texts are cut.
        deciding = ("fingerprint", "tokenizer", "answer_turns", "ability_column", "ignore_columns", "reader")
        tokens = TokenCache(Path(folder), {"encoding": ENCODING, **{name: identity[name] for name in deciding}})
        if not tokens.there:
            tokens.write(
                self._tokenised(0, (0, 1), workers, every), lambda done: report(self.name, done, self.source.size or 0)
            )
        cached = copy.copy(self)
        cached._tokens = tokens
        return cached

    def identity(self) -> dict[str, Any]:
        """What decides which tokens count: content, tokenizer and settings, as plain data.

        >>> found = corpus.identity()
        >>> found["count"], found["max_length"], found["overlap"]
        ('answer', 2048, 128)
        """
        return {
            "fingerprint": self.source.fingerprint,
            "tokenizer": self.encoder.fingerprint,
            "vocabulary": self.encoder.vocabulary,
            "tokenizer_code": code_of(self.tokenizer),
            "count": self.count,
            "answer_turns": self.encoder.answer_turns,
            "max_length": self.max_length,
            "overlap": self.overlap,
            "ability_column": self.encoder.ability_column,
            "ignore_columns": sorted(self.encoder.ignore_columns) or None,
            "reader": None if self.encoder.reader == "decoder" else self.encoder.reader,
            **({"processor": self.vision.fingerprint} if self.vision else {}),
        }

    def numbered(
        self, start: int = 0, shard: Shard = (0, 1), workers: int = 0, wanted: Wanted = every
    ) -> Iterator[tuple[Entry, Encoded | ActError]]:
        """The ``wanted`` records of a shard, from number ``start`` on, each with its tokens or its error, in order.

        Args:
            shard: ``(i, n)``: every n-th record, starting with the i-th.
            workers: processes that tokenise; 0: this one.

        >>> [entry.number for entry, tokens in corpus.numbered(start=6, shard=(0, 2))]
        [6, 8, 10]
        """
        tokens = self._tokens
        found = tokens.read(start, shard, wanted) if tokens else self._tokenised(start, shard, workers, wanted)
        return self._watched((entry, self._checked(result)) for entry, result in found)

    def _watched(
        self, results: Iterator[tuple[Entry, Encoded | ActError]]
    ) -> Iterator[tuple[Entry, Encoded | ActError]]:
        """The same; and one warning for each text of which the tokenizer does not know much, by its first records."""
        tokens = unknown = 0
        for entry, result in itertools.islice(results, CHUNK):
            if isinstance(result, Encoded):
                tokens += len(result.input_ids)
                unknown += int((result.input_ids == self.encoder.unknown).sum())
            yield entry, result
        text = self.source.fingerprint or self.name, self.encoder.unknown
        if unknown > UNKNOWN * tokens and text not in _TOLD:
            _TOLD.add(text)
            log.warning(
                "%s: %.0f %% of the tokens are %s, for text that the tokenizer does not know, so figures say little; "
                "is it the tokenizer of this model, and is the text what it was made for?",
                *(self.name, 100 * unknown / tokens, self.tokenizer.unk_token),
            )
        yield from results

    def _tokenised(
        self, start: int, shard: Shard, workers: int, wanted: Wanted
    ) -> Iterator[tuple[Entry, Encoded | ActError]]:
        entries = self.source.read(start, shard, wanted)
        # Results come in the order of the chunks, so the entries of the next result are always the first in this list.
        sent: list[list[Entry]] = []

        def chunks() -> Iterator[list[Record | ActError]]:
            for chunk in _chunks(entries):
                sent.append(chunk)
                yield [entry.record for entry in chunk]

        for results in ordered_map(self.encoder, chunks(), workers):
            yield from zip(sent.pop(0), results, strict=True)

    def first(self, number: int, shard: Shard = (0, 1)) -> list[tuple[Entry, Encoded | ActError]]:
        """The first records of a shard, at most ``number``, as :meth:`numbered` gives them; no others are read.

        >>> [entry.number for entry, tokens in corpus.first(2, shard=(1, 2))]
        [1, 3]
        """
        found: Iterable[tuple[Entry, Encoded | ActError]]
        if self._tokens:
            found = itertools.islice(self._tokens.read(0, shard, every), number)
        else:
            entries = [*itertools.islice(self.source.read(0, shard), number)]
            found = zip(entries, self.encoder(entry.record for entry in entries), strict=True)
        return [(entry, self._checked(result)) for entry, result in found]

    def encoded(self) -> Iterator[Encoded]:
        """Every record as tokens with a mask of its answer, in order.

        Raises:
            ActError: a malformed record; an answer that is empty or cannot be separated from its prompt.

        >>> first = next(corpus.encoded())
        >>> first.input_ids.shape == first.counted("answer").shape
        True
        """
        for entry, result in self.numbered():
            if isinstance(result, ActError):
                raise BadRecord(f"{entry.place}: {result}{option(skipping(), '')}") from result
            yield result

    def sequences(self) -> Iterator[Sequence]:
        """Every record as sequences of at most ``max_length`` tokens; raises the errors of :meth:`encoded`.

        >>> sum(1 for _ in corpus.sequences())
        12
        """
        for number, encoded in enumerate(self.encoded()):
            yield from self.pieces_of(encoded, number)

    def pieces_of(self, encoded: Encoded, document: int, ability: str = "") -> Iterator[Sequence]:
        """The sequences of one record: one, or the pieces of a text that is longer than the maximum length.

        Args:
            encoded: the record as tokens.
            document: its number, which all pieces have.
            ability: its ability, where the record has no label of its own.

        >>> texts = act.Corpus.from_records([{"text": "a b c d e " * 20}], tokenizer, count="all", max_length=32)
        >>> pieces = list(texts.pieces_of(next(texts.encoded()), document=0))
        >>> len(pieces) > 1, max(len(piece.input_ids) for piece in pieces)
        (True, 32)
        """
        mask = encoded.counted(self.count)
        if start := encoded.source:
            if self.count == "answer":  # a decoder reads each token of the answer a place later
                mask = np.concatenate([mask[:start], [False], mask[start:-1]])
            return iter([Sequence(encoded.input_ids, mask, document, encoded.ability or ability, source=start)])
        edges = len(self.encoder.lead), len(self.encoder.trail)
        if self.encoder.reader == "encoder" and len(mask) > self.max_length > sum(edges):
            return self._framed(encoded, mask, edges, document, encoded.ability or ability)
        if encoded.beside:
            whole = Sequence(encoded.input_ids, mask, document, encoded.ability or ability)
            return iter([replace(whole, images=encoded.images, beside=encoded.beside)])
        return pieces(encoded.input_ids, mask, self.max_length, self.overlap, document, encoded.ability or ability)

    def _framed(
        self, encoded: Encoded, mask: np.ndarray, edges: tuple[int, int], document: int, ability: str
    ) -> Iterator[Sequence]:
        """The pieces of a text, each between the special tokens that an encoder expects around it."""
        first, last = edges[0], len(mask) - edges[1]
        room = self.max_length - sum(edges)
        inner = encoded.input_ids[first:last], mask[first:last]
        for piece in pieces(*inner, room, min(self.overlap, room - 1), document, ability):
            ids, counted = (
                np.concatenate([whole[:first], part, whole[last:]])
                for whole, part in ((encoded.input_ids, piece.input_ids), (mask, piece.count_mask))
            )
            yield replace(piece, input_ids=ids, count_mask=counted)

    def spans(self, limit: int) -> Iterator[list[tuple[str, bool]]]:
        """A preview of the first ``limit`` records, as decoded runs of tokens, each with whether it counts.

        >>> two = act.Corpus.from_records([{"prompt": "2 + 3 =", "completion": f" {n}"} for n in (5, 6)], tokenizer)
        >>> [len(runs) for runs in two.spans(2)]  # the prompt, the answer
        [2, 2]
        """
        return map(self.runs_of, itertools.islice(self.encoded(), limit))

    def runs_of(self, encoded: Encoded) -> list[tuple[str, bool]]:
        """The decoded runs of one record, ``encoded``, each with whether it counts.

        >>> runs = corpus.runs_of(next(corpus.encoded()))
        >>> [counted for text, counted in runs]
        [False, True, False]
        """
        counted = encoded.counted(self.count)
        changes = np.flatnonzero(counted[1:] != counted[:-1]) + 1
        edges = [0, *sorted({*changes.tolist(), *filter(None, [encoded.source])}), len(counted)]
        return [
            (str(self.tokenizer.decode(encoded.input_ids[start:end].tolist())), bool(counted[start]))
            for start, end in itertools.pairwise(edges)
        ]

    def _checked(self, result: Encoded | ActError) -> Encoded | ActError:
        if isinstance(result, ActError):
            return result
        if result.unanswered and self.count in ("answer", "predict"):
            return ActError(f"{result.unanswered}; add one{count_prompts()}")
        length = max(result.source, len(result.input_ids) - result.source)
        text = result.answer[len(self.encoder.lead) : len(result.answer) - len(self.encoder.trail)]
        if length <= self.max_length or (text.all() and not (result.source or result.beside)):  # a text to be cut
            return result
        return ActError(
            f"the record has {length} tokens and the limit is {self.max_length}; raise the maximum length "
            f"({option('--max-length', 'max_length')}), or shorten the record"
        )


def _mapped(source: Source, columns: Mapping[str, str] | None, labels: str | None) -> Source:
    return Mapped(source, columns, labels) if columns else source


def count_prompts() -> str:
    """The end of a message about records that have no answers: their prompts may be what counts."""
    asked = option("--count prompt", "count='prompt'")
    return f", or count the tokens of prompts ({asked}, or all)"


@functools.cache  # once, however many models are evaluated
def _warn_beyond(length: int, trained: int) -> None:
    log.warning(
        "the maximum length is %s tokens, and the model's configuration has %s positions; what it computes beyond them "
        "is not what it was trained for (%s)",
        f"{length:,}",
        f"{trained:,}",
        option(f"--max-length {trained}", f"max_length={trained}"),
    )


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        seen = isinstance(entry.record, Mapping) and column_of(entry.record)
        size += max(entry.size, CHUNK_BYTES // IMAGES_IN_CHUNK if seen else 0)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def skipping() -> str:
    """How an error ends where bad records may be left out: in a run, and in all commands that read whole texts."""
    return f"; leave up to N bad records out ({option('--skip-bad-records N', 'skip_bad_records=N')})"


def require_corpus(what: str, given: object) -> None:
    """Raise :class:`ActError` unless ``given`` is one corpus; ``what`` names it in the message."""
    require_type(what, given, Corpus, "an act.Corpus; make one with from_file or from_records")

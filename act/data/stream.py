"""The batches of one pass over named corpora, in an order that depends only on corpora and settings."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from act.core.errors import ActError, BadRecord, option
from act.core.near import meant
from act.core.plain import Natural, checked
from act.data.batching import (
    BEGINNING,
    LOOK_AHEAD,
    LOOK_AHEAD_BYTES,
    LOOK_AHEAD_TOKENS,
    PADDING,
    Batch,
    Position,
    Sequence,
    Shift,
    batches,
)
from act.data.columns import names_in
from act.data.corpus import CHUNK, Corpus, skipping
from act.data.encoded import Count, Encoded
from act.data.mapped import Mapped
from act.data.prefixes import Group, grouped
from act.data.records import Shard

log = logging.getLogger(__name__)


class Skipped(NamedTuple):
    """A bad record that a run skipped."""

    ability: str
    record: Natural
    place: str
    reason: str


FIRST = 8
"""Records of each corpus that are encoded before any batch is made."""

_SKIPPED, _STOPPED = TypeAdapter(list[Skipped]), TypeAdapter(set[str])


class Stream:
    """The batches of one pass over named corpora, one corpus after the other.

    The same corpora and settings give the same batches.

    A window holds :data:`act.data.batching.LOOK_AHEAD` records of one corpus (fewer if they are long), so no document
    is in two windows. Windows begin at multiples of that number, so several readers can divide among themselves the
    windows that one reader would see.

    Args:
        corpora: by ability; the name of a single corpus may be empty.
        token_budget: tokens per batch, padding included.
        packing: put several pieces in one row, without padding (see :class:`act.data.batching.Batch`).
        shard: ``(i, n)``: every n-th record of each corpus, starting with the i-th.
        workers: processes that tokenise; 0: this one.
        skip_bad_records: how many bad records to skip before giving up.
        look_ahead: records per window.
        windows: ``(i, n)``: of the shard's windows, every n-th, starting with the i-th.
        start: where to begin.
        part: the corpora are parts of larger ones, so it is no error if nothing in them counts.
        shift: what a decoder beside an encoder reads to write labels.
        share: let rows that begin alike share what they begin with (see :mod:`act.data.prefixes`).

    Attributes:
        skipped: the bad records skipped so far.
        stopped: abilities that are not read any further; may be added to at any time.

    Raises:
        ActError: during iteration, for a malformed record or a corpus in which nothing counts.
    """

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        *,
        token_budget: int,
        packing: bool = False,
        shard: Shard = (0, 1),
        workers: int = 0,
        skip_bad_records: int = 0,
        look_ahead: int = LOOK_AHEAD,
        windows: Shard = (0, 1),
        start: Position = BEGINNING,
        part: bool = False,
        shift: Shift | None = None,
        share: bool = False,
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
        self.skipped: list[Skipped] = []
        self.stopped: set[str] = set()
        self._token_budget, self._packing, self._workers = token_budget, packing, workers
        self._skip_bad_records, self._look_ahead = skip_bad_records, look_ahead
        self._shift, self._share = shift, share
        self._part = part or shard[1] > 1 or windows[1] > 1

    def start_at(self, position: Position) -> None:
        """Begin the next iteration at ``position``; forget records skipped after it, which will be read again."""
        order = {ability: number for number, ability in enumerate(self.corpora)}
        self.start = position
        self.skipped[:] = [each for each in self.skipped if (order[each.ability], each.record) < position[:2]]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, except the position, which only the reader of the batches knows."""
        return {"skipped": list(self.skipped), "stopped": sorted(self.stopped)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned; then call :meth:`start_at`. Raises ValueError for other data."""
        skipped, stopped = checked(_SKIPPED, state["skipped"]), checked(_STOPPED, state["stopped"])
        self.skipped[:], self.stopped = skipped, stopped

    def __iter__(self) -> Iterator[Batch]:
        for number, (ability, corpus) in enumerate(self.corpora.items()):
            if number >= self.start.corpus and ability not in self.stopped:
                start = self.start if number == self.start.corpus else Position(number)
                yield from self._of(corpus, ability, start)

    def _of(self, corpus: Corpus, ability: str, start: Position) -> Iterator[Batch]:
        counted = start != Position(start.corpus)  # after a resume, what was counted before is unknown here
        for first, following, window in self._windows(corpus, ability, start.record):
            made = list(self._batches(window))
            for number, batch in enumerate(made, 1):
                counted = counted or batch.counted > 0
                if first == start.record and number <= start.batch:
                    continue
                done = (
                    Position(start.corpus, first, number) if number < len(made) else Position(start.corpus, following)
                )
                yield replace(batch, after=done)
            if ability in self.stopped:
                return
        if not counted and not self._part:
            raise ActError(nothing_counted(corpus.name, count=corpus.count))

    def _batches(self, window: list[Sequence]) -> Iterator[Batch]:
        groups = grouped(window, self._token_budget) if self._share else [Group(window)]
        for group in groups:
            opened = group.opened
            for batch in batches(
                group.sequences, self._token_budget, PADDING, self._packing, self._shift, group.shared
            ):
                yield replace(batch, opened=opened)
                opened = 0

    def _windows(self, corpus: Corpus, ability: str, start: int) -> Iterator[tuple[int, int, list[Sequence]]]:
        """Windows, each with the number of its first record and of the first record after it."""
        window: list[Sequence] = []
        records = tokens = size = 0
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
                size += sum(array.nbytes for array in result.beside.values())
            full = tokens >= LOOK_AHEAD_TOKENS or size >= LOOK_AHEAD_BYTES
            if full or block(entry.number + self.shard[1]) != block(entry.number):
                yield start, following, window
                start, window, records, tokens, size = following, [], 0, 0, 0
        if records:
            yield start, following, window

    def _skip(self, skipped: Skipped) -> None:
        self.skipped.append(skipped)
        require_few(self.skipped, self._skip_bad_records)


def require_first(corpora: Mapping[str, Corpus], shard: Shard = (0, 1), skip_bad_records: int | None = None) -> None:
    """Raise :class:`BadRecord` where the first records of all corpora hold more bad ones than may be skipped.

    A text that does not fit the tokenizer, such as conversations without a chat template, is found before hours are
    spent on the texts before it.

    Args:
        corpora, shard: as for :class:`Stream`.
        skip_bad_records: as for :class:`Stream`; None: what reads them skips none.
    """
    skipped: list[Skipped] = []
    for ability, corpus in corpora.items():
        found = corpus.first(FIRST, shard)
        bad = [Skipped(ability, entry.number, entry.place, str(it)) for entry, it in found if isinstance(it, ActError)]
        skipped += bad
        if bad and len(skipped) > (skip_bad_records or 0):
            alike = len(bad) == len(found) and len({each.reason for each in bad}) == 1
            if skip_bad_records is None or alike:  # not the fault of a record, and the next is no better
                raise BadRecord(f"{bad[0].place}: {bad[0].reason}")
            require_few(skipped, skip_bad_records)


def warn_of_ignored(corpora: Mapping[str, Corpus]) -> None:
    """Warn of columns to ignore that none of the first records of all these texts has, which may be misspelt."""
    wanted = {name for corpus in corpora.values() for name in corpus.encoder.ignore_columns}
    if not wanted:
        return
    known: dict[str, None] = {}
    for corpus in corpora.values():
        source = corpus.source.unmapped if isinstance(corpus.source, Mapped) else corpus.source
        for entry in itertools.islice(source.read(), CHUNK):
            if isinstance(entry.record, Mapping):
                known |= dict.fromkeys(names_in(entry.record))
    for name in sorted(wanted.difference(known)):
        _warn_of_unknown(name, tuple(known))


@functools.cache  # once, however often it is looked at
def _warn_of_unknown(name: str, known: tuple[str, ...]) -> None:
    log.warning(
        "%s %s: none of the first %s records of a text has such a column, or key of a message; there is %s%s",
        *(option("--ignore-columns", "ignore_columns"), name, CHUNK, ", ".join(known), meant(name, known)),
    )


def require_counted(
    corpora: Mapping[str, Corpus], shard: Shard = (0, 1), skip_bad_records: int = 0, *, predicted: bool = False
) -> None:
    """As :func:`require_first`; and raise :class:`ActError` for a text in which no token counts.

    Each text is read as far as its first record with a token that counts. Of a shard, nothing has to count.

    Args:
        corpora, shard, skip_bad_records: as for :class:`Stream`.
        predicted: a token counts only if there is one before it, which predicts it.
    """
    require_first(corpora, shard, skip_bad_records)
    for ability, corpus in corpora.items() if shard[1] == 1 else ():
        if corpus.count == "prompt" and _only_special(corpus):
            _warn_of_no_prompt(corpus.name)
        bad: list[Skipped] = []
        seen = False
        for sequence in _good(corpus, ability, bad):
            seen = seen or bool(sequence.count_mask.any())
            if sequence.count_mask[_places(corpus, predicted)].any():
                break
        else:
            require_few(bad, skip_bad_records)
            raise ActError(nothing_predicted(corpus.name) if seen else nothing_counted(corpus.name, bad, corpus.count))


def _good(corpus: Corpus, ability: str, bad: list[Skipped]) -> Iterator[Sequence]:
    """The sequences of the good records of a corpus, few of which are read ahead; the others are added to ``bad``."""
    for entry, result in itertools.chain(corpus.first(FIRST), corpus.numbered(FIRST)):
        if isinstance(result, ActError):
            bad.append(Skipped(ability, entry.number, entry.place, str(result)))
        else:
            yield from corpus.pieces_of(result, entry.number)


def _only_special(corpus: Corpus) -> bool:
    """Whether nothing but special tokens stands before the answers of the first records."""
    special = corpus.tokenizer.all_special_ids
    found = [result for _, result in corpus.first(FIRST) if isinstance(result, Encoded)]
    return all(np.isin(each.input_ids[each.counted("prompt")], special).all() for each in found)


@functools.cache  # once, however often it is looked at
def _warn_of_no_prompt(name: str) -> None:
    log.warning(
        "%s: its first records are all answer, as plain text is, so of a prompt nothing but special tokens counts; "
        "to measure the text itself, use %s",
        *(name, option("--count answer", 'count="answer"')),
    )


def _places(corpus: Corpus, predicted: bool) -> slice:
    """Where in a sequence a token can count: if it has to be predicted, not where none comes before it."""
    if not predicted:
        return slice(None)
    return slice(None, -1) if corpus.count == "predict" else slice(1, None)


def require_few(skipped: list[Skipped], allowed: int) -> None:
    """Raise :class:`BadRecord` for the first skipped record that exceeds the ``allowed`` number."""
    if len(skipped) <= allowed:
        return
    over = skipped[allowed]
    after = f" (after {allowed} others that were skipped)" if allowed else ""
    total = f"; there are at least {len(skipped)} bad records" if len(skipped) > allowed + 1 else ""
    raise BadRecord(f"{over.place}: {over.reason}{after}{total}{skipping()}")


def nothing_counted(name: str, bad: Collection[Skipped] = (), count: Count = "answer") -> str:
    """The error message for an ability or corpus in which no token was counted; ``bad``: its bad records."""
    first = next(iter(bad), None)
    why = f"its bad records aside ({first.place}: {first.reason}), it" if first else "it"
    lack = "are all answer, as plain text is, and a prompt was to count" if count == "prompt" else "have no answer"
    return f"{name or 'the corpus'}: no token was counted; {why} is empty or its records {lack}"


def nothing_predicted(name: str) -> str:
    """The error message for a corpus of which no counted token can be predicted."""
    return f"{name or 'the corpus'}: no counted token has another before it that could predict it; give longer records"

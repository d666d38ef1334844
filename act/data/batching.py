"""Batches of one ability, filled to a token budget from windows of records sorted by length."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from act.core.errors import ActError
from act.core.plain import Natural

LOOK_AHEAD = 2048  # records sorted together: a few percent of padding, a few megabytes of memory
LOOK_AHEAD_TOKENS = 1 << 21  # ends a window of long records early
LOOK_AHEAD_BYTES = 1 << 28  # of images: ends a window early, too
PADDING = 0  # any id that the vocabulary has: the attention mask hides it; a tokenizer's own may have no embedding
ATTENDED = 16  # keys of a batch behind a prefix, in token budgets: each layer makes a copy of them for every row
NO_LABEL = -100  # what models of transformers take for padding in labels
PREFETCHED = 4  # batches prepared ahead of the model

T = TypeVar("T")


@dataclass(frozen=True)
class Sequence:
    """A piece of a document.

    Attributes:
        input_ids: int32 ``[length]``.
        count_mask: bool ``[length]``: the tokens that count.
        document: number of the record.
        ability: the ability that the record exercises; empty if it has no name.
        first: whether this is the first piece of its document.
        source: how many tokens at the beginning an encoder reads, for the decoder that is to write the others; its
            count mask is of what it reads: each of them a place later.
        images: how many images stand in it.
        beside: what a processor gives for them, by argument of the model: ``[1, length, …]``, or anything else with a
            first dimension along which that of several sequences is put together.
    """

    input_ids: np.ndarray
    count_mask: np.ndarray
    document: int = 0
    ability: str = ""
    first: bool = True
    source: int = 0
    images: int = 0
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> tuple[int, int]:
        """Numbers of tokens of the source and of the rest."""
        return self.source, len(self) - self.source


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of text that several sequences share.

    Attributes:
        input_ids: int32 ``[length]``.
        count_mask: bool ``[length]``: the tokens that count, once for each sequence.
    """

    input_ids: np.ndarray
    count_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


class Position(NamedTuple):
    """How far a run has read: ``batch`` batches of the window that begins at ``record`` of the ``corpus``-th corpus."""

    corpus: Natural = 0
    record: Natural = 0
    batch: Natural = 0


BEGINNING = Position()


@dataclass(frozen=True)
class Batch:
    """Rows of one ability.

    Attributes:
        inputs: the arguments of the model: ``input_ids`` and ``attention_mask``, int64 ``[batch, length]``; if packed,
            ``input_ids`` and ``position_ids``, which restart at 0 in each piece, int64 ``[1, length]``; for an encoder
            and a decoder, both masks and ids of each, ``[batch, source]`` and (``decoder_…``) ``[batch, length]``.
        count_mask: bool ``[batch, length]`` on the CPU: the tokens that count, none of them padding.
        ability: the ability that the rows exercise; empty if it has no name.
        documents: record numbers, int64 ``[pieces]``, in the order of the rows, or of the pieces in a packed row.
        records: how many of those documents begin in this batch.
        after: the position in the corpora once this batch is done; None outside a corpus.
        source_mask: bool ``[batch, source]`` on the CPU: those of what an encoder reads beside a decoder.
        images: how many images it has.
        beside: what a processor gives for them, row by row (see :class:`Sequence`); empty without images.
        shared: what all rows begin with, piece by piece; the inputs and the count mask are of the rest.
        opened: how many tokens of ``shared`` no batch before this one has begun with.
    """

    inputs: dict[str, torch.Tensor]
    count_mask: torch.Tensor
    ability: str = ""
    documents: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    records: int = 0
    after: Position | None = None
    source_mask: torch.Tensor | None = None
    images: int = 0
    beside: tuple[Mapping[str, np.ndarray], ...] = ()
    shared: tuple[Segment, ...] = ()
    opened: int = 0

    def arguments(self) -> dict[str, torch.Tensor]:
        """All arguments of the model: what a processor gave for each row is put together here."""
        names = self.beside[0] if self.beside else ()
        together = {name: np.concatenate([row[name] for row in self.beside]) for name in names}
        return {**self.inputs, **{name: torch.from_numpy(x) for name, x in together.items()}}

    @property
    def packed(self) -> bool:
        """Whether the pieces share one row, separated by their ``position_ids``."""
        return "attention_mask" not in self.inputs and "position_ids" in self.inputs and len(self.count_mask) == 1

    @property
    def size(self) -> int:
        """Number of tokens, padding included, without those that the rows share."""
        return sum(mask.numel() for mask in self.masks)

    @property
    def tokens(self) -> int:
        """Number of tokens without padding, those that the rows share once for each row."""
        return self._own + len(self.count_mask) * sum(map(len, self.shared))

    @property
    def padding(self) -> int:
        """Number of padding tokens."""
        return self.size - self._own

    @property
    def spared(self) -> int:
        """How many of the tokens need not be computed, because the rows share them."""
        return self.tokens - self._own - self.opened

    @property
    def _own(self) -> int:
        texts = {"attention_mask": self.count_mask}
        if self.source_mask is not None:
            texts = {"attention_mask": self.source_mask, "decoder_attention_mask": self.count_mask}
        return sum(int(self.inputs[name].sum()) if name in self.inputs else x.numel() for name, x in texts.items())

    @property
    def masks(self) -> tuple[torch.Tensor, ...]:
        """The count mask, and that of a source if there is one."""
        return (self.count_mask,) if self.source_mask is None else (self.count_mask, self.source_mask)

    @property
    def counted(self) -> int:
        """Number of tokens that count, those that the rows share once for each row."""
        shared = sum(int(segment.count_mask.sum()) for segment in self.shared)
        return sum(int(mask.sum()) for mask in self.masks) + len(self.count_mask) * shared

    @property
    def padded_right(self) -> bool:
        """Whether all padding is on the right of the rows."""
        attended = self.inputs.get("attention_mask")
        if attended is None or attended.shape != self.count_mask.shape or not attended.numel():
            return False
        return bool(attended[:, 0].all() and (attended[:, 1:] <= attended[:, :-1]).all())

    def pinned(self) -> Batch:
        """A copy in page-locked memory, from which a GPU copies asynchronously."""
        inputs = {name: x.pin_memory() for name, x in self.inputs.items()}
        source = None if self.source_mask is None else self.source_mask.pin_memory()
        return replace(self, inputs=inputs, count_mask=self.count_mask.pin_memory(), source_mask=source)

    def halves(self) -> tuple[Batch, Batch] | None:
        """Two batches with about half the tokens each; None if there is only one piece."""
        if self.packed:
            starts = (self.inputs["position_ids"][0] == 0).nonzero().flatten().tolist()[1:]
            middle = min(starts, key=lambda start: abs(2 * start - self.size), default=None)
            if middle is None:
                return None
            pieces = starts.index(middle) + 1
            cuts: Any = [(..., slice(None, middle)), (..., slice(middle, None))]
        else:
            if len(self.count_mask) < 2:
                return None
            pieces = len(self.count_mask) // 2
            cuts = [slice(None, pieces), slice(pieces, None)]
        first, second = (
            replace(
                self,
                inputs={name: x[part] for name, x in self.inputs.items()},
                count_mask=self.count_mask[part],
                source_mask=None if self.source_mask is None else self.source_mask[part],
                documents=documents,
                records=0,
                beside=beside,
            )
            for part, documents, beside in zip(
                cuts,
                (self.documents[:pieces], self.documents[pieces:]),
                (self.beside[:pieces], self.beside[pieces:]),
                strict=True,
            )
        )
        return first, second


def given_batches(batch: Mapping[str, Any]) -> Iterator[Batch]:
    """Turn a user's batch into one :class:`Batch`, or into one per ability if the batch names abilities.

    Args:
        batch: a dict of ``input_ids`` (integers ``[batch, length]``) and optionally ``attention_mask`` and
            ``count_mask`` (``[batch, length]``), ``ability`` (``[batch]``), and other inputs of the model
            (``[batch, …]``). Without a ``count_mask``, every attended token counts. For an encoder and a decoder these
            are of the source, and ``decoder_input_ids``, ``decoder_attention_mask`` and ``decoder_count_mask``
            (``[batch, length]``) are what the decoder reads.

    Raises:
        ActError: the batch is not a dict; ``input_ids`` are missing or not integers; a mask has another shape; there
            are more or fewer abilities than rows.
    """
    _require_batch(batch)
    inputs = {name: x for name, x in batch.items() if name not in (*COUNT_MASKS, "ability")}
    source_mask = None
    count_mask = _counted(batch, "")
    if "decoder_input_ids" in batch:
        source_mask, count_mask = count_mask, _counted(batch, "decoder_")
    if "ability" not in batch:
        yield Batch(inputs, count_mask, records=len(count_mask), source_mask=source_mask)
        return
    labels = [
        str(label) for label in (batch["ability"].tolist() if hasattr(batch["ability"], "tolist") else batch["ability"])
    ]
    if len(labels) != len(count_mask):
        raise ActError(
            f"ability names {len(labels)} rows and the batch has {len(count_mask)}; expected one ability per row"
        )
    for ability in sorted(set(labels)):
        rows = torch.tensor([label == ability for label in labels], device=count_mask.device)
        part = {name: x[rows] for name, x in inputs.items()}
        source = None if source_mask is None else source_mask[rows]
        yield Batch(part, count_mask[rows], ability, records=int(rows.sum()), source_mask=source)


COUNT_MASKS = ("count_mask", "decoder_count_mask")


def _counted(batch: Mapping[str, Any], side: str) -> torch.Tensor:
    """The tokens that count on one side, those of the ids that begin with this word."""
    ids = batch[f"{side}input_ids"]
    attended: torch.Tensor = batch.get(f"{side}attention_mask", torch.ones_like(ids)).bool()
    return batch[f"{side}count_mask"].bool() & attended if f"{side}count_mask" in batch else attended


def _require_batch(batch: Any) -> None:
    if isinstance(batch, str):
        raise ActError(
            "a batch is a text; expected a dict of tensors; texts are records of a corpus: "
            'act.Corpus.from_records([{"text": …}], tokenizer)'
        )
    if not isinstance(batch, Mapping):
        raise ActError(f"a batch is of type {type(batch).__name__}; expected a dict of tensors, including input_ids")
    if "input_ids" not in batch:
        held = ", ".join(map(str, batch)) or "nothing"
        raise ActError(f"a batch has no input_ids, only {held}; give the token ids as integers [batch, length]")
    for side in ("", "decoder_") if "decoder_input_ids" in batch else ("",):
        _require_side(batch, side)
    if "decoder_input_ids" in batch and len(batch["decoder_input_ids"]) != len(batch["input_ids"]):
        raise ActError(
            f"a batch has {len(batch['input_ids'])} rows of input_ids and {len(batch['decoder_input_ids'])} of "
            "decoder_input_ids; expected one for each"
        )


def _require_side(batch: Mapping[str, Any], side: str) -> None:
    ids_name, *masks = (f"{side}{name}" for name in ("input_ids", "attention_mask", "count_mask"))
    for name in (ids_name, *masks):
        if name in batch and not isinstance(batch[name], torch.Tensor):
            raise ActError(
                f"{name} of a batch is of type {type(batch[name]).__name__}; expected a tensor [batch, length]"
            )
    ids = batch[ids_name]
    if ids.dim() != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ActError(f"{ids_name} of a batch are {ids.dtype} {list(ids.shape)}; expected integers [batch, length]")
    for name in masks:
        if name in batch and batch[name].shape != ids.shape:
            raise ActError(
                f"{name} of a batch has the shape {list(batch[name].shape)}; expected {list(ids.shape)}, the shape of "
                f"its {ids_name}"
            )


def pieces(
    ids: np.ndarray, count_mask: np.ndarray, max_length: int, overlap: int, document: int = 0, ability: str = ""
) -> Iterator[Sequence]:
    """Cut a document into sequences of at most ``max_length`` tokens.

    Each piece but the first repeats the last ``overlap`` tokens of the one before it, as context only: every position
    counts in exactly one piece.
    """
    start = 0
    while True:
        end = start + max_length
        mask = count_mask[start:end].copy()
        mask[: overlap if start else 0] = False
        yield Sequence(ids[start:end], mask, document, ability, start == 0)
        if end >= len(ids):
            return
        start = end - overlap


Shift = Callable[[torch.Tensor], torch.Tensor]
"""What a decoder reads to write labels (see :func:`act.models.calls.decoder_inputs`)."""


def batches(
    window: Iterable[Sequence],
    token_budget: int,
    pad_id: int,
    packing: bool = False,
    shift: Shift | None = None,
    shared: tuple[Segment, ...] = (),
) -> Iterator[Batch]:
    """The sequences of a window in batches of one ability and at most ``token_budget`` tokens, padding included.

    The longest come first, so that a budget too large for the memory fails at once. A sequence longer than the budget
    gets a separate batch. The order depends only on abilities, lengths and record numbers. ``shift`` is for sequences
    with a source, ``shared`` what all sequences begin with, which they do not hold themselves. Sequences whose images
    have other sizes, or that have none, are in other batches, so that no image is padded; those with images are not
    packed.
    """
    before = sum(map(len, shared))
    packing = packing and not shared
    ordered = sorted(
        window,
        key=lambda each: (_group(each), -len(each), *(-size for size in each.lengths), each.document),
    )
    while ordered:
        packed = packing and not ordered[0].beside
        end = _full(ordered, token_budget, packed, before)
        rows = ordered[:end]
        batch = _two_sided(rows, pad_id, shift) if rows[0].source else (_pack if packed else _pad)(rows, pad_id)
        yield replace(batch, shared=shared)
        del ordered[:end]


def _group(sequence: Sequence) -> tuple[str, list[tuple[str, tuple[int, ...]]]]:
    """What the sequences of a batch have in common: the ability, and the sizes of what a processor gave for each."""
    sizes = ((name, x.shape[2 if _by_token(x, sequence) else 1 :]) for name, x in sequence.beside.items())
    return sequence.ability, sorted(sizes)


def _by_token(array: np.ndarray, sequence: Sequence) -> bool:
    """Whether an array has a value for each token of a sequence."""
    return array.shape[:2] == (1, len(sequence))


def _full(ordered: list[Sequence], token_budget: int, packing: bool, before: int) -> int:
    """How many sequences from the front fill one batch, if ``before`` tokens stand in front of each."""
    tokens, longest = 0, (0, 0)
    for number, sequence in enumerate(ordered):
        longest = max(longest[0], sequence.lengths[0]), max(longest[1], sequence.lengths[1])
        tokens = tokens + len(sequence) if packing else (number + 1) * sum(longest)
        attended = (number + 1) * (before + sum(longest)) if before else 0
        full = tokens > token_budget or attended > ATTENDED * token_budget
        if number and (full or _group(sequence) != _group(ordered[0])):
            return number
    return len(ordered)


def _pad(sequences: list[Sequence], pad_id: int) -> Batch:
    rows = [(sequence.input_ids, sequence.count_mask) for sequence in sequences]
    ids, attended, count_mask = _padded(rows, pad_id)
    batch = _batch(sequences, {"input_ids": ids, "attention_mask": attended}, count_mask)
    if not sequences[0].beside:
        return batch
    beside = tuple(_lengthened(sequence, ids.shape[1]) for sequence in sequences)
    return replace(batch, images=sum(sequence.images for sequence in sequences), beside=beside)


def _lengthened(sequence: Sequence, length: int) -> dict[str, np.ndarray]:
    """What a processor gave for a sequence, with zeros for its padding where there is a value for each token."""
    more = length - len(sequence)
    return {
        name: np.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)]) if _by_token(x, sequence) else x
        for name, x in sequence.beside.items()
    }


def _two_sided(sequences: list[Sequence], pad_id: int, shift: Shift | None) -> Batch:
    if shift is None:
        raise ValueError("sequences with a source need to know how a decoder reads")
    parts = [slice(None, sequence.source) for sequence in sequences]
    ids, attended, source_mask = _padded(
        [(each.input_ids[part], each.count_mask[part]) for each, part in zip(sequences, parts, strict=True)], pad_id
    )
    parts = [slice(sequence.source, None) for sequence in sequences]
    labels, written, count_mask = _padded(
        [(each.input_ids[part], each.count_mask[part]) for each, part in zip(sequences, parts, strict=True)], NO_LABEL
    )
    inputs = {"input_ids": ids, "attention_mask": attended, "decoder_attention_mask": written}
    batch = _batch(sequences, inputs, count_mask)
    batch.inputs["decoder_input_ids"] = shift(torch.from_numpy(labels))
    return replace(batch, source_mask=torch.from_numpy(source_mask))


def _padded(rows: list[tuple[np.ndarray, np.ndarray]], pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and count masks, padded on the right, and between them where there is no padding."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
    padded, attended = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    count_mask = np.zeros(shape, dtype=bool)
    for row, (ids, counted) in enumerate(rows):
        padded[row, : len(ids)] = ids
        attended[row, : len(ids)] = 1
        count_mask[row, : len(ids)] = counted
    return padded, attended, count_mask


def _pack(sequences: list[Sequence], pad_id: int) -> Batch:
    ids = np.concatenate([sequence.input_ids for sequence in sequences]).astype(np.int64)
    places = np.concatenate([np.arange(len(sequence)) for sequence in sequences])
    count_mask = np.concatenate([sequence.count_mask for sequence in sequences])
    return _batch(sequences, {"input_ids": ids[None], "position_ids": places[None]}, count_mask[None])


def _batch(sequences: list[Sequence], inputs: dict[str, np.ndarray], count_mask: np.ndarray) -> Batch:
    return Batch(
        {name: torch.from_numpy(x) for name, x in inputs.items()},
        torch.from_numpy(count_mask),
        sequences[0].ability,
        np.asarray([sequence.document for sequence in sequences], dtype=np.int64),
        sum(sequence.first for sequence in sequences),
    )


def prefetched(
    items: Iterable[T], prepare: Callable[[T], T] = lambda item: item, ahead: int = PREFETCHED
) -> Iterator[T]:
    """The items in order, made and prepared by a thread that runs at most ``ahead`` items in advance."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(ahead)
    closed = threading.Event()

    def put(kind: str, item: Any) -> bool:
        while not closed.is_set():
            try:
                ready.put((kind, item), timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put("item", prepare(item)):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=produce, name="act-batches", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        closed.set()
        thread.join()

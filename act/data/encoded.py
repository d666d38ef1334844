"""A record as tokens, which of them are its answer, and which of them count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from act.core.errors import ActError
from act.data.records import Record

Count = Literal["answer", "predict", "all", "prompt"]
"""Counted positions: of answer tokens (as in the paper), of tokens that predict an answer token, all, or the rest."""


LARGEST_ID = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Encoded:
    """One record as tokens.

    Attributes:
        input_ids: int32 ``[length]``.
        answer: bool ``[length]``: the tokens that are its answer.
        ability: its label, if the records are labelled.
        source: how many tokens at the beginning an encoder reads, for the decoder that writes the others; 0: there is
            one text.
        images: how many images the record has.
        beside: what a processor gives for them beside the tokens, by argument of the model.
        unanswered: of a prompt alone, the sentence that says so; none of its tokens is an answer.
    """

    input_ids: np.ndarray
    answer: np.ndarray
    ability: str | None = None
    source: int = 0
    images: int = 0
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)
    unanswered: str = ""

    def counted(self, count: Count) -> np.ndarray:
        """The positions that count, bool ``[length]``; of a source, all do, since it is read for the answer."""
        if self.source:
            read = np.arange(len(self.answer)) < self.source
            return read | (np.ones_like(read) if count == "all" else self.answer & (count != "prompt"))
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


def mask_of_ids(record: Record) -> list[bool] | None:
    """The mask that other columns of tokenised records hold; None if all tokens count.

    Raises:
        ActError: some tokens are padding.
    """
    attended, labels = record.get("attention_mask"), record.get("labels")
    if isinstance(attended, list) and not all(attended):
        raise ActError("attention_mask says that some of the input_ids are padding; leave the padding out")
    if isinstance(labels, list):
        return [isinstance(label, int) and label >= 0 for label in labels]  # -100: not to be predicted
    return next((record[name] for name in ("completion_mask", "assistant_masks") if name in record), None)


def after(prefix: list[int], whole: list[int], advice: str) -> range:
    """The positions of ``whole`` after ``prefix``; ``whole`` must begin with ``prefix``."""
    require_beginning(prefix, whole, advice)
    if len(whole) == len(prefix):
        raise ActError("the record has no answer: prompt and whole record are the same tokens")
    return range(len(prefix), len(whole))


def require_beginning(prefix: list[int], whole: list[int], advice: str) -> None:
    """Raise an error that ends with ``advice`` unless ``whole`` begins with ``prefix``."""
    if whole[: len(prefix)] != prefix:
        at = next(i for i, (a, b) in enumerate(zip([*whole, None], prefix, strict=False)) if a != b)
        raise ActError(
            f"the prompt's {len(prefix)} tokens are not the beginning of the whole record's {len(whole)} "
            f"(they differ from token {at} on), so the answer cannot be separated; {advice}"
        )


def answered(ids: list[int], spans: Iterable[range]) -> Encoded:
    """Tokens of which those at these positions are answers."""
    answer = np.zeros(len(ids), dtype=bool)
    for span in spans:
        answer[span.start : span.stop] = True
    return Encoded(np.asarray(ids, dtype=np.int32), answer)


def masked(ids: Any, mask: Any) -> Encoded:
    """Tokens and the mask of the answer as a record gives them; without a mask, all are answer.

    Raises:
        ActError: one is no list, has a value that it cannot have, or they differ in length.
    """
    if not (isinstance(ids, list) and ids):
        raise ActError(f"input_ids must be a list of token ids, got {ids!r:.60}")
    for token in ids:
        if not (isinstance(token, int) and 0 <= token <= LARGEST_ID):
            raise ActError(f"input_ids must be a list of token ids, from 0 to {LARGEST_ID}, got {token!r:.60} in it")
    if mask is None:
        mask = [1] * len(ids)
    require_mask(mask, len(ids), "tokens")
    return Encoded(np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=bool))


def require_mask(mask: Any, length: int, what: str) -> None:
    """Raise an error unless ``mask`` has a 0 or 1 for each of the ``length`` tokens or messages."""
    if not isinstance(mask, list) or len(mask) != length:
        size = f"{len(mask)} entries" if isinstance(mask, list) else f"{mask!r:.60}"
        raise ActError(f"loss_mask must have one entry for each of the {length} {what}, got {size}")
    for entry in mask:
        if not (isinstance(entry, (bool, int, float)) and entry in (0, 1)):
            raise ActError(f"loss_mask must hold 0 (does not count) and 1 (counts), got {entry!r:.60} in it")

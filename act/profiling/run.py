"""A run: batches go through tapped models, each ability into moments of its own; observers look on between batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from act.core.errors import ActError
from act.data.batching import Batch, Position
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments, Place

log = logging.getLogger(__name__)


@dataclass
class Seen:
    """What a run has fed to the model so far.

    Attributes:
        tokens: without padding.
        counted: those of them that count.
        padding: tokens that pad.
        sequences: rows, or pieces of packed rows.
        records: records that begin in them.
    """

    tokens: int = 0
    counted: int = 0
    padding: int = 0
    sequences: int = 0
    records: int = 0

    def add(self, batch: Batch) -> None:
        """Count a batch in."""
        self.tokens += batch.tokens
        self.counted += int(batch.count_mask.sum())
        self.padding += batch.size - batch.tokens
        self.sequences += len(batch.documents) if batch.packed else len(batch.count_mask)
        self.records += batch.records

    def __add__(self, other: Seen) -> Seen:
        return Seen(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


class Tapped(Protocol):
    """One tapped model (:class:`act.taps.taps.Taps`), or two in lockstep (:class:`act.taps.lockstep.Lockstep`)."""

    moments: Moments

    def forward(self, inputs: Mapping[str, torch.Tensor], count_mask: torch.Tensor) -> None:
        """Run the model for its statistics."""
        ...


class Observer:
    """Looks on while a run goes; each method does nothing by default.

    An observer may call :meth:`Run.stop`, and may put other moments in the place of those in :attr:`Run.moments`, as
    long as they are back when the run ends.
    """

    def before_run(self, run: Run) -> None:
        """Called before the first batch, after a checkpoint was restored."""

    def after_batch(self, run: Run, batch: Batch) -> None:
        """Called when ``batch`` has been counted whole."""

    def after_run(self, run: Run) -> None:
        """Called when the run ended by itself or was stopped, not after an exception."""

    def settings(self) -> dict[str, Any]:
        """What of it decides which tokens count, as plain data: part of the settings of the job."""
        return {}

    def provenance(self, ability: str) -> dict[str, Any]:
        """What it has to say of an ability's profile, as plain data."""
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold for the observer to go on."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` gave."""


class Run:
    """Feeds batches and keeps one :class:`Moments` for each ability.

    Args:
        tapped: what runs; its moments are replaced by those of each batch's ability.
        space: the channel space.
        pair: whether donor and target run.
        device: where inputs go.
        places: where the moments lie, as :class:`act.profiles.moments.Moments` takes it; None: on ``device``.
        vocabulary: rows of the embedding; batches with larger token ids are refused.
        causal: whether the model needs no mask where padding is on the right (see :func:`act.models.limits.causal`).
        observers: called in this order.

    Attributes:
        moments, seen: by ability, in the order of their first batches.
        position: where the corpora stand after the last batch.
        seconds: time spent in :meth:`over`, also before a restored checkpoint.
        waited: the part of it in which the model waited for a batch.
        stopped: abilities that take no more batches.
        max_tokens: larger batches are cut; None until memory ran out once.
    """

    def __init__(
        self,
        tapped: Tapped,
        space: ChannelSpace,
        *,
        pair: bool = False,
        device: torch.device | str = "cpu",
        places: Place | Mapping[str, Place] = None,
        vocabulary: int | None = None,
        causal: bool = False,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.moments: dict[str, Moments] = {}
        self.seen: dict[str, Seen] = {}
        self.position: Position | None = None
        self.seconds = self.waited = 0.0
        self.stopped: set[str] = set()
        self.max_tokens: int | None = None
        self.space, self.pair = space, pair
        self.device = torch.device(device)
        self.observers = list(observers)
        self._tapped, self._vocabulary, self._causal = tapped, vocabulary, causal
        self._places = self.device if places is None else places
        self._before = [torch.empty_like(arena) for arena in self.empty_moments().arenas]
        self._ended = False

    @property
    def total(self) -> Seen:
        """Of all abilities together."""
        return sum(self.seen.values(), Seen())

    def empty_moments(self) -> Moments:
        """New moments of the kind and place that this run fills."""
        with torch.inference_mode(False):
            return Moments(self.space, pair=self.pair, device=self._places)

    def begin(self, ability: str) -> None:
        """Make room for an ability, if there is none yet."""
        if ability not in self.moments:
            self.moments[ability] = self.empty_moments()
            self.seen[ability] = Seen()

    def stop(self, ability: str | None = None) -> None:
        """Take no more batches of an ability; None: end after this batch."""
        if ability is None:
            self._ended = True
        else:
            self.stopped.add(ability)

    def over(self, batches: Iterable[Batch]) -> None:
        """Feed the batches until they end or the run is stopped.

        Raises:
            ActError: one sequence alone does not fit into memory; a token id that the model does not know.
        """
        for observer in self.observers:
            observer.before_run(self)
        before = self.seconds
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in self._awaited(batches):
                if batch.ability in self.stopped:
                    continue
                self.feed(batch)
                self.seconds = before + time.perf_counter() - start
                for observer in self.observers:
                    observer.after_batch(self, batch)
                if self._ended:
                    break
        self.seconds = before + time.perf_counter() - start
        for observer in self.observers:
            observer.after_run(self)

    def feed(self, batch: Batch) -> None:
        """Count one batch: whole, or not at all if this raises."""
        ids = batch.inputs["input_ids"]
        if self._vocabulary is not None and ids.numel() and int(ids.max()) >= self._vocabulary:
            raise ActError(
                f"the tokenizer gave token {int(ids.max())} and the model's embedding has {self._vocabulary} rows; "
                "use the tokenizer that belongs to the model"
            )
        self.begin(batch.ability)
        moments = self.moments[batch.ability]
        for copy, arena in zip(self._before, moments.arenas, strict=True):
            copy.copy_(arena)
        while True:
            try:
                for part in self._parts(batch):
                    self._forward(part, moments)
                break
            except BaseException as error:
                for copy, arena in zip(self._before, moments.arenas, strict=True):
                    arena.copy_(copy)
                if not _is_out_of_memory(error):
                    raise
            # Out of the handler, so that the error no longer holds the activations.
            self._back_off(batch)
        self.seen[batch.ability].add(batch)
        self.position = batch.after

    def _forward(self, batch: Batch, moments: Moments) -> None:
        unmasked = self._causal and batch.padded_right
        inputs = {
            name: x.to(self.device, non_blocking=True)
            for name, x in batch.inputs.items()
            if not (unmasked and name == "attention_mask")
        }
        self._tapped.moments = moments
        self._tapped.forward(inputs, batch.count_mask)

    def _parts(self, batch: Batch) -> list[Batch]:
        """The batch, cut until no part that can be cut has more than ``max_tokens``."""
        halves = batch.halves() if self.max_tokens is not None and batch.size > self.max_tokens else None
        return [batch] if halves is None else [part for half in halves for part in self._parts(half)]

    def _back_off(self, batch: Batch) -> None:
        """Lower ``max_tokens`` below the largest part that was tried."""
        largest = max(self._parts(batch), key=lambda part: part.size)
        halves = largest.halves()
        if halves is None:
            raise ActError(
                f"one sequence of {largest.size} tokens does not fit into the memory of {self.device}; "
                "lower the maximum length (--max-length), or use a device with more memory"
            )
        self.max_tokens = max(half.size for half in halves)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("out of memory; batches are cut to %d tokens from here on", self.max_tokens)

    def _awaited(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        stream = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(stream, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch raises its own class for GPUs, and a plain RuntimeError for the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )

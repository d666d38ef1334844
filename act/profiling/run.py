"""A run: feeds batches to tapped models, keeps moments per ability, and calls observers between batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter

from act.core.errors import ActError, option
from act.core.plain import Natural, Positive, Seconds, checked
from act.core.tensor_files import taken
from act.data.batching import Batch, Position
from act.models.channels import ChannelSpace
from act.models.limits import require_known_token
from act.models.prefix import Prefix
from act.profiles.moments import Moments, Place, blocks_of, require_moments
from act.profiling.observer import Observer
from act.profiling.prefixes import Prefixes
from act_kernels import STATISTICS

log = logging.getLogger(__name__)


@dataclass
class Seen:
    """How much a run has fed to the model so far.

    Attributes:
        tokens: number of tokens, without padding.
        counted: how many of them count.
        padding: number of padding tokens.
        sequences: number of rows, or of pieces in packed rows.
        records: number of records that begin in them.
        images: number of images that they have.
        shared: tokens that were not computed, because a sequence before them began with the same.
    """

    tokens: Natural = 0
    counted: Natural = 0
    padding: Natural = 0
    sequences: Natural = 0
    records: Natural = 0
    images: Natural = 0
    shared: Natural = 0

    def add(self, batch: Batch) -> None:
        """Add the figures of a batch."""
        self.tokens += batch.tokens
        self.counted += batch.counted
        self.padding += batch.padding
        self.shared += batch.spared
        self.sequences += len(batch.documents) if batch.packed else len(batch.count_mask)
        self.records += batch.records
        self.images += batch.images

    def __add__(self, other: Seen) -> Seen:
        return Seen(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class _State:
    """The plain part of :meth:`Run.state`."""

    position: Position | None
    seen: dict[str, Seen]
    seconds: Seconds
    waited: Seconds
    max_tokens: Positive | None


_STATE = TypeAdapter(_State)


class Tapped(Protocol):
    """One tapped model (:class:`act.taps.tapped.Taps`), or two in lockstep (:class:`act.taps.lockstep.Lockstep`)."""

    moments: Moments

    @property
    def space(self) -> ChannelSpace:
        """The channel space, with the layouts of its sites."""
        ...

    @property
    def unread(self) -> dict[str, str]:
        """Why sites that should be measured are not, by name."""
        ...

    @property
    def unswapped(self) -> dict[str, str]:
        """Why measured sites have no swapped output, by name, as far as that is known yet; empty if none is wanted."""
        ...

    @property
    def paths(self) -> dict[str, str]:
        """How each site is read, by its name."""
        ...

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        count_mask: torch.Tensor,
        source_mask: torch.Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        """Run the model on a batch behind a prefix and accumulate its statistics."""
        ...


class Run:
    """Feeds batches to tapped models and keeps one :class:`Moments` per ability.

    Args:
        tapped: the models; before each batch they get the moments of the ability of the batch.
        space: the channel space.
        pair: whether a donor and a target run.
        swap: whether the donor's modules are applied to the target's inputs, too.
        device: the device of the inputs.
        places: the devices of the moments (see :class:`act.profiles.moments.Moments`); None: ``device``.
        vocabulary: number of rows of the embedding; a token id beyond it is an error.
        causal: whether the model needs no mask if padding is on the right (see :func:`act.models.limits.causal`).
        observers: called between batches, in this order.

    Attributes:
        moments, seen: by ability, in the order of the first batches.
        position: the position in the corpora after the last batch; None before the first.
        seconds: time spent in :meth:`over`, including the time before a restored checkpoint.
        waited: seconds of it spent waiting for a batch.
        stopped: abilities that take no more batches.
        max_tokens: larger batches are split; None until memory has run out once.
    """

    def __init__(
        self,
        tapped: Tapped,
        space: ChannelSpace,
        *,
        pair: bool = False,
        swap: bool = False,
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
        self.space, self.pair, self.swap = space, pair, swap
        self.device = torch.device(device)
        self.observers = list(observers)
        self._tapped, self._vocabulary, self._causal = tapped, vocabulary, causal
        self._places = self.device if places is None else places
        self._prefixes = Prefixes(self._forward_prefix, Prefix.empty(2 if pair else 1), self.empty_moments)
        self._before = [torch.empty_like(arena) for arena in self.empty_moments().arenas]
        self._ended = False

    @property
    def unread(self) -> dict[str, str]:
        """Why sites that should be measured are not, by name."""
        return self._tapped.unread

    @property
    def total(self) -> Seen:
        """The sum over all abilities."""
        return sum(self.seen.values(), Seen())

    def empty_moments(self) -> Moments:
        """Empty moments of the same shape and devices as those of this run."""
        with torch.inference_mode(False):
            return Moments(self.space, pair=self.pair, swap=self.swap, device=self._places)

    def begin(self, ability: str) -> None:
        """Create the moments of an ability, unless they exist."""
        if ability not in self.moments:
            self.moments[ability] = self.empty_moments()
            self.seen[ability] = Seen()

    def stop(self, ability: str | None = None) -> None:
        """Take no more batches of an ability; None: end the whole run after this batch."""
        if ability is None:
            self._ended = True
        else:
            self.stopped.add(ability)

    def over(self, batches: Iterable[Batch]) -> None:
        """Feed the batches until they end or the run is stopped.

        Raises:
            ActError: a single sequence does not fit into memory; a token id is beyond the model's embedding.
        """
        for observer in self.observers:
            observer.before_run(self)
        before = self.seconds
        start = time.perf_counter()
        with torch.no_grad():  # not inference mode, in which nobody sees that a model changes a tensor in place
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
        """Count one batch completely, or none of it if this raises."""
        ids = batch.inputs["input_ids"]
        if ids.numel():
            require_known_token(int(ids.max()), self._vocabulary)
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
            # Outside the handler, because the error keeps the activations alive.
            self._back_off(batch)
        self.seen[batch.ability].add(batch)
        self.position = batch.after

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {
            "position": self.position,
            "seen": {ability: asdict(seen) for ability, seen in self.seen.items()},
            "seconds": self.seconds,
            "waited": self.waited,
            "max_tokens": self.max_tokens,
            **{f"moments.{ability}": moments.arena.cpu() for ability, moments in self.moments.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned; if this raises, the run is unchanged.

        Raises:
            ValueError: the state is of no run over this channel space.
        """
        plain = checked(_STATE, state)
        blocks = blocks_of(self.pair, self.swap)
        shape = (*((len(blocks),) if blocks else ()), len(STATISTICS), len(self.space))
        moments = {}
        with torch.inference_mode(False):
            for ability in plain.seen:
                arena = taken(state, f"moments.{ability}", (torch.float64,), shape)
                require_moments(arena)
                moments[ability] = self.empty_moments()
                moments[ability].fill(arena)
        self.seconds, self.waited, self.max_tokens = plain.seconds, plain.waited, plain.max_tokens
        self.position, self.seen, self.moments = plain.position, plain.seen, moments

    def _forward(self, batch: Batch, moments: Moments) -> None:
        unmasked = self._causal and batch.padded_right and not batch.beside  # tokens of an image see each other
        inputs = {
            name: x.to(self.device, non_blocking=True)
            for name, x in batch.arguments().items()
            if not (unmasked and name == "attention_mask")
        }
        prefix = self._prefixes.behind(batch.shared)
        self._tapped.moments = moments
        self._tapped.forward(inputs, batch.count_mask, batch.source_mask, prefix)
        self._prefixes.count(moments, len(batch.count_mask))

    def _forward_prefix(self, ids: torch.Tensor, mask: torch.Tensor, prefix: Prefix, moments: Moments) -> None:
        require_known_token(int(ids.max()), self._vocabulary)
        self._tapped.moments = moments
        self._tapped.forward({"input_ids": ids.to(self.device)}, mask, None, prefix)

    def _parts(self, batch: Batch) -> list[Batch]:
        """The batch, halved until each part has at most ``max_tokens`` tokens or cannot be halved."""
        halves = batch.halves() if self.max_tokens is not None and batch.size > self.max_tokens else None
        return [batch] if halves is None else [part for half in halves for part in self._parts(half)]

    def _back_off(self, batch: Batch) -> None:
        """Set ``max_tokens`` below the size of the largest part that was tried."""
        largest = max(self._parts(batch), key=lambda part: part.size)
        halves = largest.halves()
        if halves is None:
            tokens = largest.size + sum(map(len, largest.shared))
            raise ActError(
                f"one sequence of {tokens} tokens does not fit into the memory of {self.device}; "
                f"lower the maximum length ({option('--max-length', 'max_length')}), or use a device with more memory"
            )
        self.max_tokens = max(half.size for half in halves)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("out of memory; batches are split to %d tokens from here on", self.max_tokens)

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
    """Whether memory ran out: PyTorch raises OutOfMemoryError on GPUs, but a plain RuntimeError on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )

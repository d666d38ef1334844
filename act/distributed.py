"""Several processes, one run: ``torchrun`` starts them, each reads a shard of the corpus, their moments meet once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from act.corpus import Skipped
from act.errors import ActError
from act.records import Shard
from act.run import Run, Seen

T = TypeVar("T")

PATIENCE = timedelta(hours=24)  # that the first rank to end waits for the last; a rank that dies is noticed at once


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that ``torchrun`` started."""

    rank: int
    size: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def windows(self) -> Shard:
        """The windows of the corpus that this rank reads: the same windows, so the same batches, as one process's."""
        return self.rank, self.size

    def agreed(self, value: T) -> T:
        """The first rank's value, on every rank."""
        box: list[Any] = [value]
        with lost_rank():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        """Until every rank is here."""
        self.agreed(None)
        with lost_rank():
            dist.all_gather_object([None] * self.size, None)

    def reduce(self, run: Run, skipped: list[Skipped]) -> None:
        """Bring moments, counts and skipped records of all ranks together in the first one's.

        Neighbours merge, then neighbouring pairs, and so on: ``log2(size)`` steps, one arena more memory, and an order
        that depends on the number of ranks alone, so the same ranks give the same bits.

        Raises:
            ActError: a rank was lost.
        """
        with lost_rank():
            gathered: list[Any] = [None] * self.size
            dist.all_gather_object(gathered, (run.seen, skipped, run.seconds, run.waited))
            for ability in _union(seen for seen, *_ in gathered):
                run.begin(ability)
                self._merge(run, ability)
        run.seen = {
            ability: sum((seen[ability] for seen, *_ in gathered if ability in seen), Seen()) for ability in run.moments
        }
        skipped[:] = sorted((each for _, part, *_ in gathered for each in part), key=lambda each: each.record)
        run.seconds, run.waited = (max(each[place] for each in gathered) for place in (2, 3))

    def _merge(self, run: Run, ability: str) -> None:
        moments, step = run.moments[ability], 1
        moments.gather()
        while step < self.size:
            if self.rank % (2 * step):
                dist.send(moments.arena, self.rank - step)
                return
            if self.rank + step < self.size:
                other = run.empty_moments()
                other.gather()
                dist.recv(other.arena, self.rank + step)
                moments.merge(other)
            step *= 2


@contextlib.contextmanager
def joined() -> Iterator[Ranks | None]:
    """The ranks of this process in the block, if ``torchrun`` started it with others; else None.

    GPUs talk through NCCL, CPUs through gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield None
        return
    device = "cpu"
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device != "cpu" else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ActError(f"the ranks do not find each other ({_short(error)}); start them with torchrun") from error
    try:
        yield Ranks(dist.get_rank(), size, device)
        with contextlib.suppress(RuntimeError):  # one that failed has said so; none takes the group away from another
            dist.barrier()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_rank() -> Iterator[None]:
    """Turn what a collective raises when a peer is gone into a sentence."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are of this kind
        raise ActError(
            f"another rank was lost ({_short(error)}); what each rank has counted is safe in its own checkpoint beside "
            "the output (those of a rank that was killed: up to its last one), and the same torchrun command goes on "
            "from there"
        ) from error


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]

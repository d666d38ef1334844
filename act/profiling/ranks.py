"""One run in several processes that ``torchrun`` starts: each reads a share of the corpus, then moments are merged."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from act.core.errors import ActError, brief
from act.data.records import Shard
from act.data.stream import Skipped, nothing_counted, require_few
from act.profiling.run import Run, Seen

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

MEETING = timedelta(minutes=5)  # all ranks must start within this time
PATIENCE = timedelta(hours=24)  # the first rank to finish waits this long for the last; a dead rank is noticed at once


class LostRank(ActError):
    """Another rank has ended, so this one cannot continue."""


@dataclass(frozen=True)
class Ranks:
    """The processes that ``torchrun`` started, as seen by one of them.

    Attributes:
        rank: number of this process.
        size: number of processes.
        device: the device of this process.
        store: holds messages between the processes.
    """

    rank: int
    size: int
    device: str
    store: Store

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def windows(self) -> Shard:
        """The windows of the corpus that this rank reads; the windows and batches are those of a single process."""
        return self.rank, self.size

    def share(self, records: int, look_ahead: int) -> int:
        """How many of ``records`` records are in the windows of this rank, with ``look_ahead`` records per window."""
        windows, rest = divmod(records, look_ahead)
        mine = windows // self.size + (windows % self.size > self.rank)
        return mine * look_ahead + (rest if windows % self.size == self.rank else 0)

    def agreed(self, value: T) -> T:
        """The first rank's value, on every rank."""
        box: list[T] = [value]
        with self._together():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        """Wait until every rank has called this."""
        self.agreed(None)
        with self._together():
            dist.all_gather_object([None] * self.size, None)

    def reduce(self, run: Run, skipped: list[Skipped], skip_bad_records: int) -> None:
        """Merge the moments, counts and skipped records of all ranks into those of the first rank.

        Neighbours merge, then neighbouring pairs, and so on. This takes ``log2(size)`` steps and the memory of one more
        arena. The order depends only on the number of ranks, so the same number of ranks gives the same bits.

        Raises:
            ActError: no rank counted anything for an ability; there are more bad records than may be skipped.
            LostRank: a rank was lost, or the first rank raised an ActError.
        """
        gathered: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(gathered, (run.seen, skipped, run.seconds, run.waited))
        abilities = _union(seen for seen, *_ in gathered)
        total = {name: sum((seen[name] for seen, *_ in gathered if name in seen), Seen()) for name in abilities}
        every = sorted((each for _, part, *_ in gathered for each in part), key=lambda each: each.record)
        self._check(total, every, skip_bad_records)
        with self._together():
            for ability in abilities:
                run.begin(ability)
                self._merge(run, ability)
        run.seen = total
        skipped[:] = every
        run.seconds, run.waited = (max(each[place] for each in gathered) for place in (2, 3))

    def _check(self, total: dict[str, Seen], skipped: list[Skipped], skip_bad_records: int) -> None:
        """Raise on every rank the errors that a single process would have raised while reading."""
        try:
            require_few(skipped, skip_bad_records)
            for ability, seen in total.items():
                if not seen.counted:
                    raise ActError(nothing_counted(ability))
        except ActError as error:
            if self.leads:
                raise
            raise LostRank(_ended_by(0)) from error

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Turn the error of a collective whose peer is gone into :class:`LostRank`."""
        try:
            yield
        except RuntimeError as error:  # the base of the errors of torch.distributed
            refused = self._note()
            what = f"another rank was lost ({brief(error, 120)})" if refused is None else _ended_by(refused)
            raise LostRank(what) from error

    def _note(self) -> int | None:
        """The rank that left a note that it ended the run; None if there is no note, or the store is gone."""
        with contextlib.suppress(RuntimeError):
            return next((rank for rank in range(self.size) if self.store.check([f"ended{rank}"])), None)
        return None

    def leave_note(self) -> None:
        """Tell the other ranks that this one ends the run and prints the reason."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"ended{self.rank}", "")

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
    """The :class:`Ranks` of this process during the block; None unless ``torchrun`` started it with others.

    GPUs communicate through NCCL, CPUs through gloo.

    Raises:
        ActError: the other ranks did not start in time.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield None
        return
    from torch.distributed.rendezvous import rendezvous

    device = "cpu"
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=MEETING))
        store = _met(store, rank, size)
        dist.init_process_group(backend, timeout=MEETING, store=store, rank=rank, world_size=size)
        dist.distributed_c10d._set_pg_timeout(PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ActError(f"the ranks cannot find each other ({brief(error, 120)}); start them with torchrun") from error
    ranks = Ranks(rank, size, device, store)
    try:
        yield ranks
        with contextlib.suppress(
            RuntimeError
        ):  # no rank destroys the group while another uses it; a failed one has left a note
            dist.barrier()
    except BaseException as error:
        if not isinstance(error, LostRank):
            ranks.leave_note()
        raise
    finally:
        dist.destroy_process_group()


def _met(store: Store, rank: int, size: int) -> Store:
    """A part of the store that is used only by the processes of this start of the ranks.

    ``torchrun`` keeps one store over restarts (``--max-restarts``) and counts the restarts of each machine separately.
    So every rank draws a random name, and continues once the first rank has listed that name among those it has met.
    Entries that an earlier start left in the store cannot be mistaken for an answer.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("leader", mine)
        met = [store.get(f"{mine}/{other}").decode() for other in range(1, size)]
        store.set(f"{mine}/met", " ".join(met))
        return PrefixStore(mine, store)
    deadline = time.monotonic() + MEETING.total_seconds()
    while time.monotonic() < deadline:
        leader = store.get("leader").decode()
        store.set(f"{leader}/{rank}", mine)
        if store.check([f"{leader}/met"]) and mine in store.get(f"{leader}/met").decode().split():
            return PrefixStore(leader, store)
        time.sleep(0.05)
    raise RuntimeError(f"rank 0 did not start within {MEETING.total_seconds() / 60:.0f} minutes")


def _ended_by(rank: int) -> str:
    return f"rank {rank} ended the run; its own message says why"


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))

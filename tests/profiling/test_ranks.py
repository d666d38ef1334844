"""What ranks agree on, without starting any: who belongs together, what is refused, who ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_model

import act
from act.core.errors import ActError, BadRecord
from act.data.stream import Skipped
from act.profiling.job import Job
from act.profiling.ranks import LostRank, Ranks, _met
from act.profiling.run import Seen


def ranks(rank: int = 0, size: int = 2, store=None) -> Ranks:
    return Ranks(rank, size, "cpu", store or dist.HashStore())


@given(records=st.integers(0, 500), look_ahead=st.integers(1, 60), size=st.integers(1, 7))
def test_shares_of_ranks_are_their_windows(records, look_ahead, size):
    shares = [ranks(rank, size).share(records, look_ahead) for rank in range(size)]
    assert shares == [sum(n // look_ahead % size == rank for n in range(records)) for rank in range(size)]


def test_a_rank_expects_its_own_records_only(tokenizer):
    corpus = act.Corpus.from_records([{"text": "a"}] * 100, tokenizer)
    job = Job({"model": tiny_model("llama")}, corpus, look_ahead=16, ranks=ranks(1, 2))
    assert job.records == 48


def test_ranks_meet_those_of_their_own_start_only():
    store, size = dist.HashStore(), 3
    starts = []
    with ThreadPoolExecutor(size) as pool:
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
            met = dict(zip(order, pool.map(lambda rank: _met(store, rank, size), order), strict=True))
            met[0].set("key", str(len(starts)))
            assert {part.get("key") for part in met.values()} == {str(len(starts)).encode()}
            starts.append(met)
    assert [start[1].get("key") for start in starts] == [b"0", b"1", b"2"]


def test_what_all_ranks_together_may_not_is_refused_by_the_first():
    bad = [Skipped("", number, f"line {number}", "not JSON") for number in range(3)]
    counted = {"x": Seen(counted=1), "y": Seen()}
    ranks()._check({"x": Seen(counted=1)}, bad, 3)
    for rank, kinds, messages in (
        (0, (ActError, BadRecord), ("y: no token", "line 2: not JSON .after 2 others that were skipped")),
        (1, (LostRank, LostRank), ("rank 0 ended",) * 2),
    ):
        for total, allowed, kind, message in zip(
            (counted, {"x": Seen(counted=1)}), (3, 2), kinds, messages, strict=True
        ):
            with pytest.raises(kind, match=message) as told:
                ranks(rank)._check(total, bad, allowed)
            assert type(told.value) is kind
    with pytest.raises(BadRecord, match="line 0: not JSON; there are at least 3 bad records"):
        ranks()._check(counted, bad, 0)


def test_a_rank_that_refused_is_not_lost():
    store = dist.HashStore()
    with pytest.raises(LostRank, match=r"another rank was lost \(gone\)"), ranks(0, 3, store)._together():
        raise RuntimeError("gone")
    ranks(2, 3, store).leave_note()
    with pytest.raises(LostRank, match="rank 2 ended the run; its own message says why"):
        with ranks(0, 3, store)._together():
            raise RuntimeError("gone")

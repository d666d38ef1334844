"""The observer that stops a run when its top channels are certain (see :mod:`act.profiling.stability`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter

from act.core.errors import ActError
from act.core.plain import Seconds, checked
from act.data.batching import LOOK_AHEAD, Batch, Position
from act.data.corpus import Corpus
from act.data.records import Shard
from act.models.channels import ChannelSpace
from act.profiles.defaults import MIN_EXPERT_TOKENS
from act.profiles.experts import tokens_needed
from act.profiles.moments import Moments
from act.profiling.benefits import GroupedBenefits
from act.profiling.defaults import STABLE_CONFIDENCE, STABLE_OVERLAP, STABLE_TOP
from act.profiling.job import Job
from act.profiling.observer import Observer
from act.profiling.ranks import Ranks
from act.profiling.run import Run, Seen
from act.profiling.stability import Criterion, GroupedSums, SequentialTest, StableScore, error_of, sample
from act_kernels import PAIR
from act_kernels.statistics import COUNT, M2, MEAN, SUM_ABS

CHUNK = 128  # fewest records
SHARE = 0.02  # of the wall time, which looks may take
FREE = 1.0  # seconds that they may take in any case, so that the clock decides nothing in short runs
_CERTIFICATES = TypeAdapter(dict[str, dict[str, Any]])
_NEEDED = {
    "attribution": "an attribution run",
    "mean-abs": "activations",
    "match": "a pair run with swapped outputs (--swap, swap=True)",
}
METHOD = "multivariate t draws from grouped chunks of documents, finite-corpus correction, error spent over looks"


@dataclass
class Looks:
    """The time that looks at the top sets have taken, which decides how soon there is another one.

    A look waits until all looks together, with it, take at most :data:`SHARE` of the run, or :data:`FREE` seconds. So
    the clock decides where a run ends only if its looks take longer than that. A run that goes on from a checkpoint
    goes on with these figures, and with the place of the next look.

    Attributes:
        seconds: of all so far, with the sums that they need, by a clock that nobody sets.
        longest: of one.
    """

    seconds: Seconds = 0.0
    longest: Seconds = 0.0

    def affordable(self, run_seconds: float) -> bool:
        """Whether there may be another one after so many seconds of the run."""
        return self.seconds + self.longest <= max(FREE, SHARE * run_seconds)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time of the block."""
        start = time.monotonic()
        yield
        taken = time.monotonic() - start
        self.seconds += taken
        self.longest = max(self.longest, taken)


_LOOKS = TypeAdapter(Looks)


class GroupedMeans:
    """The grouped sums of the one quantity whose mean ranks the channels.

    A channel that was never counted is no channel here and, as by default in a ranking, neither is one of an expert
    that fewer than :data:`act.profiles.defaults.MIN_EXPERT_TOKENS` counted tokens reached.

    Args:
        space: the channel space.
        device: that of the moments.
        channels: sorted flat indices of the channels that are looked at, int64.
        ranked: number of ranked channels that they are a sample of; None: all are looked at.
        score, cost: what it is (see :func:`quantity`).
    """

    def __init__(
        self,
        space: ChannelSpace,
        device: torch.device,
        channels: torch.Tensor,
        ranked: int | None = None,
        *,
        score: StableScore,
        cost: bool = False,
    ) -> None:
        widths = torch.tensor([site.width for site in space], device=device)
        self._sums = GroupedSums(widths, channels)
        self._all = len(channels) if ranked is None else ranked
        needed = tokens_needed(space, 0 if score == "attribution" else MIN_EXPERT_TOKENS).clamp_min(1)
        self._needed = needed.to(device).repeat_interleave(widths)[self._sums.channels]
        self._score, self._cost = score, cost
        self._find_scored()

    def __len__(self) -> int:
        """Number of channels that are looked at and have a score."""
        return len(self._scored)

    @property
    def left_out(self) -> int:
        """Number of channels that are looked at and have none."""
        return len(self._sums) - len(self)

    @property
    def ranked(self) -> int:
        """Number of ranked channels that these are a sample of, as far as the sample tells."""
        return round(self._all * len(self) / max(1, len(self._sums)))

    @property
    def groups(self) -> int:
        """Number of complete groups."""
        return self._sums.groups

    @property
    def chunks(self) -> int:
        """Number of chunks seen so far."""
        return self._sums.chunks

    def take(self, moments: Moments) -> bool:
        """End a chunk, given the moments of all chunks so far.

        Returns:
            Whether a group ended with this chunk, and some channels have a score.
        """
        total, count = quantity(moments, self._score, self._sums.channels, self._cost)
        if self._sums.unchanged(count) or not self._sums.add(total, count):
            return False
        self._find_scored()
        return len(self) > 1

    def means(self) -> torch.Tensor:
        """The mean of each channel that has a score, float64."""
        return self._sums.means()[self._scored]

    def errors(self, index: torch.Tensor | slice) -> torch.Tensor:
        """What each group adds to the error of some of these channels, float32 ``[G, n]``."""
        return self._sums.errors(self._scored[index])

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return self._sums.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned; raises ValueError if it does not fit."""
        self._sums.restore(state)
        self._find_scored()

    def _find_scored(self) -> None:
        self._scored = (self._sums.counted >= self._needed).nonzero().flatten()


class _Source(NamedTuple):
    """A corpus: the ability that it is named after, its size if known, and whether its records have labels."""

    ability: str
    size: int | None
    labelled: bool


class UntilStable(Observer):
    """Stops each ability when its top channels are certain, and records why in the profile.

    Works in one process over a whole corpus whose records are in random order.

    Args:
        score: the score that ranks the channels: ``paired``, ``mean-abs`` or ``mean-shift``; None: ``paired`` in a pair
            run, ``mean-abs`` in one of a single model. With swapped outputs also ``match``, as it ranks without what is
            to be kept; what a channel disturbs of that has an error of its own, which no certificate holds. That of an
            attribution run is ``attribution``: the fall of the loss of an ability, and what a text to keep would lose,
            each by itself.
        top: size of the top set, as a share of the channels.
        overlap: share of the top set that must also be in the top set of the whole corpus.
        confidence: probability with which that overlap must hold.

    Attributes:
        criterion: these four values.
        certificates: plain data by ability; an ability whose corpus ended first has no certificate.
        looks: how long the looks have taken.

    Raises:
        ActError: an unknown score, or a share, overlap or confidence out of range.

    >>> until = act.UntilStable(top=0.2, overlap=0.8, confidence=0.9)
    >>> profile = act.profile(model, corpus, observers=[until])
    >>> until.certificates  # this corpus is too short to be certain of anything
    {}
    >>> until
    <UntilStable: 80% of the top 20% by mean-abs at 90% confidence, certain for nothing yet>
    >>> until.stability is None  # no test was made
    True
    """

    def __init__(
        self,
        score: StableScore | None = None,
        top: float = STABLE_TOP,
        overlap: float = STABLE_OVERLAP,
        confidence: float = STABLE_CONFIDENCE,
    ) -> None:
        self.criterion = Criterion(score or "mean-abs", top, overlap, confidence)
        self.certificates: dict[str, dict[str, Any]] = {}
        self.looks = Looks()
        self._score_given = score is not None
        self._groups: dict[str, GroupedMeans | GroupedBenefits] = {}
        self._tests: dict[str, SequentialTest] = {}
        self._sources: list[_Source] = []
        self._complete: Callable[[Moments], None] = Moments.fill_scaled
        self._costs: Collection[str] = ()
        self._channels, self._ranked = torch.empty(0, dtype=torch.int64), 0
        self._restored: dict[str, Any] = {}

    def __repr__(self) -> str:
        wanted = self.criterion
        certain = ", ".join(ability or "the corpus" for ability in self.certificates) or "nothing yet"
        return (
            f"<UntilStable: {wanted.overlap:.0%} of the top {wanted.top:.0%} by {wanted.score} "
            f"at {wanted.confidence:.0%} confidence, certain for {certain}>"
        )

    def prepare(self, job: Job) -> None:
        """Store the sizes of the corpora and the channels that are ranked.

        Raises:
            ActError: a score of another kind of run; batches instead of a corpus; only part of a corpus.
        """
        score = self.criterion.score if self._score_given else job.stable_scores[0]
        if score not in job.stable_scores:
            needed = _NEEDED.get(score, "a pair run")
            raise ActError(
                f"stable score {score!r} needs {needed}; use {' or '.join(job.stable_scores)}, or leave the score out"
            )
        self.criterion = replace(self.criterion, score=score)
        if not job.corpora:
            raise ActError("until-stable needs a corpus: batches have no documents")
        require_whole_corpus(job.ranks, job.shard)
        self.certificates, self._groups, self._tests, self.looks = {}, {}, {}, Looks()
        self._sources = [
            _Source(name, corpus.source.size, corpus.encoder.ability_column is not None)
            for name, corpus in job.corpora.items()
        ]
        self._complete, self._costs = job.complete, job.costs
        ranked = rankable(job.space, job.left_out)
        self._channels, self._ranked = sample(ranked, self.criterion), len(ranked)

    def look_ahead(self, corpora: Collection[Corpus]) -> int:
        """The records per chunk, because a chunk is a window of its corpus."""
        return look_ahead(corpora)

    def settings(self) -> dict[str, Any]:
        """The criterion, as plain data."""
        return {"until_stable": asdict(self.criterion)}

    def provenance(self, ability: str) -> dict[str, Any]:
        """The certificate of the ability; None if its corpus ended before the top channels were certain."""
        return {"stable": self.certificates.get(ability)}

    def before_run(self, run: Run) -> None:
        """Apply the restored state, now that the device of the moments is known."""
        restored, self._restored = self._restored, {}
        for ability in run.moments:
            prefix = f"{ability}.groups."
            groups = {name.removeprefix(prefix): x for name, x in restored.items() if name.startswith(prefix)}
            try:
                if test := restored.get(f"{ability}.test"):
                    self._tests[ability] = SequentialTest()
                    self._tests[ability].restore(test)
                if groups:
                    self._groups[ability] = self._new_groups(run, ability)
                    self._groups[ability].restore(groups)
            except (ValueError, LookupError, TypeError) as error:
                raise ActError(
                    f"the checkpoint's sums for --until-stable are damaged, or of an earlier version ({error!s:.120}); "
                    "delete it to start anew"
                ) from error

    def after_batch(self, run: Run, batch: Batch) -> None:
        """At the end of a window, test each ability that it contained."""
        after = batch.after
        if after is None or after.batch:
            return
        with self.looks.counted():
            for ability in [name for name in run.moments if name not in run.stopped]:
                self._look(run, ability, after)

    def _look(self, run: Run, ability: str, after: Position) -> None:
        """Add what was read since the last window to the sums of an ability, and test it if that is due."""
        if ability not in self._groups:
            self._groups[ability], self._tests[ability] = self._new_groups(run, ability), SequentialTest()
        test, groups = self._tests[ability], self._groups[ability]
        self._complete(run.moments[ability])
        if not groups.take(run.moments[ability]):
            return
        records, read = run.seen[ability].records, self._share(after, ability)
        if not (test.is_due(groups, records) and self.looks.affordable(run.seconds)):
            return
        if test.certain(groups, self.criterion, records, read):
            cost = {"score": "cost"} if ability in self._costs else {}
            self.certificates[ability] = self._certificate(test, groups, run.seen[ability], read) | cost
            del self._groups[ability]
            run.stop(ability)

    @property
    def stability(self) -> float | None:
        """The least certain overlap of the abilities tested so far; None before the first test."""
        found = [test.found for test in self._tests.values() if test.found]
        return min((each.overlap for each in found), default=None)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep: certificates, tests and grouped sums."""
        result: dict[str, Any] = {"certificates": self.certificates, "looks": asdict(self.looks)}
        for ability, test in self._tests.items():
            result[f"{ability}.test"] = test.state()
            if ability in self._groups:
                result |= {f"{ability}.groups.{name}": x for name, x in self._groups[ability].state().items()}
        return result

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned, once the run begins."""
        self.certificates = checked(_CERTIFICATES, state["certificates"])
        self.looks = checked(_LOOKS, state.get("looks", {}))
        self._restored = dict(state)

    def _new_groups(self, run: Run, ability: str) -> GroupedMeans | GroupedBenefits:
        device, score = run.moments[ability].arenas[0].device, self.criterion.score
        if score == "match":
            return GroupedBenefits(run.space, device, self._channels, self._ranked)
        cost = ability in self._costs
        return GroupedMeans(run.space, device, self._channels, self._ranked, score=score, cost=cost)

    @property
    def _mixed(self) -> bool:
        return len(self._sources) > 1 and any(source.labelled for source in self._sources)

    def _share(self, after: Position, ability: str) -> float:
        """The share read of the corpora that may have records of this ability (named or labelled); 0 if unknown."""
        read = size = 0
        for number, source in enumerate(self._sources):
            if source.labelled or source.ability == ability:
                if source.size is None:
                    return 0.0
                size += source.size
                read += source.size if number < after.corpus else after.record if number == after.corpus else 0
        return min(1.0, read / size) if size else 0.0

    def _certificate(
        self, test: SequentialTest, groups: GroupedMeans | GroupedBenefits, seen: Seen, read: float
    ) -> dict[str, Any]:
        found = test.found
        assert found is not None  # it has just been found stable
        return {
            "method": METHOD,
            **asdict(self.criterion),
            "channels": found.size,
            "looked_at": len(groups),
            "certain_overlap": round(found.overlap, 6),
            "expected_overlap": round(1 - found.expected / found.size, 6),
            "chunks": groups.chunks,
            "groups": groups.groups,
            "documents": seen.records,
            "tokens": seen.counted,
            "corpus_share": round(read, 6) if read else None,
            "look": test.checks,
            "error_of_look": error_of(test.checks, 1 - self.criterion.confidence),
            "assumes": "documents in random order"
            + (", over all corpora" if self._mixed else "")
            + ("; ranked without what is to be kept" if self.criterion.score == "match" else "")
            + ("; channels without a score so far get none" if groups.left_out else ""),
        }


def require_whole_corpus(ranks: Ranks | None, shard: Shard) -> None:
    """Raise :class:`ActError` if this process would see only a part of the corpus."""
    if ranks:
        raise ActError("--until-stable works in one process; leave it out, or start the run without torchrun")
    if shard[1] > 1:
        raise ActError(
            "--until-stable needs the whole corpus to tell when it is certain; leave out --shard, or --until-stable"
        )


def look_ahead(corpora: Iterable[Corpus]) -> int:
    """Records per chunk: 1/500 of the smallest corpus, between 128 and 2048; 128 if a size is unknown.

    A chunk is a window of its corpus, because batches across chunks would mix their documents. Larger ones pad less.
    """
    return min(LOOK_AHEAD, max(CHUNK, min((corpus.source.size or 0 for corpus in corpora), default=0) // 500))


def quantity(
    moments: Moments, score: StableScore, channels: torch.Tensor | None = None, cost: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The quantity whose mean ranks the channels: its sums so far, float64 ``[K]``, and counts ``[sites]``.

    Args:
        score: any but ``match``, which is no mean of one quantity.
        channels: flat indices of the channels whose sums are asked for, int64 ``[K]``; None: all.
        cost: of an attribution, the squares of the changes instead of what the loss falls by.
    """
    arena = moments.arena
    wanted = slice(None) if channels is None else channels.to(arena.device)
    firsts = torch.tensor([site.offset for site in moments.space], device=arena.device)
    if score == "attribution":
        mean, documents = arena[MEAN][wanted], arena[COUNT][firsts]
        if cost:
            return arena[M2][wanted] + arena[COUNT][wanted] * mean.square(), documents
        # A document that a site did not see counts, for its loss would not fall.
        return -mean * arena[COUNT][wanted], documents.max().expand_as(documents)
    if not moments.pair:
        block = arena
        total = arena[SUM_ABS][wanted].clone()
    else:
        donor, target, difference = (arena[PAIR.index(side)] for side in ("donor", "target", "difference"))
        block = difference
        if score == "paired":
            total = difference[SUM_ABS][wanted].clone()
        elif score == "mean-shift":
            total = difference[MEAN][wanted] * difference[COUNT][wanted]
        else:
            total = donor[SUM_ABS][wanted] - target[SUM_ABS][wanted]
    return total, block[COUNT][firsts]


def rankable(space: ChannelSpace, left_out: Collection[str] = ()) -> torch.Tensor:
    """Indices of the channels that are ranked, int64: those that own their parameters, at sites not ``left_out``."""
    return torch.cat(
        [
            torch.arange(site.offset, site.offset + site.width)
            for site in space
            if site.parameters and site.name not in left_out
        ]
    )

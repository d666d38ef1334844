"""When the top channels are certain: how far the top set of what was read can differ from that of the whole corpus.

A score here is ``|mean|`` of one quantity a channel (``|donor - target|`` for ``paired``). The corpus is read in chunks
of whole documents, so chunks are exchangeable (documents must be in random order) although tokens are not. Chunks are
gathered in 16 to 32 **groups**; with sums ``y_g`` and counts ``n_g`` of a channel, the mean is the ratio estimator
``r = sum y / sum n`` and its error is drawn from the residuals ``e_g = y_g - r n_g`` of all channels at once::

    mean of the whole corpus - r  ~  sqrt(1 - f) · sqrt(G / (G - 1)) · sum_g w_g e_g / sum n · sqrt(d / chi2_d)

with one standard normal ``w_g`` a group, shared by the channels, so that what makes channels rise and fall together
stays in; ``f`` is the share of the corpus that was read (what has been read cannot change any more: the finite
population correction), and the last factor, shared too, turns the normal into a t for the few groups. Each draw of the
means gives a top set, and the number of channels of the present top set that it lacks. If what the whole corpus will
give is one more draw of that kind, then its rank among all of them is uniform: so the number that the whole corpus
lacks exceeds the ``floor(a · (draws + 1))``-th largest one with a chance of at most ``a``.

Looking often must not make the promise weaker, so looks share the error: the ``k``-th one may spend ``1 / (k (k + 1))``
of it, half at the first. Hopeless looks would spend it for nothing; therefore each look is planned before its data is
read, from a forecast that lets the present draws shrink as the corpus grows, and that can itself never end a run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, get_args

import torch

from act.core.errors import ActError, require_choice
from act.data.batching import LOOK_AHEAD, Batch, Position
from act.data.corpus import Corpus
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.profiling.job import Job
from act.profiling.run import Observer, Run, Seen
from act_kernels import PAIR
from act_kernels.statistics import COUNT, MEAN, SUM_ABS

StableScore = Literal["paired", "mean-abs", "mean-shift"]

GROUPS = 16  # at least; at twice as many, neighbours become one
DRAWS = 200, 2000  # at least, and at most where few channels are near the threshold
WORK = 1 << 22  # numbers drawn in a look, but for the least draws
GROWTH = 1.1, 1.25  # of the corpus read, between two looks: at least, and at most
CHUNK = 128  # records at least
FAR = 8.0  # standard errors from the threshold at which a channel is certain
METHOD = "multivariate t draws from grouped chunks of documents, finite-corpus correction, error spent over looks"


@dataclass(frozen=True)
class Promise:
    """What must be certain: the top share of ``score`` overlaps that of the whole corpus, with this confidence.

    Raises:
        ActError: a share, overlap or confidence that promises nothing or cannot be kept.
    """

    score: StableScore = "paired"
    top: float = 0.05
    overlap: float = 0.98
    confidence: float = 0.95

    def __post_init__(self) -> None:
        require_choice("stable score", self.score, get_args(StableScore))
        if not 0 < self.top < 1:
            raise ActError(f"stable top is {self.top}; expected a share of the channels between 0 and 1")
        if not 0 < self.overlap <= 1:
            raise ActError(f"stable overlap is {self.overlap}; expected above 0 and up to 1")
        if not 0.5 <= self.confidence < 1:
            raise ActError(f"stable confidence is {self.confidence}; expected from 0.5 up to but not 1")


@dataclass(frozen=True)
class Look:
    """How sure the top set was at one look.

    Attributes:
        size: channels in the top set.
        allowed: of them, channels that the overlap allows not to be in the top set of the whole corpus.
        expected: channels expected not to be in it.
        variance: of their number.
        bound: at most as many are not in it, but for the error spent on this look.
    """

    size: int
    allowed: int
    expected: float = 0.0
    variance: float = 0.0
    bound: float = 0.0

    @property
    def stable(self) -> bool:
        """Whether the bound is within what the overlap allows."""
        return self.bound <= self.allowed

    @property
    def overlap(self) -> float:
        """Certain share of the top set."""
        return max(0.0, 1 - self.bound / self.size)


class GroupedSums:
    """Sums of one quantity a channel over groups of chunks, ``[G, N]`` float32 with G below ``2 * GROUPS``.

    Args:
        widths: channels of each site; all channels of a site share a count.
    """

    def __init__(self, widths: torch.Tensor) -> None:
        self._widths, device = widths, widths.device
        channels, sites = int(widths.sum()), len(widths)
        self.sums = torch.zeros(2 * GROUPS, channels, dtype=torch.float32, device=device)
        self.counts = torch.zeros(2 * GROUPS, sites, dtype=torch.float64, device=device)
        self._total = torch.zeros(channels, dtype=torch.float64, device=device)
        self._count = torch.zeros(sites, dtype=torch.float64, device=device)
        self.groups = self.chunks = 0
        self._per_group = 1

    def unchanged(self, count: torch.Tensor) -> bool:
        """Whether nothing was counted since the last group ended: another ability's turn."""
        return torch.equal(count, self._count)

    def add(self, total: torch.Tensor, count: torch.Tensor) -> bool:
        """End a chunk, with the sums ``[N]`` and counts ``[sites]`` of all chunks so far; whether a group ended too."""
        self.chunks += 1
        if self.chunks % self._per_group:
            return False
        if self.groups == 2 * GROUPS:
            for x in (self.sums, self.counts):
                x[:GROUPS] = x.view(GROUPS, 2, -1).sum(1)
                x[GROUPS:] = 0
            self.groups = GROUPS
            self._per_group *= 2
            if self.chunks % self._per_group:
                return False
        self.sums[self.groups] = (total - self._total).float()
        self.counts[self.groups] = count - self._count
        self._total.copy_(total)
        self._count.copy_(count)
        self.groups += 1
        return True

    def means(self) -> torch.Tensor:
        """The mean of each channel, float64 ``[N]``; NaN where nothing was counted."""
        return self._total / self._count.repeat_interleave(self._widths)

    def errors(self, index: torch.Tensor) -> torch.Tensor:
        """``sqrt(G / (G - 1)) e_g / sum n`` of some channels, float32 ``[G, K]``: squares sum to a variance."""
        site = torch.bucketize(index, self._widths.cumsum(0), right=True)
        count = self._count[site]
        mean = (self._total[index] / count).nan_to_num()
        result = torch.empty(self.groups, len(index), dtype=torch.float32, device=index.device)
        for group in range(self.groups):  # one at a time: no float64 copy of all groups
            result[group] = ((self.sums[group, index] - mean * self.counts[group][site]) / count).nan_to_num()
        return result * math.sqrt(self.groups / (self.groups - 1))

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        numbers = torch.tensor([self.groups, self.chunks, self._per_group])
        tensors = {"sums": self.sums, "counts": self.counts, "total": self._total, "count": self._count}
        return {name: x.cpu() for name, x in tensors.items()} | {"numbers": numbers}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`."""
        tensors = {"sums": self.sums, "counts": self.counts, "total": self._total, "count": self._count}
        for name, x in tensors.items():
            x.copy_(state[name])
        self.groups, self.chunks, self._per_group = state["numbers"].tolist()


def look(
    groups: GroupedSums,
    ranked: torch.Tensor,
    promise: Promise,
    *,
    read: float = 0.0,
    error: float | None = None,
    seed: int = 0,
) -> Look:
    """How sure the top set is.

    Args:
        groups: at least two; the promise is tested for :data:`GROUPS` and more.
        ranked: indices of the channels that compete, int64.
        promise: what must be certain.
        read: share of the corpus that was read; 0 where its size is unknown.
        error: chance of a wrong answer that this look may spend; None: all of it.
        seed: of the draws.
    """
    error = 1 - promise.confidence if error is None else error
    size = max(1, round(promise.top * len(ranked)))
    allowed = math.floor((1 - promise.overlap) * size + 1e-9)
    rest = math.sqrt(max(0.0, 1 - read))
    if size == len(ranked) or rest == 0:
        return Look(size, allowed)
    means = groups.means()[ranked]
    scores = means.abs().nan_to_num(nan=-1.0)
    top = scores.topk(size + 1).values
    threshold = (top[-2] + top[-1]) / 2
    spread = _spread(groups, ranked) * rest
    distance = (scores - threshold).abs()
    wrong = torch.special.ndtr(-(distance / spread.clamp_min(torch.finfo(torch.float64).tiny)))
    inside = torch.zeros_like(scores, dtype=torch.bool)
    inside[scores.argsort(descending=True, stable=True)[:size]] = True
    expected = float(wrong[inside].sum())
    if expected > allowed:  # the draws could only say the same
        return Look(size, allowed, expected, expected, expected)
    near = (distance <= FAR * spread).nonzero().flatten()
    places = size - int((inside & (distance > FAR * spread)).sum())
    if not 0 < places < len(near):
        return Look(size, allowed)
    errors = groups.errors(ranked[near])
    lost = _lost(means[near].float(), errors * rest, inside[near], places, seed)
    return Look(size, allowed, float(lost.mean()), float(lost.var()), _upper(lost, error))


def _spread(groups: GroupedSums, ranked: torch.Tensor) -> torch.Tensor:
    """The standard error of each channel's mean, float64 ``[len(ranked)]``, in pieces to spare memory."""
    return torch.cat([groups.errors(part).double().square().sum(0).sqrt() for part in ranked.split(1 << 20)])


def _lost(means: torch.Tensor, errors: torch.Tensor, inside: torch.Tensor, places: int, seed: int) -> torch.Tensor:
    """For each draw, how many channels of the present top set are not in its own, float64 ``[draws]`` on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    draws = max(DRAWS[0], min(DRAWS[1], WORK // len(means)))
    weights = torch.randn(draws, len(errors), generator=generator, dtype=torch.float64)
    # Wilson and Hilferty, for chi2 over its degrees of freedom: those need not be whole.
    part = 2 / (9 * _freedom(errors))
    normal = torch.randn(draws, 1, generator=generator, dtype=torch.float64)
    weights = (weights / (1 - part + math.sqrt(part) * normal).clamp_min(0.1) ** 1.5).to(errors)
    lost = []
    for part in weights.split(max(1, WORK // len(means))):
        scores = (means + part @ errors).abs()
        least = scores.kthvalue(len(means) - places + 1, dim=1, keepdim=True).values
        lost.append((inside & (scores < least)).sum(1))
    return torch.cat(lost).double().cpu()


def _freedom(errors: torch.Tensor) -> float:
    """Degrees of freedom of the size of the errors: ``G - 1``, times the number of dimensions in which channels vary.

    That number is ``(tr S)^2 / tr S^2`` of their covariance ``S`` (Satterthwaite), with ``tr S^2`` from the products of
    different groups; many channels that vary each for itself tell the size of the errors better than one.
    """
    count = len(errors)
    errors = errors / errors.square().sum(0).sqrt().clamp_min(torch.finfo(errors.dtype).tiny)
    gram = (errors @ errors.T).double()
    trace = gram.trace()
    products = gram - torch.diag(gram.diagonal()) + trace / (count * (count - 1)) * (1 - torch.eye(count).to(gram))
    squares = products.square().sum() * count / (count - 1)
    return (count - 1) * max(1.0, float(trace**2 / squares.clamp_min(1e-300)))


def _upper(lost: torch.Tensor, error: float) -> float:
    """What the number lost exceeds with at most that chance: exact if it is one more draw of the same kind, for then
    its rank among them all is uniform; where the draws are too few to show it, of the gamma distribution."""
    above = math.floor(error * (len(lost) + 1) + 1e-9)
    return float(lost.topk(above).values[-1]) if above else _gamma(float(lost.mean()), float(lost.var()), error)


def _gamma(mean: float, variance: float, error: float) -> float:
    """The upper quantile of the gamma distribution with that mean and variance (Wilson and Hilferty)."""
    if variance == 0:
        return mean
    shape = mean**2 / variance
    cube = 1 - 1 / (9 * shape) + NormalDist().inv_cdf(1 - error) / (3 * math.sqrt(shape))
    return mean * max(cube, 0.0) ** 3


def growth(found: Look, read: float, error: float) -> float:
    """By what factor the corpus read must grow, it seems, for a look that may spend ``error`` to be certain.

    Errors shrink with the root of what is read, and of what is left; so do the numbers of channels lost. At least
    ``GROWTH[0]``, and ``GROWTH[1]`` where it is that or more.
    """
    least, most = GROWTH
    for factor in torch.linspace(least, most, 16, dtype=torch.float64).tolist():
        if factor * read >= 1:
            return factor
        shrunk = math.sqrt((1 - factor * read) / (1 - read) / factor)
        # Numbers are whole: half a channel more than allowed rounds down.
        if _gamma(found.expected * shrunk, found.variance * shrunk, error) < found.allowed + 0.5:
            return factor
    return most


def error_of(number: int, error: float) -> float:
    """What the ``number``-th look (from 1) may spend; all looks together spend ``error``."""
    return error / (number * (number + 1))


@dataclass
class Watch:
    """Decides when to look at one ability, and whether it is certain.

    Whether a look is worth its error is forecast from what was read before, so that only looks that may well be certain
    spend any; a forecast itself never ends a run.

    Attributes:
        looks: so far.
        due: records read at the next look or forecast.
        planned: whether it is a look.
        found: by the last of either.
    """

    looks: int = 0
    due: float = 0.0
    planned: bool = False
    found: Look | None = None

    def certain(self, groups: GroupedSums, ranked: torch.Tensor, promise: Promise, records: int, read: float) -> bool:
        """Whether the promise is kept, when a group has ended; arguments as :func:`look`."""
        if groups.groups < GROUPS or records < self.due:
            return False
        found = self.found = look(
            groups, ranked, promise, read=read, error=error_of(self.looks + 1, 1 - promise.confidence), seed=self.looks
        )
        if self.planned:
            self.looks += 1
            if found.stable:
                return True
        factor = growth(found, read, error_of(self.looks + 1, 1 - promise.confidence))
        self.planned, self.due = factor < GROWTH[1], factor * records
        return False

    def state(self) -> torch.Tensor:
        """For a checkpoint: all but what was found."""
        return torch.tensor([self.looks, self.due, self.planned], dtype=torch.float64)

    @classmethod
    def restored(cls, state: torch.Tensor) -> Watch:
        """The watch that had this :meth:`state`."""
        looks, due, planned = state.tolist()
        return cls(int(looks), due, bool(planned))


class _Source(NamedTuple):
    """A corpus: the ability whose name it has, its records if known, and whether these have labels of their own."""

    ability: str
    size: int | None
    labelled: bool


def look_ahead(corpora: Iterable[Corpus]) -> int:
    """Records a chunk: a five hundredth of the smallest corpus, but 128 at least (or where its size is unknown).

    A chunk is a window of its corpus, for batches across chunks would mix their documents; larger ones pad less.
    """
    return min(LOOK_AHEAD, max(CHUNK, min((corpus.source.size or 0 for corpus in corpora), default=0) // 500))


class UntilStable(Observer):
    """Stops an ability when its top set is as certain as promised, and writes the certificate.

    Args:
        promise: what must be certain, of each ability by itself.

    Attributes:
        certificates: by ability, plain data; an ability whose corpus ended first has none.
    """

    def __init__(self, promise: Promise) -> None:
        self.promise = promise
        self.certificates: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, GroupedSums] = {}
        self._watches: dict[str, Watch] = {}
        self._sources: list[_Source] = []
        self._ranked = torch.empty(0, dtype=torch.int64)
        self._restored: dict[str, torch.Tensor] = {}

    def settings(self) -> dict[str, Any]:
        """Part of what decides which tokens count."""
        return {"until_stable": asdict(self.promise)}

    def provenance(self, ability: str) -> dict[str, Any]:
        """The certificate; None where the corpus ended before anything was certain."""
        return {"stable": self.certificates.get(ability)}

    def expect(self, job: Job) -> None:
        """Learn the sizes of the corpora and the channels that compete.

        Raises:
            ActError: a paired score of a run that is not paired, or batches of one's own.
        """
        if self.promise.score != "mean-abs" and not job.pair:
            raise ActError(f"stable score {self.promise.score!r} needs a pair run; a single one has mean-abs")
        if not job.corpora:
            raise ActError("until-stable needs a corpus: batches of one's own have no documents")
        self._sources = [
            _Source(name, corpus.source.size, corpus.encoder.ability_column is not None)
            for name, corpus in job.corpora.items()
        ]
        self._ranked = rankable(job.space, job.settings["exclude"])

    def before_run(self, run: Run) -> None:
        """Take over what a checkpoint held, now that the moments tell the device."""
        restored, self._restored = self._restored, {}
        if "certificates" in restored:
            self.certificates = json.loads(restored.pop("certificates").numpy().tobytes())
        for ability in run.moments:
            if f"{ability}.watch" in restored:
                self._watches[ability] = Watch.restored(restored[f"{ability}.watch"])
            prefix = f"{ability}.groups."
            groups = {name.removeprefix(prefix): x for name, x in restored.items() if name.startswith(prefix)}
            if "sums" in groups:
                self._groups[ability] = self._new_groups(run, ability)
                self._groups[ability].restore(groups)

    def after_batch(self, run: Run, batch: Batch) -> None:
        """At the end of a window, look at each ability that had a part in it."""
        after = batch.after
        if after is None or after.batch:
            return
        for ability in [name for name in run.moments if name not in run.stopped]:
            if ability not in self._groups:
                self._groups[ability], self._watches[ability] = self._new_groups(run, ability), Watch()
            watch, groups = self._watches[ability], self._groups[ability]
            total, count = quantity(run.moments[ability], self.promise.score)
            if groups.unchanged(count) or not groups.add(total, count):
                continue
            records, read = run.seen[ability].records, self._share(after, ability)
            if watch.certain(groups, self._ranked.to(groups.sums.device), self.promise, records, read):
                self.certificates[ability] = self._certificate(watch, groups, run.seen[ability], read)
                del self._groups[ability]  # as large as the moments
                run.stop(ability)

    def _new_groups(self, run: Run, ability: str) -> GroupedSums:
        device = run.moments[ability].arenas[0].device
        return GroupedSums(torch.tensor([site.width for site in run.space], device=device))

    @property
    def _mixed(self) -> bool:
        return len(self._sources) > 1 and any(source.labelled for source in self._sources)

    def _share(self, after: Position, ability: str) -> float:
        """Share read of the records that may be of this ability: its own corpus's and those with labels; 0: unknown."""
        read = size = 0
        for number, source in enumerate(self._sources):
            if source.labelled or source.ability == ability:
                if source.size is None:
                    return 0.0
                size += source.size
                read += source.size if number < after.corpus else after.record if number == after.corpus else 0
        return min(1.0, read / size) if size else 0.0

    def _certificate(self, watch: Watch, groups: GroupedSums, seen: Seen, read: float) -> dict[str, Any]:
        found = watch.found
        assert found is not None  # it just said that the promise is kept
        return {
            "method": METHOD,
            **asdict(self.promise),
            "channels": found.size,
            "certain_overlap": round(found.overlap, 6),
            "expected_overlap": round(1 - found.expected / found.size, 6),
            "chunks": groups.chunks,
            "groups": groups.groups,
            "documents": seen.records,
            "tokens": seen.counted,
            "corpus_share": round(read, 6) if read else None,
            "look": watch.looks,
            "error_of_look": error_of(watch.looks, 1 - self.promise.confidence),
            "assumes": "documents in random order" + (", over all corpora" if self._mixed else ""),
        }

    @property
    def stability(self) -> float | None:
        """The least certain overlap of the abilities looked at."""
        found = [watch.found for watch in self._watches.values() if watch.found]
        return min((each.overlap for each in found), default=None)

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        text = json.dumps(self.certificates).encode()
        result = {"certificates": torch.tensor(list(text), dtype=torch.uint8)}
        for ability, watch in self._watches.items():
            result[f"{ability}.watch"] = watch.state()
            if ability in self._groups:
                result |= {f"{ability}.groups.{name}": x for name, x in self._groups[ability].state().items()}
        return result

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`, once the run begins."""
        self._restored = dict(state)


def quantity(moments: Moments, score: StableScore) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums so far of what the score is the absolute mean of, float64 ``[N]``, and counts ``[sites]``."""
    arena = moments.arena
    if not moments.pair:
        block = arena
        total = arena[SUM_ABS].clone()
    else:
        donor, target, difference = (arena[PAIR.index(side)] for side in ("donor", "target", "difference"))
        block = difference
        if score == "paired":
            total = difference[SUM_ABS].clone()
        elif score == "mean-shift":
            total = difference[MEAN] * difference[COUNT]
        else:
            total = donor[SUM_ABS] - target[SUM_ABS]
    firsts = torch.tensor([site.offset for site in moments.space], device=arena.device)
    return total, block[COUNT][firsts]


def rankable(space: ChannelSpace, exclude: Any = ()) -> torch.Tensor:
    """Indices of the channels that compete: measured, and owners of their parameters."""
    return torch.cat(
        [
            torch.arange(site.offset, site.offset + site.width)
            for site in space
            if site.parameters and site.kind not in exclude
        ]
    )

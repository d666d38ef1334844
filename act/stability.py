"""When the top channels are certain: how far the top set of what was read can differ from that of the whole corpus.

A score here is ``|mean|`` of one quantity a channel (``|donor - target|`` for ``paired``). The corpus is read in chunks
of whole documents, so chunks are exchangeable (documents must be in random order) although tokens are not. Chunks are
gathered in 16 to 32 **groups**; with sums ``y_g`` and counts ``n_g`` of a channel, the mean is the ratio estimator
``r = sum y / sum n`` and its error is drawn from the residuals ``e_g = y_g - r n_g`` of all channels at once::

    mean of the whole corpus - r  ~  sqrt(1 - f) · sqrt(G / (G - 1)) · sum_g w_g e_g / sum n · sqrt(d / chi2_d)

with one standard normal ``w_g`` a group, shared by the channels, so that what makes channels rise and fall together
stays in; ``f`` is the share of the corpus that was read (what has been read cannot change any more: the finite
population correction), and the last factor, shared too, turns the normal into a t for the few groups. Each draw of the
means gives a top set; the number of channels of the present top set that it lacks is fitted by a gamma distribution,
whose upper quantile must stay within what the wanted overlap allows. Looks are taken each time the corpus read has
grown by a quarter, and share the error between them (Bonferroni over the looks that fit into the corpus;
``1 / (k (k + 1))`` where its size is not known), so that looking often does not make the promise weaker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import torch

from act.batching import Batch
from act.channels import ChannelSpace
from act.errors import ActError
from act.job import Job
from act.moments import Moments
from act.run import Observer, Run
from act_kernels import PAIR
from act_kernels.statistics import COUNT, MEAN, SUM_ABS

StableScore = Literal["paired", "mean-abs", "mean-shift"]

GROUPS = 16  # at least; at twice as many, neighbours become one
DRAWS = 200
GROWTH = 1.25  # of the corpus read, between two looks
LOOK_AHEAD = 128  # records a chunk
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
        if self.score not in get_args(StableScore):
            raise ActError(f"stable score is {self.score!r}; expected one of {', '.join(get_args(StableScore))}")
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
        expected: of them, channels expected not to be in the top set of the whole corpus.
        bound: at most as many are not in it, but for the error spent on this look.
        stable: whether the bound is within what the overlap allows.
    """

    size: int
    expected: float
    bound: float
    stable: bool

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
        site = torch.arange(len(self._widths), device=index.device).repeat_interleave(self._widths)[index]
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
        return Look(size, 0.0, 0.0, True)
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
        return Look(size, expected, expected, False)
    near = (distance <= FAR * spread).nonzero().flatten()
    places = size - int((inside & (distance > FAR * spread)).sum())
    if not 0 < places < len(near):
        return Look(size, 0.0, 0.0, True)
    errors = groups.errors(ranked[near])
    lost = _lost(means[near].float(), errors * rest, inside[near], places, seed)
    bound = _upper(lost, error)
    return Look(size, float(lost.mean()), bound, bound <= allowed)


def _spread(groups: GroupedSums, ranked: torch.Tensor) -> torch.Tensor:
    """The standard error of each channel's mean, float64 ``[len(ranked)]``, in pieces to spare memory."""
    return torch.cat([groups.errors(part).double().square().sum(0).sqrt() for part in ranked.split(1 << 20)])


def _lost(means: torch.Tensor, errors: torch.Tensor, inside: torch.Tensor, places: int, seed: int) -> torch.Tensor:
    """For each draw, how many channels of the present top set are not in its own, float64 ``[DRAWS]``."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(DRAWS, len(errors), generator=generator, dtype=torch.float64)
    # Wilson and Hilferty again, for chi2 over its degrees of freedom: those need not be whole.
    part = 2 / (9 * _freedom(errors))
    scale = (1 - part + math.sqrt(part) * torch.randn(DRAWS, 1, generator=generator, dtype=torch.float64)).clamp_min(
        0.1
    )
    weights = (weights / scale**1.5).to(errors)
    lost = torch.empty(DRAWS, dtype=torch.float64)
    for draw in range(DRAWS):
        scores = (means + weights[draw] @ errors).abs()
        least = scores.kthvalue(len(scores) - places + 1).values
        lost[draw] = int((inside & (scores < least)).sum())
    return lost


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


def _upper(values: torch.Tensor, error: float) -> float:
    """The upper quantile of non-negative values: of the gamma distribution with their mean and variance
    (Wilson and Hilferty), and no less than what the values themselves show."""
    mean, variance = float(values.mean()), float(values.var())
    empirical = float(values.quantile(1 - max(error, 1 / len(values))))
    if variance == 0:
        return mean
    shape = mean**2 / variance
    z = NormalDist().inv_cdf(1 - error)
    cube = 1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))
    return max(empirical, mean * max(cube, 0.0) ** 3)


def error_of(number: int, first_read: float, error: float) -> float:
    """What the ``number``-th look (from 1) may spend, where ``first_read`` of the corpus was read at the first one."""
    if not 0 < first_read < 1:
        return error / (number * (number + 1))
    return error / max(1, math.floor(math.log(1 / first_read) / math.log(GROWTH)) + 1)


class UntilStable(Observer):
    """Stops an ability when its top set is as certain as promised, and writes the certificate.

    Args:
        promise: what must be certain, of each ability by itself.

    Attributes:
        certificates: by ability, plain data; an ability whose corpus ended first has none.
        looks: the last one of each ability.
    """

    def __init__(self, promise: Promise) -> None:
        self.promise = promise
        self.certificates: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, Look] = {}
        self._groups: dict[str, GroupedSums] = {}
        self._schedule: dict[str, list[float]] = {}  # looks so far, documents at the next, share read at the first
        self._sizes: list[int | None] = []
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
        self._sizes = [corpus.source.size for corpus in job.corpora.values()]
        self._ranked = rankable(job.space, job.settings["exclude"])

    def after_batch(self, run: Run, batch: Batch) -> None:
        """At the end of a window, look at each ability that had a part in it."""
        after = batch.after
        if after is None or after.batch:
            return
        size = self._sizes[after.corpus]
        for ability in [name for name in run.moments if name not in run.stopped]:
            total, count = quantity(run.moments[ability], self.promise.score)
            if ability not in self._groups:
                self._groups[ability] = self._new_groups(run.space, count.device, ability)
            groups = self._groups[ability]
            if groups.unchanged(count) or not groups.add(total, count) or groups.groups < GROUPS:
                continue
            self._look(run, ability, min(1.0, after.record / size) if size else 0.0)

    def _new_groups(self, space: ChannelSpace, device: torch.device, ability: str) -> GroupedSums:
        groups = GroupedSums(torch.tensor([site.width for site in space], device=device))
        prefix = f"{ability}."
        restored = {name.removeprefix(prefix): x for name, x in self._restored.items() if name.startswith(prefix)}
        if restored:
            groups.restore(restored)
            self._schedule[ability] = restored["schedule"].tolist()
        return groups

    def _look(self, run: Run, ability: str, read: float) -> None:
        seen, groups = run.seen[ability], self._groups[ability]
        number, due, first_read = self._schedule.get(ability, [0.0, 0.0, 0.0])
        first_read = first_read if number else read
        if seen.records < due:
            return
        number += 1
        self._schedule[ability] = [number, GROWTH * seen.records, first_read]
        error = error_of(int(number), first_read, 1 - self.promise.confidence)
        ranked = self._ranked.to(groups.sums.device)
        found = self.looks[ability] = look(groups, ranked, self.promise, read=read, error=error, seed=int(number))
        if found.stable:
            self.certificates[ability] = {
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
                "look": int(number),
                "error_of_look": error,
                "assumes": "documents in random order",
            }
            run.stop(ability)

    @property
    def stability(self) -> float | None:
        """The least certain overlap of the abilities looked at."""
        return min((each.overlap for each in self.looks.values()), default=None)

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {
            f"{ability}.{name}": x
            for ability, groups in self._groups.items()
            for name, x in (
                groups.state()
                | {"schedule": torch.tensor(self._schedule.get(ability, [0.0, 0.0, 0.0]), dtype=torch.float64)}
            ).items()
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`."""
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

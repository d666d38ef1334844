"""How far the top channels of the text read so far can differ from those of the whole corpus.

A score here is ``|mean|`` of one quantity per channel (``|donor - target|`` for ``paired``), or the mean itself (for
``attribution``); ``match`` is made of several (:mod:`act.profiling.benefits`). The corpus is read in chunks of whole
documents, so chunks are exchangeable (documents must be in random order) although tokens are not. They are gathered in
16 to 32 **groups**; with sums ``y_g`` and counts ``n_g`` of a channel, the mean is the ratio estimator ``r = sum y /
sum n``, and its error is drawn from the means ``r_(g)`` without one of the groups, of all channels at once (the
delete-a-group jackknife)::

    mean of the whole corpus - r  ~  sqrt(1 - f) · sum_g w_g e_g · sqrt(d / chi2_d)
    e_g  =  sqrt((G - 1) / G) · (r_(g) - mean of all r_(g))

with one standard normal ``w_g`` per group, shared by all channels, which keeps their correlations. Where groups count
alike, ``e_g`` is the error of residuals, ``sqrt(G / (G - 1)) (y_g - r n_g) / sum n``. Where one group has nearly all
that was counted, as of an expert that few texts reach, residuals would be 0 and say nothing; without a group that has
all of it, the mean is taken for 0. ``f`` is the share of the corpus that was read: what has been read cannot change
any more (the finite population correction). The last factor, also shared, turns the normal into a t distribution,
because there are few groups. Each draw of the means gives a top set, and the number of channels of the present top
set that are not in it. If the result of the whole corpus is one more such draw, its rank among all of them is
uniform: the number of channels that the whole corpus replaces exceeds the ``floor(a · (draws + 1))``-th largest
number drawn with a probability of at most ``a``.

Where very many channels are ranked, a look is at a random sample of them, at least :data:`SAMPLE`, drawn before any
text is read. Each draw's number of replaced channels is then that in the sample divided by its share, with the error of
sampling drawn into it: a gamma variable with the mean and at least the variance of that number. This error is a few per
cent, beside the 18 per cent or so by which draws from 16 groups vary anyway, so that a run reads hardly more; and of 32
million channels, sums of all would take 30 times the memory and the time.

This is a group-sequential test: checking repeatedly must not raise the error, so the checks share it. The ``k``-th one
may spend ``1 / (k (k + 1))`` of it, half at the first. A check without a chance would waste its share. Each check is
therefore planned before its data is read, from a prediction that scales the present draws to a longer text. A
prediction alone never ends a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any, Literal, Protocol, get_args

import torch
from pydantic import Field, TypeAdapter

from act.core.errors import ActError, option, require_choice
from act.core.plain import Flag, Natural, Positive, checked
from act.core.tensor_files import taken
from act.profiling.defaults import STABLE_CONFIDENCE, STABLE_OVERLAP, STABLE_TOP

StableScore = Literal["paired", "mean-abs", "mean-shift", "match", "attribution"]

GROUPS = 16  # at least; once there are twice as many, neighbours are joined
Records = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
DRAWS = 200, 2000  # at least, and at most where few channels are near the threshold
WORK = 1 << 22  # numbers drawn per check, unless the fewest draws need more
GROWTH = 1.1, 1.25  # of the text read, between two checks: at least, and at most
_PIECE = 1 << 18  # channels whose errors are computed at once
FAR = 8.0  # standard errors from the threshold beyond which a channel is certain
SAMPLE = 1 << 20  # channels that are looked at, unless fewer are ranked; more where few may be replaced
LOST = 256  # channels of the sample that may be replaced, at least


@dataclass(frozen=True)
class Criterion:
    """When a run may stop: the top channels by ``score`` overlap those of the whole corpus, with this confidence.

    Args:
        score: the score that ranks the channels.
        top: size of the top set, as a share of the channels.
        overlap: share of the top set that must also be in the top set of the whole corpus.
        confidence: probability with which that overlap must hold.

    Raises:
        ActError: an unknown score, or a share, overlap or confidence out of range.
    """

    score: StableScore = "paired"
    top: float = STABLE_TOP
    overlap: float = STABLE_OVERLAP
    confidence: float = STABLE_CONFIDENCE

    def __post_init__(self) -> None:
        require_choice("stable score", self.score, get_args(StableScore))
        if not 0 < self.top < 1:
            name = option("--stable-top", "stable top")
            raise ActError(f"{name} is {self.top:.4g}; expected a share of the channels above 0 and below 1")
        if not 0 < self.overlap <= 1:
            raise ActError(f"stable overlap is {self.overlap}; expected more than 0 and at most 1")
        if not 0.5 <= self.confidence < 1:
            raise ActError(f"stable confidence is {self.confidence}; expected at least 0.5 and less than 1")

    def scores(self, means: torch.Tensor) -> torch.Tensor:
        """The scores of channels whose quantities have these means."""
        return means if self.score in ("attribution", "match") else means.abs()


@dataclass(frozen=True)
class Check:
    """How certain the top set was at one check.

    Attributes:
        size: channels in the top set.
        allowed: how many of them the criterion allows to be missing from the top set of the whole corpus.
        expected: how many are expected to be missing.
        variance: variance of that number.
        bound: more are missing only with the probability that this check may spend.
    """

    size: int
    allowed: int
    expected: float = 0.0
    variance: float = 0.0
    bound: float = 0.0

    @property
    def stable(self) -> bool:
        """Whether the bound is within what the criterion allows."""
        return self.bound <= self.allowed

    @property
    def overlap(self) -> float:
        """The share of the top set that is certain."""
        return max(0.0, 1 - self.bound / self.size)


class GroupedSums:
    """Sums of one quantity per channel over groups of chunks, ``[G, K]`` float32 with G up to ``2 * GROUPS``.

    Args:
        widths: number of channels of each site, int64; all channels of a site share a count.
        channels: sorted flat indices of the ``K`` channels that are looked at, int64; None: all.
        ranked: number of ranked channels that they are a sample of; None: ``K``.

    Attributes:
        channels, ranked: as given.
        sums: float32 ``[2 * GROUPS, K]``; rows from ``groups`` on are zero.
        counts: float64 ``[2 * GROUPS, sites]``.
        groups: number of complete groups.
        chunks: number of chunks seen so far.
    """

    def __init__(self, widths: torch.Tensor, channels: torch.Tensor | None = None, ranked: int | None = None) -> None:
        device, sites = widths.device, len(widths)
        ends = widths.cumsum(0)
        channels = torch.arange(int(ends[-1]), device=device) if channels is None else channels.to(device)
        self.channels, self.ranked = channels, len(channels) if ranked is None else ranked
        self._site = torch.bucketize(channels, ends, right=True)
        self.sums = torch.zeros(2 * GROUPS, len(channels), dtype=torch.float32, device=device)
        self.counts = torch.zeros(2 * GROUPS, sites, dtype=torch.float64, device=device)
        self._total = torch.zeros(len(channels), dtype=torch.float64, device=device)
        self._count = torch.zeros(sites, dtype=torch.float64, device=device)
        self.groups = self.chunks = 0
        self._per_group = 1

    def __len__(self) -> int:
        """Number of channels that are looked at."""
        return len(self._site)

    @property
    def counted(self) -> torch.Tensor:
        """How often each channel was counted so far, float64 ``[K]``."""
        return self._count[self._site]

    def unchanged(self, count: torch.Tensor) -> bool:
        """Whether nothing was counted since the last group ended, because only other abilities were read."""
        return torch.equal(count, self._count)

    def add(self, total: torch.Tensor, count: torch.Tensor) -> bool:
        """End a chunk, given the float64 sums ``[K]`` and counts ``[sites]`` of all chunks so far.

        Returns:
            Whether a group ended with this chunk.
        """
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
        """The mean of each channel, float64 ``[K]``; NaN where nothing was counted."""
        return self._total / self._count[self._site]

    def errors(self, index: torch.Tensor | slice) -> torch.Tensor:
        """``e_g`` of some channels, float32 ``[G, n]``; the squares sum to a variance."""
        site = self._site[index]
        mean = (self._total[index] / self._count[site]).nan_to_num()
        result = torch.empty(self.groups, len(site), dtype=torch.float32, device=site.device)
        for group in range(self.groups):  # one at a time: no float64 copy of all groups
            result[group] = self.without(group, index).nan_to_num() - mean
        return result.sub_(result.mean(0)).mul_(math.sqrt((self.groups - 1) / self.groups))

    def without(self, group: int, index: torch.Tensor | slice) -> torch.Tensor:
        """The means of some channels over all groups but one, float64 ``[n]``; NaN where nothing else was counted."""
        site = self._site[index]
        count = self._count[site] - self.counts[group][site]
        return ((self._total[index] - self.sums[group][index]) / count).where(count > 0, torch.nan)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {name: x.cpu() for name, x in self._tensors().items()} | {
            "numbers": [self.groups, self.chunks, self._per_group]
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned; raises ValueError if it does not fit."""
        for name, x in self._tensors().items():
            x.copy_(taken(state, name, (x.dtype,), tuple(x.shape)))
        self.groups, self.chunks, self._per_group = checked(_NUMBERS, state["numbers"])

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"sums": self.sums, "counts": self.counts, "total": self._total, "count": self._count}


class Estimates(Protocol):
    """What a check looks at: the estimates of some quantity per channel, and errors that are drawn from groups."""

    @property
    def ranked(self) -> int:
        """Number of ranked channels that those here are a sample of."""

    @property
    def groups(self) -> int:
        """Number of complete groups ``G``."""

    def __len__(self) -> int:
        """Number of channels that are looked at."""

    def means(self) -> torch.Tensor:
        """The estimate of each channel, float64 ``[K]``."""

    def errors(self, index: torch.Tensor | slice) -> torch.Tensor:
        """What each group adds to the error of some channels, float32 ``[G, n]``; the squares sum to a variance."""


_NUMBERS = TypeAdapter(tuple[Annotated[int, Field(strict=True, ge=0, le=2 * GROUPS)], Natural, Positive])


def sample(ranked: torch.Tensor, criterion: Criterion) -> torch.Tensor:
    """The channels to look at, sorted: all that are ranked, or one at random of each of as many equal runs of them.

    Args:
        ranked: sorted flat indices, int64 ``[R]``.
    """
    _, allowed = _size_of(criterion, len(ranked))
    size = max(SAMPLE, math.ceil(len(ranked) * LOST / max(1, allowed)))
    if size >= len(ranked):
        return ranked
    edges = torch.arange(size + 1) * len(ranked) // size
    offset = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ranked[edges[:-1] + (offset * edges.diff()).long()]


def _size_of(criterion: Criterion, ranked: int) -> tuple[int, int]:
    """How many of so many channels are the top set, and how many of these may be replaced."""
    size = max(1, round(criterion.top * ranked))
    return size, math.floor((1 - criterion.overlap) * size + 1e-9)


def check(
    groups: Estimates, criterion: Criterion, *, read: float = 0.0, error: float | None = None, seed: int = 0
) -> Check:
    """How certain the top set is.

    Args:
        groups: at least two; a run waits for :data:`GROUPS`.
        criterion: when the top set counts as certain.
        read: share of the corpus that was read; 0 if its size is unknown.
        error: the probability of a wrong answer that this check may spend; None: all of it.
        seed: seed of the draws.
    """
    error = 1 - criterion.confidence if error is None else error
    size, allowed = _size_of(criterion, groups.ranked)
    rest = math.sqrt(max(0.0, 1 - read))
    if size == groups.ranked or rest == 0:
        return Check(size, allowed)
    share, size_here = len(groups) / groups.ranked, _size_of(criterion, len(groups))[0]
    means = groups.means()
    scores = criterion.scores(means).nan_to_num(nan=-1.0)
    top = scores.topk(size_here + 1).values
    threshold = (top[-2] + top[-1]) / 2
    spread = _spread(groups) * rest
    distance = (scores - threshold).abs()
    wrong = torch.special.ndtr(-(distance / spread.clamp_min(torch.finfo(torch.float64).tiny)))
    inside = scores > top[-2]
    inside[(scores == top[-2]).nonzero().flatten()[: size_here - int(inside.count_nonzero())]] = True
    expected = float(wrong[inside].sum()) / share
    if expected > allowed:  # draws could only confirm this
        return Check(size, allowed, expected, expected, expected)
    near = (distance <= FAR * spread).nonzero().flatten()
    places = size_here - int((inside & (distance > FAR * spread)).sum())
    if not 0 < places < len(near):
        return Check(size, allowed)
    generator = torch.Generator().manual_seed(seed)
    lost = _lost(criterion, means[near].float(), groups.errors(near) * rest, inside[near], places, generator)
    if share < 1:
        lost = _among_all(lost, share, generator)
    return Check(size, allowed, float(lost.mean()), float(lost.var()), _upper(lost, error))


def _spread(groups: Estimates) -> torch.Tensor:
    """The standard error of each channel's estimate, float64 ``[K]``, computed in pieces to save memory."""
    pieces = [groups.errors(slice(start, start + _PIECE)) for start in range(0, len(groups), _PIECE)]
    return torch.cat([piece.double().square().sum(0).sqrt() for piece in pieces])


def _lost(
    criterion: Criterion,
    means: torch.Tensor,
    errors: torch.Tensor,
    inside: torch.Tensor,
    places: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """How many channels of the present top set are replaced in each draw, float64 ``[draws]`` on the CPU."""
    draws = max(DRAWS[0], min(DRAWS[1], WORK // len(means)))
    weights = torch.randn(draws, len(errors), generator=generator, dtype=torch.float64)
    # Wilson and Hilferty (1931), for chi2 over its degrees of freedom, which need not be whole.
    part = 2 / (9 * _freedom(errors))
    normal = torch.randn(draws, 1, generator=generator, dtype=torch.float64)
    weights = (weights / (1 - part + math.sqrt(part) * normal).clamp_min(0.1) ** 1.5).to(errors)
    lost = []
    for some in torch.split(weights, max(1, WORK // len(means))):
        scores = criterion.scores(means + some @ errors)
        least = scores.kthvalue(len(means) - places + 1, dim=1, keepdim=True).values
        lost.append((inside & (scores < least)).sum(1))
    return torch.cat(lost).double().cpu()


def _among_all(lost: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Numbers replaced among all channels, drawn from those in a sample of that share of them."""
    normal = torch.randn(len(lost), generator=generator, dtype=torch.float64)
    shape = (lost + 1) / (1 - share)
    cube = 1 - 1 / (9 * shape) + normal / (3 * shape.sqrt())  # Wilson and Hilferty again
    return (lost + 1) / share * cube.clamp_min(0) ** 3


def _freedom(errors: torch.Tensor) -> float:
    """Degrees of freedom of the size of the errors: ``G - 1``, times the number of dimensions in which channels vary.

    That number is ``(tr S)^2 / tr S^2`` of their covariance ``S`` (Satterthwaite), with ``tr S^2`` from the products of
    different groups; many channels that vary independently show the size of the errors better than one.
    """
    count = len(errors)
    errors = errors / errors.square().sum(0).sqrt().clamp_min(torch.finfo(errors.dtype).tiny)
    gram = (errors @ errors.T).double()
    trace = gram.trace()
    products = gram - torch.diag(gram.diagonal()) + trace / (count * (count - 1)) * (1 - torch.eye(count).to(gram))
    squares = products.square().sum() * count / (count - 1)
    return (count - 1) * max(1.0, float(trace**2 / squares.clamp_min(1e-300)))


def _upper(lost: torch.Tensor, error: float) -> float:
    """The number that one more draw of the same kind exceeds with a probability of at most ``error``.

    Exact, because the rank of that draw among all draws is uniform; a gamma quantile if there are too few draws.
    """
    above = math.floor(error * (len(lost) + 1) + 1e-9)
    return float(lost.topk(above).values[-1]) if above else _gamma(float(lost.mean()), float(lost.var()), error)


def _gamma(mean: float, variance: float, error: float) -> float:
    """The upper quantile of the gamma distribution with that mean and variance (Wilson and Hilferty, 1931)."""
    if variance == 0:
        return mean
    shape = mean**2 / variance
    cube = 1 - 1 / (9 * shape) + NormalDist().inv_cdf(1 - error) / (3 * math.sqrt(shape))
    return mean * max(cube, 0.0) ** 3


def growth(found: Check, read: float, error: float) -> float:
    """The predicted factor by which the text read must grow before a check that may spend ``error`` succeeds.

    Errors, and with them the numbers of channels replaced, shrink with the square root of what is read and of what is
    left. The factor is at least ``GROWTH[0]``; ``GROWTH[1]`` means that or more.
    """
    least, most = GROWTH
    factors: list[float] = torch.linspace(least, most, 16, dtype=torch.float64).tolist()
    for factor in factors:
        if factor * read >= 1:
            return factor
        shrunk = math.sqrt((1 - factor * read) / (1 - read) / factor)
        # Numbers of channels are whole: half a channel too many rounds down.
        if _gamma(found.expected * shrunk, found.variance * shrunk, error) < found.allowed + 0.5:
            return factor
    return most


def error_of(number: int, error: float) -> float:
    """The error that the ``number``-th check (from 1) may spend; all checks together spend ``error``."""
    return error / (number * (number + 1))


@dataclass
class SequentialTest:
    """Decides when to check the top set of one ability, and whether it is certain.

    Only a check that is predicted to succeed spends a part of the error; a prediction alone never ends a run.

    Attributes:
        checks: number of checks so far.
        due: number of records at which the next check or prediction is made.
        planned: whether it will be a check.
        found: the result of the last check or prediction.
    """

    checks: Natural = 0
    due: Records = 0.0
    planned: Flag = False
    found: Check | None = None

    def is_due(self, groups: Estimates, records: int) -> bool:
        """Whether there are enough groups, and enough records have been read, for the next check or prediction."""
        return groups.groups >= GROUPS and records >= self.due

    def certain(self, groups: Estimates, criterion: Criterion, records: int, read: float) -> bool:
        """Whether the criterion is met; called when a group has ended and this :meth:`is_due`.

        Args:
            groups, criterion, read: see :func:`check`.
            records: number of records read so far.
        """
        error = 1 - criterion.confidence
        found = self.found = check(
            groups, criterion, read=read, error=error_of(self.checks + 1, error), seed=self.checks
        )
        if self.planned:
            self.checks += 1
            if found.stable:
                return True
        factor = growth(found, read, error_of(self.checks + 1, error))
        self.planned, self.due = factor < GROWTH[1], factor * records
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep: everything except :attr:`found`."""
        return {"checks": self.checks, "due": self.due, "planned": self.planned}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned; raises ValueError for other data."""
        given = checked(_TEST, dict(state))
        self.checks, self.due, self.planned = given.checks, given.due, given.planned


_TEST = TypeAdapter(SequentialTest)

"""What scores and channel sets say about abilities: concentration, overlap and necessity.

Pure functions of score vectors (float64 ``[N]``, NaN where a channel has no score) and of channel sets.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from act.core.errors import ActError
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.models.sites import Site
from act.models.views import language_view
from act.profiles.profile import PairProfile, Profile
from act.profiles.statistics import Statistics
from act.ranking.channel_set import ChannelSet
from act.ranking.selection import best
from act.taps.attachments import Attachments
from act.taps.filled import fill_held
from act.taps.probed import Probed

CONFIDENCE = 0.95
_Z = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Overlap:
    """Two sets of channels against chance: both drawn at random from the same ``population`` channels.

    Attributes:
        one, other, both: channels in each set, and in both.
        jaccard: channels in both, over channels in either.
        coefficient: channels in both, over the smaller set.
        jaccard_low, jaccard_high: 95 % interval of the Jaccard overlap, from Wilson's interval of ``coefficient``, as
            if channels were chosen independently (those of one head or neuron are not, so it tends to be too narrow).
        chance: expected Jaccard overlap of random sets (at the expected number in both).
        chance_low, chance_high: the central 95 % of random sets, exact (hypergeometric).
        p_value: probability that random sets share at least as many channels.
    """

    one: int
    other: int
    both: int
    population: int
    jaccard: float
    coefficient: float
    jaccard_low: float
    jaccard_high: float
    chance: float
    chance_low: float
    chance_high: float
    p_value: float


def overlap(one: torch.Tensor, other: torch.Tensor, population: int) -> Overlap:
    """The :class:`Overlap` of two vectors of distinct flat indices; raises ActError for an empty set.

    >>> from act.ranking.analysis import overlap
    >>> found = overlap(torch.arange(10), torch.arange(5, 15), population=1000)
    >>> found.both, round(found.jaccard, 3), found.p_value < 1e-6
    (5, 0.333, True)
    """
    a, b = len(one), len(other)
    if not a or not b or max(a, b) > population:
        raise ActError(f"cannot compare sets of {a} and {b} of {population} channels; expected 1 to {population}")
    return _overlap(a, b, int(torch.isin(one, other).sum()), population)


def _overlap(a: int, b: int, both: int, population: int) -> Overlap:
    """The :class:`Overlap` of sets of these sizes that share ``both``."""

    def jaccard(shared: float) -> float:
        return shared / (a + b - shared)

    low, high = _wilson(both, min(a, b))
    chance = _chance(a, b, population)
    return Overlap(
        a,
        b,
        both,
        population,
        jaccard(both),
        both / min(a, b),
        jaccard(low * min(a, b)),
        jaccard(high * min(a, b)),
        jaccard(a * b / population),
        jaccard(chance.low),
        jaccard(chance.high),
        chance.at_least(both),
    )


def _wilson(hits: int, trials: int) -> tuple[float, float]:
    share, z2 = hits / trials, _Z**2 / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / trials + z2 / trials / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class _Chance:
    """What two random sets share: from ``least`` on, ``tail[i]`` is the probability of ``least + i`` or more."""

    least: int
    low: int
    high: int
    tail: np.ndarray

    def at_least(self, shared: int) -> float:
        """The probability that they share as many."""
        place = shared - self.least
        return float(min(1.0, self.tail[place])) if place < len(self.tail) else 0.0


@functools.lru_cache(maxsize=16)  # sets of one size are compared by the hundred
def _chance(a: int, b: int, population: int) -> _Chance:
    """What random sets of ``a`` and ``b`` share, exactly (hypergeometric), with the central 95 %."""
    least = max(0, a + b - population)
    shared = torch.arange(least, min(a, b) + 1, dtype=torch.float64)

    def log_choose(n: torch.Tensor | float, k: torch.Tensor | float) -> torch.Tensor:
        n, k = torch.as_tensor(n, dtype=torch.float64), torch.as_tensor(k, dtype=torch.float64)
        return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)

    log = log_choose(a, shared) + log_choose(population - a, b - shared) - log_choose(population, b)
    probability = (log.exp() / log.exp().sum()).numpy()
    upto, tail = probability.cumsum(), (1 - CONFIDENCE) / 2
    low, high = (least + min(int(np.searchsorted(upto, p)), len(upto) - 1) for p in (tail, 1 - tail))
    return _Chance(least, low, high, probability[::-1].cumsum()[::-1])


def top_channels(score: torch.Tensor, share: float) -> torch.Tensor:
    """Sorted flat indices of the top share of the channels that have a score, at least one.

    >>> from act.ranking.analysis import top_channels
    >>> top_channels(torch.tensor([3.0, float("nan"), 1.0, 2.0, 5.0]).double(), 0.5)
    tensor([0, 4])
    """
    return best(score, max(1, round(share * _scored(score))))


def overlaps(
    scores: Mapping[str, torch.Tensor], shares: Sequence[float], pairs: Iterable[tuple[str, str]] | None = None
) -> Iterator[tuple[float, str, str, Overlap]]:
    """Share, both names, and the overlap of the top sets, for every share and pair of scores, or some of the ``pairs``.

    Between scores of one ability (disjoint texts, other seeds, smaller corpora) this is its **stability**; between
    abilities, one minus it is their **disentanglement**. Only channels with both scores count.

    >>> from act.ranking.analysis import overlaps
    >>> scores = {"math": torch.arange(8).double(), "code": torch.arange(8).double().flip(0)}
    >>> [(one, other, found.both) for _, one, other, found in overlaps(scores, [0.25])]
    [('math', 'code', 0)]
    """
    missing = {name: score.isnan() for name, score in scores.items()}
    alike = {name: next(one for one in missing if torch.equal(missing[one], missing[name])) for name in missing}
    known = {name: _scored(score) for name, score in scores.items()}
    pairs = list(itertools.combinations(scores, 2) if pairs is None else pairs)
    for share in shares:
        tops = {name: top_channels(score, share) for name, score in scores.items()}
        held = {name: torch.zeros_like(missing[name]).index_fill(0, top, True) for name, top in tops.items()}
        for one, other in pairs:
            if alike[one] == alike[other]:
                a, b = tops[one], tops[other]
                yield share, one, other, _overlap(len(a), len(b), int(held[one][b].sum()), known[one])
                continue
            unscored = missing[one] | missing[other]
            a, b = (top_channels(scores[name].masked_fill(unscored, math.nan), share) for name in (one, other))
            yield share, one, other, overlap(a, b, int((~unscored).sum()))


def jaccard_matrix(sets: Sequence[torch.Tensor]) -> list[list[float]]:
    """The Jaccard overlap of every two of some vectors of distinct flat indices, none empty.

    >>> from act.ranking.analysis import jaccard_matrix
    >>> jaccard_matrix([torch.tensor([0, 1]), torch.tensor([1, 2, 3])])
    [[1.0, 0.25], [0.25, 1.0]]
    """
    found = [[1.0] * len(sets) for _ in sets]
    held = torch.zeros(1 + max((int(one.max()) for one in sets), default=0), dtype=torch.bool)
    for row, one in enumerate(sets):
        held[one] = True
        for column, other in enumerate(sets[:row]):
            both = int(held[other].sum())
            found[row][column] = found[column][row] = both / (len(one) + len(other) - both)
        held[one] = False
    return found


@dataclass(frozen=True)
class Concentration:
    """How unevenly a score is spread over channels.

    Attributes:
        gini: 0 if all channels have the same score, close to 1 if one channel has all of it.
        above_tenth: share of channels above a tenth of the largest score.
        thresholds, above: the complementary CDF: share of channels above each threshold.
    """

    gini: float
    above_tenth: float
    thresholds: list[float]
    above: list[float]


def concentration(score: torch.Tensor, points: int = 200) -> Concentration:
    """The concentration of the finite scores, none below 0; thresholds are spaced evenly in the logarithm.

    Raises:
        ActError: a score is below 0, as in a contrast, or none is above 0.

    >>> from act.ranking.analysis import concentration
    >>> concentration(torch.tensor([0.0, 0.0, 0.0, 4.0]).double()).gini
    0.75
    """
    values = score[score.isfinite()].sort().values
    if not len(values) or values[0] < 0 or values[-1] == 0:
        raise ActError(
            "concentration needs scores of 0 or more, at least one above 0; use a plain score instead of a contrast"
        )
    n = len(values)
    place = torch.arange(1, n + 1, dtype=torch.float64)
    gini = float(2 * (place * values).sum() / (n * values.sum()) - (n + 1) / n)
    least = values[values > 0][0].log()
    thresholds = torch.linspace(float(least), float(values[-1].log()), points, dtype=torch.float64).exp()
    above = (n - torch.searchsorted(values, thresholds, right=True)).double() / n
    tenth = (n - int(torch.searchsorted(values, values[-1] / 10, right=True))) / n
    return Concentration(gini, tenth, thresholds.tolist(), above.tolist())


@dataclass(frozen=True)
class Curve:
    """The channels from the highest score down, at shares spaced evenly in the logarithm; each point is exact.

    Attributes:
        shares: share of the channels that have a score.
        scores: the lowest score among as many of the best channels.
        held: the share of the sum of positive scores that these hold.
    """

    shares: list[float]
    scores: list[float]
    held: list[float]


def curve(score: torch.Tensor, points: int = 120) -> Curve:
    """The curve of the finite scores, none below 0, from one channel to all of them.

    Raises:
        ActError: no score is above 0.

    >>> from act.ranking.analysis import curve
    >>> curve(torch.tensor([6.0, 2.0, 1.0, 1.0]).double()).held
    [0.6, 0.8, 0.9, 1.0]
    """
    values = score[score.isfinite()].clamp(min=0).sort(descending=True).values
    if not len(values) or values[0] == 0:
        raise ActError("no channel has a score above 0")
    places = np.unique(np.geomspace(1, len(values), points).round().astype(np.int64)) - 1
    taken = torch.from_numpy(places)
    sums = values.cumsum(0)
    shares = (places + 1) / len(values)
    return Curve(shares.tolist(), values[taken].tolist(), (sums[taken] / sums[-1]).tolist())


def shares_by(score: torch.Tensor, space: ChannelSpace, key: Callable[[Site], str]) -> dict[str, dict[str, float]]:
    """For every group of sites: share of the channels that have a score, and of the sum of positive scores."""
    channels, mass = dict[str, float](), dict[str, float]()
    known = score.isfinite()
    positive = score.where(known, 0.0).clamp(min=0)
    starts = [site.offset for site in space]
    counts, sums = (np.add.reduceat(each.numpy(), starts, dtype=np.float64).tolist() for each in (known, positive))
    for site, count, sum_ in zip(space, counts, sums, strict=True):
        group = key(site)
        channels[group] = channels.get(group, 0) + int(count)
        mass[group] = mass.get(group, 0) + sum_
    total, sum_ = max(1, int(known.sum())), float(positive.sum()) or 1.0
    return {group: {"channels": channels[group] / total, "score": mass[group] / sum_} for group in channels}


def score_held(score: torch.Tensor, shares: Sequence[float]) -> list[float]:
    """Share of the sum of positive scores that the top channels hold, for each share of the channels.

    Raises:
        ActError: no score is above 0.

    >>> from act.ranking.analysis import score_held
    >>> score_held(torch.tensor([6.0, 2.0, 1.0, 1.0]).double(), [0.25, 0.5])
    [0.6, 0.8]
    """
    values = score[score.isfinite()].clamp(min=0).sort(descending=True).values
    if not len(values) or values[0] == 0:
        raise ActError("no channel has a score above 0")
    held = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return [float(held[max(1, round(share * len(values)))] / held[-1]) for share in shares]


@contextlib.contextmanager
def ablated(model: nn.Module, channels: ChannelSet, profile: Profile) -> Iterator[None]:
    """Over the block, the outputs of ``channels`` in ``model`` are their means in ``profile``, whatever the input.

    Mean ablation removes what depends on the input and keeps the channel's constant part. The model must be one of the
    profile's (donor or target of a pair). Its forward is restored when the block ends.

    Raises:
        ActError: a model that is not the profile's, a set of another architecture, channels without a mean, or of a
            module that returns several tensors or channels in groups.
    """
    difference = channels.space.first_difference(profile.space)
    if difference:
        raise ActError(f"the channel set and the profile are of different architectures: {difference}")
    mean = _statistics_of(model, profile).mean
    if mean[channels.index].isnan().any():
        raise ActError("some channels of the set were never counted in the profile, so they have no mean to take")
    fills = {site.name: (rows, mean[rows + site.offset]) for site, rows in channels.space.split(channels.index)}
    model = language_view(model)
    holders = Probed.of(model, profile.space).holders
    attachments = Attachments(model)
    try:
        held = fill_held(attachments, holders, fills)
        for name in fills.keys() - held:
            if source := profile.space.site(name).scales:
                raise ActError(f"{name} gives nothing that could be set: it scales {source}; exclude it")
            layouts = profile.space.site(name).layouts
            if any(layout.item is not None or layout.groups > 1 for layout in layouts):
                raise ActError(f"{name} gives {layouts[0]}, in which channels cannot be set; exclude it")
            columns = any(layout.columns is not None for layout in layouts)
            rows, values = fills[name]
            site = profile.space.site(name)
            attachments.after(site.module, _filling(site.outputs(rows), values, dim=-2 if columns else -1))
        yield
    finally:
        attachments.remove()


def _statistics_of(model: nn.Module, profile: Profile) -> Statistics:
    found = fingerprint(model)
    for side, measured in profile.provenance.models.items():
        if measured.fingerprint == found:
            return getattr(profile, side) if isinstance(profile, PairProfile) else profile
    raise ActError(f"the model ({found}) is not one that the profile measured; ablate with the profile's own models")


def _filling(rows: torch.Tensor, fill: torch.Tensor, dim: int) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, args: object, kwargs: object, output: torch.Tensor) -> torch.Tensor:
        last = output.movedim(dim, -1)
        values = fill.to(output.device, output.dtype).expand(*last.shape[:-1], len(rows))
        return last.index_copy(-1, rows.to(output.device), values).movedim(-1, dim)

    return hook


def necessity(
    model: nn.Module, sets: Mapping[str, ChannelSet], profile: Profile, loss: Callable[[nn.Module], float]
) -> dict[str, float]:
    """The loss of the whole model (``"whole"``) and with each set ablated; a random set is the control.

    >>> from act.ranking.analysis import necessity
    >>> pair = act.profile_pair(donor, target, corpus)
    >>> sets = {"paired": act.rank(pair), "random": act.rank(pair, "random")}
    >>> ids = torch.tensor([[5, 6, 7]])
    >>> losses = necessity(donor, sets, pair, lambda model: model(ids, labels=ids).loss.item())
    >>> list(losses)
    ['whole', 'paired', 'random']
    """
    losses = {"whole": loss(model)}
    for name, channels in sets.items():
        with ablated(model, channels, profile):
            losses[name] = loss(model)
    return losses


def _scored(score: torch.Tensor) -> int:
    return len(score) - int(score.isnan().count_nonzero())

"""How far the benefit of each channel (:func:`act.ranking.match.benefit`) can differ from that of the whole corpus.

A benefit is a mean over tokens, divided by the mean square of its module's outputs; at an LM head both are weighted by
how likely the donor finds each token. All of these vary with the documents. So the error is drawn from the benefits
``s_(g)`` that the text gives without one of the groups (the delete-a-group jackknife)::

    e_g = sqrt((G - 1) / G) · (s_(g) - mean of all s_(g))

:mod:`act.profiling.stability` has the same of plain means, and what is drawn from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from act.core.tensor_files import taken
from act.models.channels import ChannelSpace
from act.profiles.experts import tokens_needed
from act.profiles.moments import Moments
from act.profiles.statistics import DIFFERENCE, DONOR, PRODUCT, TARGET, curvature
from act.profiling.stability import GroupedSums
from act_kernels.statistics import COUNT, M2, MEAN

_PIECE = 1 << 20  # channels whose squares are computed at once, unless one site has more


class _Head(NamedTuple):
    """An LM head: the number of its site, its channels, and where its three sums lie behind those of all sites."""

    site: int
    channels: slice
    sums: slice


class GroupedBenefits:
    """The sums over groups of chunks that benefits are made of, ``[G, K + S + 3 H]`` float32, and the benefits.

    The sums are of ``swap · D`` of each channel that is looked at (``K``), of the mean square of each site's outputs
    (``S``) and, for each channel of an LM head (``H``), of the donor's logit, its square and the square of the
    target's. A channel without a benefit, because it was never counted or has no swapped output, is no channel here;
    neither is, as by default in a ranking, one of an expert that fewer than
    :data:`act.profiles.defaults.MIN_EXPERT_TOKENS` counted tokens reached in both models.

    Args:
        space: the channel space.
        device: that of the moments.
        channels: sorted flat indices of the channels that are looked at, int64.
        ranked: number of ranked channels that they are a sample of; None: all are looked at.
    """

    def __init__(
        self, space: ChannelSpace, device: torch.device, channels: torch.Tensor, ranked: int | None = None
    ) -> None:
        widths = [site.width for site in space]
        self._widths = torch.tensor(widths, device=device)
        self._pieces = list(_pieces(widths))
        self._channels = channels.to(device)
        self._site = torch.bucketize(self._channels, self._widths.cumsum(0), right=True)
        self._heads: list[_Head] = []
        seen, more = set(self._site.unique().tolist()), [1] * len(widths)
        for number, site in enumerate(space):
            if site.kind == "head" and number in seen:
                start = sum(more)
                more += [site.width] * 3
                self._heads.append(_Head(number, site.channels, slice(start, sum(more))))
        behind = torch.arange(sum(more), device=device)
        self._sums = GroupedSums(
            torch.tensor(widths + more, device=device), torch.cat([self._channels, sum(widths) + behind])
        )
        self._behind = len(self._channels) + behind  # places of these sums among those of each group
        self._all = len(self._channels) if ranked is None else ranked
        self._firsts = torch.tensor([site.offset for site in space], device=device)
        self._needed = tokens_needed(space).to(device)
        self._met = torch.zeros(len(widths), dtype=torch.float64, device=device)  # tokens in both models, by site
        self._find_scored()

    def __len__(self) -> int:
        """Number of channels that are looked at and have a benefit."""
        return len(self._scored)

    @property
    def scored(self) -> torch.Tensor:
        """The flat indices of these channels, sorted."""
        return self._channels[self._scored]

    @property
    def left_out(self) -> int:
        """Number of channels that are looked at and have none."""
        return len(self._channels) - len(self)

    @property
    def ranked(self) -> int:
        """Number of ranked channels that these are a sample of, as far as the sample tells."""
        return round(self._all * len(self) / max(1, len(self._channels)))

    @property
    def groups(self) -> int:
        """Number of complete groups."""
        return self._sums.groups

    @property
    def chunks(self) -> int:
        """Number of chunks seen so far."""
        return self._sums.chunks

    def take(self, moments: Moments) -> bool:
        """End a chunk, given the moments of all chunks so far, with swapped outputs.

        Returns:
            Whether a group ended with this chunk, and some channel has a benefit.
        """
        total, count = self._quantities(moments.arena)
        if self._sums.unchanged(count) or not self._sums.add(total, count):
            return False
        self._met = moments.arena[DIFFERENCE, COUNT, self._firsts].double()
        self._find_scored()
        return len(self) > 1

    def means(self) -> torch.Tensor:
        """The benefit of each channel that has one, float64."""
        return self._benefits(self._sums.means(), self._channels, self._site)[self._scored]

    def errors(self, index: torch.Tensor | slice) -> torch.Tensor:
        """``e_g`` of some of these channels, float32 ``[G, n]``; the squares sum to a variance."""
        chosen = self._scored[index]
        places, channels, site = torch.cat([chosen, self._behind]), self._channels[chosen], self._site[chosen]
        benefit = self._benefits(self._sums.means()[places], channels, site)
        result = torch.empty(self.groups, len(chosen), dtype=torch.float32, device=chosen.device)
        for group in range(self.groups):
            without = self._benefits(self._sums.without(group, places), channels, site)
            # What only this group tells of would be nothing without it.
            result[group] = without.nan_to_num(0.0, 0.0, 0.0) - benefit
        return (result - result.mean(0)) * math.sqrt((self.groups - 1) / self.groups)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {**self._sums.state(), "met": self._met.cpu()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned; raises ValueError if it does not fit."""
        self._sums.restore(state)
        self._met.copy_(taken(state, "met", (torch.float64,), tuple(self._met.shape)))
        self._find_scored()

    def _find_scored(self) -> None:
        known = self._benefits(self._sums.means(), self._channels, self._site).isfinite()
        self._scored = (known & (self._met >= self._needed)[self._site]).nonzero().flatten()

    def _benefits(self, means: torch.Tensor, channels: torch.Tensor, site: torch.Tensor) -> torch.Tensor:
        """The benefits of channels at these sites, from the means of all sums, float64 ``[n + S + 3 H]``."""
        products, behind = means[: len(channels)].clone(), means[len(channels) :]
        sizes = behind[: len(self._widths)].clone()
        for head in self._heads:
            logit, square, size = behind[head.sums].view(3, -1)
            weight = curvature(logit, (square - logit.square()).clamp_min(0))
            size = weight * size
            sizes[head.site] = size[size.isfinite()].mean()
            mine = (site == head.site).nonzero().flatten()
            products[mine] *= weight[channels[mine] - head.channels.start]
        return products / torch.where(sizes > 0, sizes, 1.0)[site]

    def _quantities(self, arena: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All sums so far, float64 ``[K + S + 3 H]``, and the counts behind them.

        Every mean counts as often as its site was read, as :func:`act.ranking.match.benefit` takes them; of a channel
        that was never counted where others were, the sum is NaN.
        """
        sites = len(self._widths)
        swapped, size, seen = torch.zeros(3, sites, dtype=torch.float64, device=arena.device)
        for some, inside in self._pieces:
            lengths = self._widths[some]
            square = _mean_square(arena[TARGET, :, inside])
            known = square.isfinite()
            size[some] = _each(square.where(known, 0.0), lengths, "sum") / _each(known.double(), lengths, "sum")
            seen[some] = _each(arena[TARGET, COUNT, inside], lengths, "max")
            swapped[some] = _each(arena[PRODUCT, COUNT, inside], lengths, "max")
        product = arena[PRODUCT]
        mean = product[MEAN, self._channels].where(product[COUNT, self._channels] > 0, torch.nan)
        totals, counts = [_times(mean, swapped[self._site]), _times(size, seen)], [swapped, seen]
        for head in self._heads:
            donor, target = arena[DONOR, :, head.channels], arena[TARGET, :, head.channels]
            logit = donor[MEAN].where(donor[COUNT] > 0, torch.nan)
            rows = donor[COUNT].max(), donor[COUNT].max(), target[COUNT].max()
            totals += map(_times, (logit, _mean_square(donor), _mean_square(target)), rows)
            counts.append(torch.stack(rows))
        return torch.cat(totals), torch.cat(counts)


def _pieces(widths: list[int]) -> Iterator[tuple[slice, slice]]:
    """Runs of sites of about :data:`_PIECE` channels, each with the slice of these."""
    first = start = end = 0
    for number, width in enumerate(widths, start=1):
        end += width
        if end - start >= _PIECE or number == len(widths):
            yield slice(first, number), slice(start, end)
            first, start = number, end


def _each(values: torch.Tensor, lengths: torch.Tensor, what: str) -> torch.Tensor:
    """The sum or the maximum of each run of values of these lengths."""
    return torch.segment_reduce(values.contiguous(), what, lengths=lengths)


def _mean_square(block: torch.Tensor) -> torch.Tensor:
    """Mean of the squares of moments ``[7, C]``; NaN where nothing was counted."""
    return block[M2] / block[COUNT] + block[MEAN].square()


def _times(mean: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The sum behind a mean: 0 where nothing was counted yet."""
    return torch.where(count > 0, mean * count, 0.0)

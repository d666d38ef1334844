"""Prefixes that a run has computed: what the rows of a batch share, piece by piece, with the moments of each piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from act.data.batching import Segment
from act.models.prefix import Prefix
from act.profiles.moments import Moments

Forward = Callable[[torch.Tensor, torch.Tensor, Prefix, Moments], None]
"""Runs models on ids ``[1, length]`` of which the tokens in a mask count, behind a prefix that grows by them."""


@dataclass(frozen=True)
class _Computed:
    """A segment, the prefix that ends with it, and the moments of its tokens if any of them counts."""

    segment: Segment
    prefix: Prefix
    moments: Moments | None


class Prefixes:
    """The prefix of the batch before, of which the next may need the first pieces.

    Args:
        forward: see :data:`Forward`.
        empty: the prefix of no tokens.
        empty_moments: gives empty moments.
    """

    def __init__(self, forward: Forward, empty: Prefix, empty_moments: Callable[[], Moments]) -> None:
        self._forward, self._empty, self._empty_moments = forward, empty, empty_moments
        self._computed: list[_Computed] = []

    def behind(self, shared: Sequence[Segment]) -> Prefix | None:
        """The prefix of these segments, of which those are computed that the batch before did not begin with."""
        known = 0
        for segment, computed in zip(shared, self._computed, strict=False):
            if not _same(segment, computed.segment):
                break
            known += 1
        del self._computed[known:]
        for segment in shared[known:]:
            self._computed.append(self._compute(segment))
        return self._computed[-1].prefix.standing() if shared else None

    def count(self, moments: Moments, rows: int) -> None:
        """Add the tokens of the prefix that count to ``moments``, once for each row of a batch."""
        for computed in self._computed:
            if computed.moments is not None:
                moments.merge_repeated(computed.moments, rows)

    def _compute(self, segment: Segment) -> _Computed:
        prefix = (self._computed[-1].prefix if self._computed else self._empty).growing(len(segment))
        moments = self._empty_moments()
        ids, mask = (torch.from_numpy(np.asarray(x))[None] for x in (segment.input_ids, segment.count_mask))
        self._forward(ids.long(), mask, prefix, moments)
        return _Computed(segment, prefix, moments if mask.any() else None)


def _same(one: Segment, other: Segment) -> bool:
    return np.array_equal(one.input_ids, other.input_ids) and np.array_equal(one.count_mask, other.count_mask)

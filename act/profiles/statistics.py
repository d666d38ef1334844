"""Statistics of channels as vectors, computed from the moments of one model or of a pair of models."""

from __future__ import annotations

import torch

from act_kernels import PAIR
from act_kernels.statistics import COUNT, M2, MAX_ABS, MEAN, NONFINITE, POSITIVE, SUM_ABS

DONOR, TARGET, DIFFERENCE = (PAIR.index(side) for side in ("donor", "target", "difference"))


class Statistics:
    """Statistics of ``N`` channels: float64 vectors ``[N]``, on the device of the moments.

    Args:
        arena: moments ``[7, N]``, float64, in the order of :data:`act_kernels.STATISTICS`.

    >>> profile = act.profile(model, corpus)
    >>> site = profile.site("model.layers.0.mlp.up_proj")
    >>> site
    <Statistics of 48 channels>
    >>> site.mean.shape, site.mean.dtype
    (torch.Size([48]), torch.float64)
    >>> bool((site.mean_abs <= site.max_abs).all())
    True
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._block.shape[-1]:,} channels>"

    @property
    def _block(self) -> torch.Tensor:
        """The moments ``[7, N]`` from which the vectors are computed."""
        return self._arena

    @property
    def count(self) -> torch.Tensor:
        """Number of finite values that were counted."""
        return self._block[COUNT]

    def rows_counted(self, channels: torch.Tensor) -> torch.Tensor:
        """How many rows (tokens, or tokens times heads) some channels were fed, with NaN and infinite values.

        Args:
            channels: int64 ``[K]``.

        Returns:
            int64 ``[K]``, on the CPU.
        """
        block = self._block[:, channels.to(self._block.device)]
        return (block[COUNT] + block[NONFINITE]).long().cpu()

    @property
    def mean(self) -> torch.Tensor:
        """Mean value; NaN where nothing was counted."""
        return torch.where(self.count > 0, self._block[MEAN], torch.nan)

    @property
    def var(self) -> torch.Tensor:
        """Population variance, ``M2 / count``; NaN where nothing was counted."""
        return self._block[M2] / self.count

    @property
    def mean_abs(self) -> torch.Tensor:
        """Mean of the absolute values; NaN where nothing was counted."""
        return self._block[SUM_ABS] / self.count

    @property
    def max_abs(self) -> torch.Tensor:
        """Largest absolute value; NaN where nothing was counted."""
        return torch.where(self.count > 0, self._block[MAX_ABS], torch.nan)

    @property
    def positive_rate(self) -> torch.Tensor:
        """Share of values above zero; NaN where nothing was counted."""
        return self._block[POSITIVE] / self.count


class PairStatistics(Statistics):
    """Statistics of ``N`` channels of a donor and a target over the same tokens, and of donor - target.

    The plain vectors (``mean``, ``var``, …) are the target's.

    Args:
        arena: moments ``[3, 7, N]``, float64: donor, target, difference.

    >>> pair = act.profile_pair(donor, target, corpus)
    >>> site = pair.site("model.layers.0.mlp.up_proj")
    >>> site.mean_abs_diff.shape
    torch.Size([48])
    >>> torch.allclose(site.mean_diff, site.donor.mean - site.target.mean)
    True
    """

    @property
    def _block(self) -> torch.Tensor:
        return self._arena[TARGET]

    @property
    def donor(self) -> Statistics:
        """The donor's statistics."""
        return Statistics(self._arena[DONOR])

    @property
    def target(self) -> Statistics:
        """The target's statistics."""
        return Statistics(self._arena[TARGET])

    @property
    def difference(self) -> Statistics:
        """The statistics of donor - target."""
        return Statistics(self._arena[DIFFERENCE])

    @property
    def mean_diff(self) -> torch.Tensor:
        """Mean of donor - target."""
        return self.difference.mean

    @property
    def var_diff(self) -> torch.Tensor:
        """Population variance of donor - target."""
        return self.difference.var

    @property
    def mean_abs_diff(self) -> torch.Tensor:
        """Mean of ``|donor - target|``: the paper's score (arXiv 2601.09398, eq. 2)."""
        return self.difference.mean_abs

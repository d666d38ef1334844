"""Statistics of channels as vectors, computed from the moments of one model or of a pair of models."""

from __future__ import annotations

import torch

from act.core.errors import ActError
from act_kernels import SWAPPED_PAIR
from act_kernels.statistics import COUNT, M2, MAX_ABS, MEAN, NONFINITE, POSITIVE, SUM_ABS

DONOR, TARGET, DIFFERENCE, SWAP, PRODUCT = range(len(SWAPPED_PAIR))


class Statistics:
    """Statistics of ``N`` channels: float64 vectors ``[N]``, on the device of the moments.

    Args:
        arena: moments ``[7, N]``, float64, in the order of ``act_kernels.STATISTICS``.

    >>> profile = act.profile(model, corpus)
    >>> site = profile.site("model.layers.0.mlp.up_proj")
    >>> site
    <Statistics of 48 channels>
    >>> site.mean.shape, site.mean.dtype
    (torch.Size([48]), torch.float64)
    >>> bool((site.mean_abs <= site.max_abs).all())
    True
    >>> bool((site.count == 24).all()), bool((site.positive_rate <= 1).all())
    (True, True)
    >>> torch.allclose(site.mean_square, site.var + site.mean**2)
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

        >>> act.profile(model, corpus).rows_counted(torch.tensor([0, 939]))
        tensor([24, 24])
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
    def mean_square(self) -> torch.Tensor:
        """Mean of the squares, ``var + mean^2``; NaN where nothing was counted."""
        return self.var.add_(self._block[MEAN].square())

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
        arena: moments ``[3, 7, N]``, float64: donor, target, difference; ``[5, 7, N]`` with swap and product.

    >>> pair = act.profile_pair(donor, target, corpus, swap=True)
    >>> site = pair.site("model.layers.0.mlp.up_proj")
    >>> site.mean_abs_diff.shape
    torch.Size([48])
    >>> torch.allclose(site.mean_diff, site.donor.mean - site.target.mean)
    True
    >>> site.swap.mean_square.shape, site.product.mean.dtype
    (torch.Size([48]), torch.float64)
    >>> site.swapped, torch.equal(site.var_diff, site.difference.var)
    (True, True)
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
    def swapped(self) -> bool:
        """Whether :attr:`swap` and :attr:`product` were measured."""
        return len(self._arena) == len(SWAPPED_PAIR)

    @property
    def swap(self) -> Statistics:
        """The statistics of swap: what the donor's module gives on the *target's* input, minus the target's output.

        So much would the target's own output change, at this site alone, if the channel's parameters became the
        donor's. Nothing is counted where that cannot be computed. Experts are given the tokens that the target routes
        to them.

        Raises:
            ActError: the run had no swapped outputs.
        """
        return self._swapped(SWAP)

    @property
    def product(self) -> Statistics:
        """The statistics of swap * (donor - target), token by token; of experts, over tokens that met both.

        Its mean says how far the channel's parameters alone bring the target towards the donor.

        Raises:
            ActError: the run had no swapped outputs.
        """
        return self._swapped(PRODUCT)

    def _swapped(self, block: int) -> Statistics:
        if not self.swapped:
            raise ActError(
                "the pair was profiled without swapped outputs; profile it with them (act-profile pair --swap, "
                "act.profile_pair(…, swap=True))"
            )
        return Statistics(self._arena[block])

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


def curvature(mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
    """``p (1 - p)`` of the tokens behind logits ``[V]`` of this mean and variance, ``p = softmax(mean + sqrt(var))``.

    Tokens that were never counted, whose mean is NaN, are left out of the softmax.
    """
    logits = mean + var.sqrt()
    p = logits.masked_fill(logits.isnan(), -torch.inf).softmax(0)
    return p * (1 - p)

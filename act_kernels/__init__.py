"""Kernels that accumulate per-channel activation statistics and copy parameter rows; see :mod:`act_kernels.ops`."""

from act_kernels.ops import blend_rows, column_moments, pair_moments
from act_kernels.statistics import PAIR, STATISTICS, empty_moments, merge_moments

__all__ = ["PAIR", "STATISTICS", "blend_rows", "column_moments", "empty_moments", "merge_moments", "pair_moments"]

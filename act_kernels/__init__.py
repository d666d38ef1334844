"""Kernels that accumulate per-channel activation statistics and copy parameter rows; see :mod:`act_kernels.ops`."""

import act_kernels.library  # noqa: F401  registers the ops for torch.compile
from act_kernels.ops import add_norm, blend_rows, column_moments, gated_mlp, pair_moments, rotary, segment_moments
from act_kernels.rows import gather_rows
from act_kernels.statistics import PAIR, STATISTICS, SWAPPED_PAIR, empty_moments, merge_moments

__all__ = [
    "PAIR",
    "STATISTICS",
    "SWAPPED_PAIR",
    "add_norm",
    "blend_rows",
    "column_moments",
    "empty_moments",
    "gated_mlp",
    "gather_rows",
    "merge_moments",
    "pair_moments",
    "rotary",
    "segment_moments",
]

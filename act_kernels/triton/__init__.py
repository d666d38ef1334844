"""The ops as Triton kernels; importing this package imports triton, so only :mod:`act_kernels.backends` does."""

from act_kernels.triton.add_norm import add_norm
from act_kernels.triton.blend_rows import blend_rows
from act_kernels.triton.column_moments import column_moments
from act_kernels.triton.gated_mlp import gated_mlp
from act_kernels.triton.pair_moments import pair_moments
from act_kernels.triton.rotary import rotary
from act_kernels.triton.segment_moments import segment_moments

__all__ = ["add_norm", "blend_rows", "column_moments", "gated_mlp", "pair_moments", "rotary", "segment_moments"]

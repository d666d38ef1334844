"""The C++ kernels on the CPU.

Importing this module never fails: if the extension is missing, :data:`LOAD_ERROR` says why and what to do, and
:mod:`act_kernels.backends` picks another backend.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from act_kernels.compiled import Calls, Resources
from act_kernels.rows import Blend

REBUILD = "pip install --force-reinstall --no-deps ."


def _load_error(error: ImportError) -> str:
    """What was found, what is needed, and the command that fixes it."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    needed = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    found = sorted(path.name for path in Path(__file__).parent.glob("_native*") if path.suffix in (".so", ".pyd"))
    if needed in found:
        return f"the native extension {needed} does not load ({error}); from a checkout, run: {REBUILD}"
    built = f"was built for another Python ({', '.join(found)})" if found else "was not built"
    return (
        f"the native extension {built}; {python} needs {needed}: "
        f"install a C++17 compiler and, from a checkout, run: {REBUILD}"
    )


LOAD_ERROR: str | None = None
try:
    from act_kernels import _native
except ImportError as error:
    LOAD_ERROR = _load_error(error)


def instruction_set() -> str:
    """The instruction set in use: ``avx512``, ``avx2`` or ``baseline`` (SSE2, NEON)."""
    return _native.instruction_set()


def _resources(op: str, *inputs: torch.Tensor | None) -> Resources:
    return (torch.get_num_threads(),), None


_calls = Calls(lambda: _native, _resources)
column_moments = _calls.column_moments
segment_moments = _calls.segment_moments
pair_moments = _calls.pair_moments
gated_mlp = _calls.gated_mlp
rotary = _calls.rotary
add_norm = _calls.add_norm


def blend_rows(blends: Sequence[Blend]) -> None:
    """See :func:`act_kernels.ops.blend_rows`."""
    threads = torch.get_num_threads()
    for blend in blends:
        _native.blend_rows(blend.target, blend.donor, blend.rows, blend.gathered, blend.strength, threads)

"""The CUDA kernels of the extension: the backend for GPUs on which Triton cannot run.

They are compiled at install time, so they need neither a compiler nor a writable cache when they run. Importing this
module never fails; :func:`refusal` says why the kernels cannot run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from act_kernels import native
from act_kernels.compiled import Calls, Resources
from act_kernels.rows import Blend, blend_table

_cuda: Any = None if native.LOAD_ERROR else getattr(native._native, "cuda", None)


def build() -> dict[str, str | None]:
    """What was built: CUDA version and compute capabilities, or the reason why nothing was."""
    if _cuda is not None:
        return {"toolkit": _cuda.toolkit, "architectures": _cuda.architectures, "missing": None}
    missing = native.LOAD_ERROR or f"the extension was built without CUDA kernels: {native._native.without_cuda}"
    return {"toolkit": None, "architectures": None, "missing": missing}


def refusal(device_type: str) -> str | None:
    """Why the kernels cannot run on a device type: what was found, what is needed, and the command that fixes it."""
    if _cuda is None:
        hint = "" if native.LOAD_ERROR else f"; install the CUDA toolkit and, from a checkout, run: {native.REBUILD}"
        return f"{build()['missing']}{hint}"
    if device_type != "cuda":
        return f"CUDA kernels run on a CUDA device, not on {device_type}"
    for device in range(torch.cuda.device_count()):
        reason = _device_refusal(device)
        if reason:
            return reason
    return None


def _device_refusal(device: int) -> str | None:
    reason = _cuda.refusal(device)
    if not reason:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    built = sorted(int(architecture.rstrip("af")) for architecture in _cuda.architectures.split(";"))
    if 10 * major + minor < built[0]:
        return (
            f"cuda:{device} ({torch.cuda.get_device_name(device)}) has compute capability {major}.{minor}, but the "
            f"extension was built for {_cuda.architectures} and newer; from a checkout, run: "
            f'ACT_CUDA_ARCHITECTURES="{10 * major + minor}" {native.REBUILD}, or hide it with CUDA_VISIBLE_DEVICES'
        )
    return (
        f"cuda:{device}: {reason} (the extension was built with CUDA {_cuda.toolkit} for {_cuda.architectures}); "
        f"from a checkout, with a toolkit that the driver supports in CUDA_HOME, run: {native.REBUILD}"
    )


def _place(device: torch.device) -> tuple[int, int]:
    """Ordinal and current stream of a device, to which work is queued."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _resources(op: str, x: torch.Tensor, *inputs: torch.Tensor | None) -> Resources:
    size = getattr(_cuda, f"{op}_workspace")(x, *inputs)
    workspace = torch.empty(size, dtype=torch.float32, device=x.device)
    return (workspace, *_place(x.device)), workspace


_calls = Calls(lambda: _cuda, _resources)
column_moments = _calls.column_moments
segment_moments = _calls.segment_moments
pair_moments = _calls.pair_moments
gated_mlp = _calls.gated_mlp
rotary = _calls.rotary
add_norm = _calls.add_norm


def blend_rows(blends: Sequence[Blend]) -> None:
    """See :func:`act_kernels.ops.blend_rows`; one launch for all."""
    target = blends[0].target
    table, tiles = blend_table(blends, _cuda.blend_tile)
    _cuda.blend_rows(str(target.dtype).removeprefix("torch."), table, len(blends), tiles, *_place(target.device))

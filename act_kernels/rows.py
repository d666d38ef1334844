"""Rows of many matrices: a table of blends for the GPU, and moving rows between devices."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

FIELDS = 11
"""Columns of a blend table, in the order of ``BlendEntry`` in csrc/cuda/kernels.h."""


@dataclass(frozen=True)
class Blend:
    """``target[rows] += strength * (donor[rows] - target[rows])``; row k of a ``gathered`` donor is for rows[k]."""

    target: torch.Tensor  # [R, W], any strides
    donor: torch.Tensor  # [R, W], or [K, W] if gathered; dtype and device of the target
    rows: torch.Tensor  # int64 [K] on the CPU, contiguous
    strength: float
    gathered: bool = False

    @property
    def size(self) -> int:
        """Number of values that change."""
        return self.rows.numel() * self.target.shape[1]


def blend_table(blends: Sequence[Blend], tile: int) -> tuple[torch.Tensor, int]:
    """The arguments of one launch in one int64 tensor on the device of the targets, and its number of tiles.

    The tensor holds the number of the first tile of every blend (a tile is ``tile`` values), then :data:`FIELDS` of
    every blend, then all rows.
    """
    device = blends[0].target.device
    tiles = [-(-blend.size // tile) for blend in blends]
    first_tiles = [0, *accumulate(tiles)]
    places = [(1 + FIELDS) * len(blends), *(blend.rows.numel() for blend in blends)]
    places = list(accumulate(places))
    table = torch.empty(places[-1], dtype=torch.int64, device=device)
    start = table.data_ptr()
    numbers = first_tiles[:-1]
    for blend, place in zip(blends, places, strict=False):
        target, donor = blend.target, blend.donor
        numbers += [target.data_ptr(), donor.data_ptr(), start + 8 * place, blend.rows.numel(), target.shape[1]]
        numbers += [*target.stride(), *donor.stride(), blend.gathered]
        numbers += struct.unpack("<q", struct.pack("<d", blend.strength))
    host = torch.cat([torch.tensor(numbers), *(blend.rows for blend in blends)])
    if device.type == "cuda":
        host = host.pin_memory()
    table.copy_(host, non_blocking=True)
    return table, first_tiles[-1]


def gather_rows(
    matrices: Sequence[torch.Tensor], rows: Sequence[torch.Tensor], devices: Sequence[torch.device]
) -> list[torch.Tensor]:
    """Rows of matrices on other devices.

    Args:
        matrices: each ``[R, W]``, of any dtype, on any device.
        rows: of each, int64 ``[K]`` on the CPU.
        devices: where the rows of each are wanted.

    Returns:
        ``[K, W]`` of each matrix, on its device.

    Only these rows are moved, through pinned memory if one side is the CPU. Copying the rows of one matrix overlaps
    with gathering those of the next. Results on a GPU are ready for work queued on its current stream.

    >>> matrix = torch.arange(6.0).reshape(3, 2)
    >>> act_kernels.gather_rows([matrix], [torch.tensor([2])], [torch.device("cpu")])
    [tensor([[4., 5.]])]
    """
    result: list[torch.Tensor] = []
    arriving: deque[tuple[int, torch.Tensor, torch.cuda.Event]] = deque()
    for matrix, index, device in zip(matrices, rows, devices, strict=True):
        if matrix.device == device:
            result.append(matrix.index_select(0, index.to(device)))
        elif matrix.device.type == "cpu":
            staged = _pinned(len(index), matrix)
            torch.index_select(matrix, 0, index, out=staged)
            result.append(staged.to(device, non_blocking=True))
        else:
            with torch.cuda.device_of(matrix):
                taken = matrix.index_select(0, index.to(matrix.device))
                if device.type != "cpu":
                    result.append(taken.to(device, non_blocking=True))
                    continue
                staged = _pinned(len(index), matrix).copy_(taken, non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            arriving.append((len(result), staged, event))
            result.append(staged)
            _land(arriving, result, in_flight=1)
    _land(arriving, result, in_flight=0)
    return result


def _land(
    arriving: deque[tuple[int, torch.Tensor, torch.cuda.Event]], result: list[torch.Tensor], in_flight: int
) -> None:
    """Move arrived rows out of pinned memory, which is scarce."""
    while len(arriving) > in_flight:
        place, staged, event = arriving.popleft()
        event.synchronize()
        result[place] = staged.clone()


def _pinned(rows: int, matrix: torch.Tensor) -> torch.Tensor:
    return torch.empty((rows, matrix.shape[1]), dtype=matrix.dtype, pin_memory=True)


def batches(blends: Iterable[Blend], limit: int) -> Iterable[list[Blend]]:
    """The blends in order, in lists with at most ``limit`` values that change, or of a single blend."""
    batch: list[Blend] = []
    size = 0
    for blend in blends:
        if batch and size + blend.size > limit:
            yield batch
            batch, size = [], 0
        batch.append(blend)
        size += blend.size
    if batch:
        yield batch

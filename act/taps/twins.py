"""The part of a donor's parameter that stands where a tensor is a part of the target's."""

from __future__ import annotations

import torch

UNFOLLOWED = "the model uses its parameter in a way that could not be followed to the donor's"
"""Why an output of a parameter that no module applies may have no swapped one."""


def twin(part: torch.Tensor, of: torch.Tensor, other: torch.Tensor) -> torch.Tensor | None:
    """The view of ``other`` that ``part`` is of the tensor ``of``; None if it is offloaded, or lies otherwise."""
    if other.is_meta or (other.shape, other.stride(), other.dtype) != (of.shape, of.stride(), part.dtype):
        return None
    start = other.storage_offset() + part.storage_offset() - of.storage_offset()
    return other.detach().as_strided(part.shape, part.stride(), start)

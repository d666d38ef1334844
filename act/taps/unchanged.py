"""Whether a model has changed a tensor in place since it was last seen."""

from __future__ import annotations

import torch

from act.core.errors import ActError


def version(x: torch.Tensor) -> int:
    """A number that grows with every change of a tensor in place; always 0 where torch keeps none.

    That is in inference mode and in a compiled model.
    """
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def require_unchanged(name: str, output: torch.Tensor, before: int) -> None:
    """Raise :class:`ActError` if a site's output, of which :func:`version` was ``before``, was changed in place."""
    if version(output) != before:
        raise ActError(
            f"the model changed the output of {name} in place, which it did not do when it was probed; "
            "run without fused kernels (fused=False, --no-fused)"
        )

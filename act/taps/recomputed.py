"""Layers whose activations are computed again when gradients pass through them, and tensors that are kept as these are.

Only what enters a layer is stored. On the way back each layer runs again, and its activations go when it is done
(``torch.utils.checkpoint``, non-reentrant; Chen et al., arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from act.taps.attachments import Attachments


class Kept:
    """Tensors for a hook on a gradient, kept as autograd keeps its own: in a layer, they are computed again with it.

    A hook that held them itself would keep the activations of all layers.
    """

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        anchor = torch.empty(0, requires_grad=True)
        # The output, for older versions of PyTorch empty its node when it goes.
        self._output: Any = _Saved.apply(anchor, *tensors)  # type: ignore[no-untyped-call]

    def take(self) -> tuple[torch.Tensor, ...]:
        """The tensors, once, without gradient; inside a backward pass."""
        saved = self._output.grad_fn.saved_tensors
        self._output = None
        return tuple(tensor.detach() for tensor in saved)


class _Saved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, ...]:
        return (None,) * (1 + len(ctx.saved_tensors))


def layers_of(model: nn.Module) -> Iterator[str]:
    """The paths of a model's layers: what its lists of modules hold, without the lists inside these."""
    around = ""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not (around and name.startswith(around)):
            around = f"{name}."
            yield from (f"{name}.{number}" for number, _ in module.named_children())


def recompute(attachments: Attachments) -> None:
    """Make each layer of a model compute its activations again on the way back."""
    for name in layers_of(attachments.model):
        attachments.replace(name, _again)


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Nothing random runs, for the model is in evaluation mode.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

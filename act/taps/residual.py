"""Residual sums and norms: a module's output is held until the sum it goes into, which runs with the norm after it.

One kernel adds, norms, and measures the output and the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from act.core.errors import ActError
from act.taps.attachments import Attachments
from act.taps.fusion import Fusion, Norm, needs_gradient
from act.taps.measurement import Measurement, OnDonor, nothing
from act.taps.probe import ADDITIONS, is_idle_dropout
from act.taps.unchanged import version
from act_kernels import add_norm


class PendingOutput(torch.Tensor):
    """A module's output on its way to the residual sum.

    Added to a residual, it runs the fused kernel of the sum and of the norm that follows; a norm may also read it as it
    is. Any other operation reads it by itself first, and finds a plain tensor.
    """

    owner: ResidualSums
    origin: str
    """Name of the module that gave it."""
    measured: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_idle_dropout(func, args, kwargs or {}):
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            if func in ADDITIONS and len(args) == 2 and not kwargs:
                for one, other in (args, args[::-1]):
                    if _waits(one) and isinstance(other, torch.Tensor):
                        total = one.owner.add(one, plain(other))
                        if total is not None:
                            return total
            if getattr(func, "__name__", "") != "__get__":
                for one in args:
                    if _waits(one):
                        one.owner.settle()
            return func(*args, **(kwargs or {}))


def _waits(x: object) -> bool:
    return isinstance(x, PendingOutput) and x is x.owner.pending


def plain(x: torch.Tensor) -> torch.Tensor:
    """The tensor without its subclass; a plain one is itself, so that autograd sees no new node."""
    return x.as_subclass(torch.Tensor) if isinstance(x, PendingOutput) else x


class ReadyNorm(NamedTuple):
    """A norm that was computed with the sum that it reads."""

    norm: str
    total: torch.Tensor
    output: torch.Tensor
    version: int
    """Of ``total``; it grows when the model changes it in place."""


class ResidualSums:
    """The residual sums and norms of one model.

    Args:
        fusion: the sums and norms that can run fused.
        modules: those of the model, by name.
        measurement: the sites of the model that are measured.
        on: the calls of a donor's modules (:meth:`act.taps.swap.Swap.on`), if outputs are swapped.

    Attributes:
        pending: the output that waits for its sum; there is one at most.
    """

    def __init__(
        self, fusion: Fusion, modules: Mapping[str, nn.Module], measurement: Measurement, on: OnDonor = nothing
    ) -> None:
        self._sums, self._norms = fusion.sums, fusion.norms
        self._modules = modules
        self._measurement = measurement
        self._on = on
        self._own_kernel = set(fusion.norms) & measurement.riding  # norms that are measured where they are computed
        self.pending: PendingOutput | None = None
        self._ready: ReadyNorm | None = None

    def attach(self, attachments: Attachments) -> set[str]:
        """Turn outputs that go into sums into :class:`PendingOutput`; replace the forwards of norms."""
        for name in self._sums:
            attachments.after(name, partial(self._send, name))
        for name in self._norms:
            attachments.replace(name, partial(self._norm, name))
        return set(self._sums) | self._own_kernel

    def reset(self) -> None:
        """Drop the pending output and the norm computed with it."""
        self.pending = self._ready = None

    def settle(self) -> None:
        """Read an output that is still pending by itself, and check that a fused norm was used.

        Raises:
            ActError: the model used the residual sum in another way than in the probe.
        """
        self.let_go()
        if self._ready is not None:
            raise ActError(
                f"the model did not pass its residual sum to {self._ready.norm} as it did before; "
                "run without fused kernels (fused=False, --no-fused)"
            )

    def let_go(self) -> None:
        """Read an output that is still pending by itself."""
        pending, self.pending = self.pending, None
        if pending is not None and not pending.measured:
            pending.measured = True
            self._measurement.read(pending.origin, plain(pending))

    def add(self, pending: PendingOutput, residual: torch.Tensor) -> torch.Tensor | None:
        """``residual + pending``, computed with the norm that follows; None if the stock operators must do it."""
        name = self._sums[pending.origin]
        x = plain(pending)
        weight = self._modules[name].get_parameter("weight")
        if residual.shape != x.shape or not residual.dtype == x.dtype == weight.dtype:
            return None
        if not residual.device == x.device == weight.device:
            return None
        if needs_gradient(residual, self._modules[name]):
            return None
        total, norm = self._add_norm(name, x, residual, pending)
        self._ready = ReadyNorm(name, total, norm, version(total))
        return total

    def _send(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor | None:
        self.settle()
        measurement = self._measurement
        lead = output.shape[:-1]
        fits = measurement.lies_by_token(name, lead) and measurement.lies_by_token(self._sums[name], lead)
        fusable = fits and not needs_gradient(output) and not torch.compiler.is_compiling()
        waits = fusable and name in measurement.riding and name not in self._own_kernel
        if not waits and name not in self._own_kernel:
            measurement.read(name, output, self._on(name, args, kwargs))
        if not fusable:
            return None
        self.pending = pending = output.as_subclass(PendingOutput)
        pending.owner, pending.origin, pending.measured = self, name, not waits
        return pending

    def _norm(self, name: str, original: Callable[..., Any], x: torch.Tensor, *more: Any, **named: Any) -> Any:
        ready = self._ready
        if ready is not None and (ready.norm, ready.version) == (name, version(x)) and ready.total is x:
            self._ready = None
            return ready.output
        pending = x if isinstance(x, PendingOutput) else None
        x = plain(x)
        shape = self._measurement.shape(name, x.shape[:-1])
        weight = self._modules[name].get_parameter("weight")
        in_order = shape.in_order if shape else not self._measurement.has_layout(name)
        fits = in_order and x.is_contiguous() and (x.dtype, x.device) == (weight.dtype, weight.device)
        if more or named or not fits or needs_gradient(x, self._modules[name]):
            output = original(x, *more, **named)
            if name in self._own_kernel:
                self._measurement.read(name, output)
            return output
        return self._add_norm(name, x, None, pending, shape.rows_per_token if shape else 1)[1]

    def _add_norm(
        self,
        name: str,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        pending: PendingOutput | None,
        per_token: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x_block = None
        if pending is not None and not pending.measured:
            x_block = self._measurement.block(pending.origin, "add_norm")
            pending.measured = True
        if pending is self.pending:
            self.pending = None
        norm_block = self._measurement.block(name, "add_norm")
        measures = x_block is not None or norm_block is not None
        text = self._measurement.tokens_of(name, *([pending.origin] if pending is not None else []))
        mask = self._measurement.mask(text, x.device, per_token) if measures else None
        return normed(self._modules[name], self._norms[name], x, residual, x_block, norm_block, mask)


def normed(
    module: nn.Module,
    norm: Norm,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    x_moments: torch.Tensor | None = None,
    norm_moments: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``residual + x`` and what a norm gives of it, in the shape of ``x``, by :func:`act_kernels.add_norm`."""
    bias = getattr(module, "bias", None)
    total, output = add_norm(
        x.flatten(0, -2),
        None if residual is None else residual.flatten(0, -2),
        module.get_parameter("weight").detach(),
        None if bias is None else bias.detach(),
        eps=norm.eps,
        style=norm.style,
        x_moments=x_moments,
        norm_moments=norm_moments,
        mask=mask,
    )
    return total.view(x.shape), output.view(x.shape)

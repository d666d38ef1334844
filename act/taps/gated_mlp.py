"""Gated MLPs: activation and product run as one kernel, which measures gate and up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from act.taps.attachments import Attachments
from act.taps.fusion import GatedMlp, halves, needs_gradient
from act.taps.measurement import Measurement
from act_kernels import gated_mlp


class GatedMlps:
    """The gated MLPs of one model, by module name."""

    def __init__(
        self, mlps: Mapping[str, GatedMlp], modules: Mapping[str, nn.Module], measurement: Measurement
    ) -> None:
        self._mlps = mlps
        self._modules = modules
        self._measurement = measurement
        self._fusing: tuple[str, ...] = ()

    def attach(self, attachments: Attachments) -> set[str]:
        """Replace the forwards of MLPs; hook the gates and ups that ride along, in case a call cannot be fused."""
        for name, mlp in self._mlps.items():
            attachments.replace(name, partial(self._forward, mlp))
        riding = {name for mlp in self._mlps.values() for name in (mlp.gate, mlp.up)} & self._measurement.riding
        for name in riding:
            attachments.after(name, partial(self._read_unfused, name))
        return riding

    def reset(self) -> None:
        """Fuse no gate or up until the next MLP runs."""
        self._fusing = ()

    def _read_unfused(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        if name not in self._fusing:
            self._measurement.read(name, output)

    def _forward(self, mlp: GatedMlp, original: Callable[..., Any], x: torch.Tensor, *more: Any, **named: Any) -> Any:
        measurement, modules = self._measurement, self._modules
        by_token = all(measurement.lies_by_token(name, x.shape[:-1]) for name in (mlp.gate, mlp.up))
        learning = any(needs_gradient(x, modules[name]) for name in (mlp.gate, mlp.up, mlp.down))
        if more or named or not by_token or learning:
            return original(x, *more, **named)
        one_projection = mlp.gate == mlp.up
        self._fusing = (mlp.gate, mlp.up)
        gate = modules[mlp.gate](x)
        up = gate if one_projection else modules[mlp.up](x)
        self._fusing = ()
        gate_rows, up_rows = (part.flatten(0, -2) for part in halves(gate, up, one_projection, mlp.gate_first))
        gate_block, up_block = (measurement.block(name, "gated_mlp") for name in (mlp.gate, mlp.up))
        if one_projection and gate_block is not None:
            gate_block, up_block = halves(gate_block, gate_block, one_projection, mlp.gate_first)
        measures = gate_block is not None or up_block is not None
        product = gated_mlp(
            gate_rows,
            up_rows,
            mlp.activation,
            gate_moments=gate_block,
            up_moments=up_block,
            mask=measurement.mask(measurement.tokens_of(mlp.gate, mlp.up), gate_rows.device) if measures else None,
        )
        return modules[mlp.down](product.view(*gate.shape[:-1], -1))

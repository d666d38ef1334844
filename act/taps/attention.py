"""Attention: the projections are held until their rotary embedding, whose kernel measures them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from act.models.rotary import RotaryFunction, RotaryStyle, rotary_functions
from act.taps.attachments import Attachments
from act.taps.measurement import Measurement
from act.taps.unchanged import require_unchanged, version
from act_kernels import column_moments


class Attentions:
    """The attention modules of one model.

    Args:
        projections: attention module -> its projections that read the same input.
        measurement: the sites of the model that are measured.
    """

    def __init__(self, projections: Mapping[str, tuple[str, ...]], measurement: Measurement) -> None:
        self._projections = projections
        self._measurement = measurement
        self._held: dict[str, torch.Tensor] = {}
        self._versions: dict[str, int] = {}

    def attach(self, attachments: Attachments) -> set[str]:
        """Take over the rotary functions; hold the projections that ride along until their attention ends."""
        taken: set[str] = set()
        for attention, projections in self._projections.items():
            riding = [name for name in projections if name in self._measurement.riding]
            for name in riding:
                attachments.after(name, partial(self._hold, name))
            if riding:
                attachments.after(attention, self._release)
            taken.update(riding)
        for namespace, name in rotary_functions(attachments.model):
            attachments.undo_by(RotaryFunction.add(namespace, name, self._rotary))
        return taken

    def reset(self) -> None:
        """Drop all held projections."""
        self._held.clear()

    def _hold(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        if not self._measurement.closed:
            self._held[name], self._versions[name] = output, version(output)

    def _release(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Read the projections that no rotary embedding has measured."""
        self._require_unchanged()
        for name, held in self._held.items():
            self._measurement.read(name, held)
        self._held.clear()

    def _require_unchanged(self) -> None:
        for name, held in self._held.items():
            require_unchanged(name, held, self._versions[name])

    def _rotary(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, style: RotaryStyle
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spans = [span for x in (q, k) if (span := self._span(x))]
        if len(spans) < 2:
            return style.apply(q, k, cos, sin)
        self._require_unchanged()
        rest = self._rest_of(spans)
        v = None
        if len(rest) == 1:  # one launch for all three; if there are more, each is read by itself
            name, columns = rest.pop()
            v = self._held[name].detach()[..., columns].unsqueeze(1)
            spans.append((name, columns))
        for name, columns in rest:
            self._read_columns(name, columns)
        q_block, k_block, *v_blocks = (self._block(name, columns, "rotary") for name, columns in spans)
        self._held.clear()
        v_block = v_blocks[0] if v_blocks else None
        mask = self._measurement.mask(self._measurement.tokens_of(spans[0][0]), q.device)
        return style.apply(q, k, cos, sin, v=v, q_moments=q_block, k_moments=k_block, v_moments=v_block, mask=mask)

    def _block(self, name: str, columns: slice, path: str) -> torch.Tensor:
        block = self._measurement.block(name, path)
        assert block is not None  # only sites that ride along are held
        return block[:, columns]

    def _read_columns(self, name: str, columns: slice) -> None:
        measurement = self._measurement
        rows, mask = measurement.rows(measurement.sites[name], self._held[name])
        block = self._block(name, columns, "column_moments")
        column_moments(rows[:, columns], block, mask)

    def _span(self, x: torch.Tensor) -> tuple[str, slice] | None:
        """The held projection that ``x`` [B, H, L, D] is a view of, and its columns there."""
        batch, heads, length, width = x.shape
        for name, output in self._held.items():
            if output.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() or output.stride(-1) != 1:
                continue
            offset = x.storage_offset() - output.storage_offset()
            same_rows = output.shape[:2] == (batch, length) and output.stride()[:2] == (x.stride(0), x.stride(2))
            if (
                same_rows
                and (x.stride(1), x.stride(3)) == (width, 1)
                and 0 <= offset <= output.shape[2] - heads * width
            ):
                return name, slice(offset, offset + heads * width)
        return None

    def _rest_of(self, spans: list[tuple[str, slice]]) -> list[tuple[str, slice]]:
        """The columns of held projections that no span covers."""
        rest = []
        for name, output in self._held.items():
            start = 0
            taken = sorted((columns.start, columns.stop) for other, columns in spans if other == name)
            for begin, end in [*taken, (output.shape[2], output.shape[2])]:
                if begin > start:
                    rest.append((name, slice(start, begin)))
                start = end
        return rest

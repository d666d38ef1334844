"""Training some rows of a model: everything else stays the same to the bit and takes no optimiser state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from act.core.errors import ActError
from act.editing.patch import Patch
from act.editing.rows import Rows, by_slice, described, shape_in, union
from act.models.calls import without_cache
from act.models.sites import ParameterSlice
from act.models.views import language_view
from act.ranking.channel_set import ChannelSet


def rows_to_train(channels: ChannelSet | Patch) -> dict[ParameterSlice, torch.Tensor]:
    """The rows of each part of a parameter that a set names or a patch changes, int64 ``[K]``, sorted and distinct."""
    rows: Iterable[Rows] = channels.changes if isinstance(channels, Patch) else channels.rows()
    return {part: union(held) for part, held in by_slice(rows).items()}


class RowTuned(nn.Module):
    """A model of which only some rows are trained; its parameters are the float32 changes of these rows.

    The model is not a submodule, so optimiser and checkpoints hold only the rows.

    Raises:
        ActError: the model does not have these rows.
    """

    def __init__(self, model: nn.Module, rows: Mapping[ParameterSlice, torch.Tensor]) -> None:
        super().__init__()
        model = language_view(model)
        self._held = [model]
        self._places = list(rows)
        self.config = model.config
        self.changes = nn.ParameterList()
        weights = dict(model.named_parameters())
        for number, (place, index) in enumerate(rows.items()):
            weight = weights.get(place.key)
            shape = None if weight is None else shape_in(place, tuple(weight.shape))
            if weight is None or shape is None or shape[0] <= int(index.max()):
                raise ActError(f"the channels are of another model: it has no such rows of {described(place)}")
            self.changes.append(nn.Parameter(torch.zeros(len(index), shape[1], device=weight.device)))
            self.register_buffer(f"index_{number}", index.to(weight.device), persistent=False)
        model.requires_grad_(False)

    def _changed(self) -> dict[str, torch.Tensor]:
        weights = dict(self._held[0].named_parameters())
        changed = {place.key: weights[place.key].clone() for place in self._places}
        for number, (place, change) in enumerate(zip(self._places, self.changes, strict=True)):
            part = place.part_of(changed[place.key])
            part.index_add_(0, getattr(self, f"index_{number}"), change.to(part.dtype))
        return changed

    def train(self, mode: bool = True) -> RowTuned:
        """Switch the model to training or evaluation mode, too."""
        self._held[0].train(mode)
        return super().train(mode)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """What the model returns with the changes added; both arguments are int64 ``[B, S]``."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **without_cache(self._held[0])}
        return torch.func.functional_call(self._held[0], self._changed(), (), inputs)

    @torch.no_grad()
    def write(self) -> None:
        """Add the changes to the model's rows."""
        weights = dict(self._held[0].named_parameters())
        for name, weight in self._changed().items():
            weights[name].copy_(weight)

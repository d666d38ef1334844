"""Transfer: ``theta_target[row] += strength * (theta_donor[row] - theta_target[row])`` on the rows of a channel set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from act.channel_set import ChannelSet
from act.channels import ParameterSlice
from act.errors import ActError
from act.fingerprint import fingerprint
from act.pair import common_space
from act.placement import require_in_memory
from act_kernels import blend_rows, gather_rows
from act_kernels.ops import FLOAT_DTYPES


@dataclass(frozen=True)
class Change:
    """The rows of one parameter that a transfer changed, before and after, each ``[K, W]`` in the parameter's dtype."""

    part: ParameterSlice
    rows: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


class Patch:
    """What a transfer changed in a model, with the bytes that were there before."""

    def __init__(self, changes: list[Change], strength: float) -> None:
        self.changes = changes
        self.strength = strength

    def __len__(self) -> int:
        """Values changed."""
        return sum(change.before.numel() for change in self.changes)

    def revert(self, model: nn.Module) -> None:
        """Give ``model`` back the bytes it had before the transfer.

        Raises:
            ActError: the rows no longer hold what the transfer wrote; nothing is written then.
        """
        parameters = dict(model.named_parameters())
        views = [_rows_view(parameters[change.part.name], change.part.dim) for change in self.changes]
        for change, view in zip(self.changes, views, strict=True):
            if not _same_bytes(view[change.rows.to(view.device)], change.after):
                raise ActError(
                    f"{change.part.name} was changed after the transfer, so reverting would lose that change; "
                    "load the model again instead"
                )
        for change, view in zip(self.changes, views, strict=True):
            view[change.rows.to(view.device)] = change.before.to(view.device)


def transfer(donor: nn.Module, target: nn.Module, channels: ChannelSet, strength: float = 0.4) -> Patch:
    """Blend the parameter rows of ``channels`` from donor into target, in place.

    Args:
        donor, target: models of the channel set's architecture; the donor is only read.
        channels: the channels to transfer.
        strength: the paper's lambda; 1 copies the donor's rows bit for bit.

    Returns:
        A :class:`Patch` whose ``revert(target)`` gives back the original bytes.

    Raises:
        ActError: a negative or non-finite strength; models of another architecture, or other models than those the set
            was made for; a parameter that is not float32, bfloat16 or float16.
    """
    require_strength(strength)
    _require_models(donor, target, channels)
    donor_parameters, target_parameters = (dict(model.named_parameters()) for model in (donor, target))
    moves = [(part, rows) for site, rows in channels.space.split(channels.index) for part in site.parameters]
    index = [rows for _, rows in moves]
    new, old = (
        [_rows_view(parameters[part.name], part.dim) for part, _ in moves]
        for parameters in (donor_parameters, target_parameters)
    )
    memory = [torch.device("cpu")] * len(moves)
    with torch.no_grad():
        before = gather_rows(old, index, memory)
        blend_rows(old, new, index, strength)
        after = gather_rows(old, index, memory)
    parts = [part for part, _ in moves]
    return Patch([Change(*change) for change in zip(parts, index, before, after, strict=True)], strength)


def require_strength(strength: float) -> None:
    """Raise :class:`ActError` unless ``strength`` is a finite number of at least 0."""
    if not (math.isfinite(strength) and strength >= 0):
        raise ActError(f"strength is {strength}; expected 0 (change nothing) or more, 1 copies the donor's rows")


def _require_models(donor: nn.Module, target: nn.Module, channels: ChannelSet) -> None:
    difference = channels.space.first_difference(common_space(donor, target))
    if difference:
        raise ActError(f"the channel set is of another architecture than the models: {difference}")
    for side, model in (("donor", donor), ("target", target)):
        require_in_memory(model, side)
        expected = channels.rule.get("models", {}).get(side)
        if expected and fingerprint(model) != expected["fingerprint"]:
            raise ActError(
                f"the channel set was made for the {side} {expected['name']} ({expected['fingerprint']}), but the "
                f"{side} given has other weights ({fingerprint(model)}); rank a profile of these models"
            )
        for name, parameter in model.named_parameters():
            if parameter.dtype not in FLOAT_DTYPES:
                raise ActError(
                    f"{name} of the {side} is {parameter.dtype}, which cannot be transferred; "
                    "load the models unquantised, as float32, bfloat16 or float16"
                )


def _rows_view(parameter: torch.Tensor, dim: int) -> torch.Tensor:
    """The parameter as ``[rows, rest]`` with channels first; a view that shares its memory."""
    data = parameter.detach()
    return data[:, None] if data.dim() == 1 else data.movedim(dim, 0)


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.cpu().contiguous().view(torch.uint8), other.cpu().contiguous().view(torch.uint8))

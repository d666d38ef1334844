"""Experts in another order: whether one model's look like another's rearranged, and putting them back in memory.

Which expert is which shows in the router: its row for an expert says which tokens that gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize

from act.core.errors import ActError, require_type
from act.models.blocks import Experts
from act.models.channels import ChannelSpace
from act.models.common import common_space, same_names
from act.models.placement import require_in_memory

LIKE, CLEARLY = 0.7, 0.2  # cosines: of a match, and by how much it must be better than the expert of the same number


class _Tensors(NamedTuple):
    """The tensors of a model by name, buffers included."""

    parameters: dict[str, torch.Tensor]
    all: dict[str, torch.Tensor]


def other_orders(donor: nn.Module, target: nn.Module, space: ChannelSpace | None = None) -> dict[str, list[int]]:
    """The layers in which the donor's experts look like the target's in another order; changes nothing.

    Router rows, less their mean, are compared by their cosine, and assigned greedily, the most similar first. A layer
    counts where some expert is far more like one of another number than like that of its own.

    Args:
        donor, target: the models.
        space: their channel space, if it is known already, or if they differ in vocabulary.

    Returns:
        Path of the experts -> for each of the target's, the number of the donor's that is like it. Layers without a
        known router, or whose routers are not in memory, are left out.

    Raises:
        ActError: models of different architectures.
    """
    donor, target = same_names(donor, target)
    return dict(_other_orders(space or common_space(donor, target), donor, target))


def align_experts(donor: nn.Module, target: nn.Module, space: ChannelSpace | None = None) -> dict[str, list[int]]:
    """Put the donor's experts in the order of those of the target that they look like, in memory and in place.

    Every tensor that belongs to an expert moves with it, router rows and biases included, so the donor computes what it
    did. Without it, channels of experts in another order would be compared with, and blended into, strangers.

    Args:
        donor, target, space: as for :func:`act.models.expert_order.other_orders`; only the donor changes.

    Returns:
        What was done, as :func:`act.models.expert_order.other_orders` says; empty if nothing was to do.

    Raises:
        ActError: models of different architectures, or not in memory; a tensor of which it is unknown whether it
            belongs to experts; groups of experts that the order would break.

    >>> act.align_experts(donor, target)  # dense models have no experts
    {}
    """
    if space is not None:
        require_type("the space", space, ChannelSpace, "an act.ChannelSpace, or none at all")
    donor, target = same_names(donor, target)
    space = space or common_space(donor, target)
    orders = dict(_other_orders(space, donor, target))
    if not orders:
        return {}
    require_in_memory(donor, "donor")
    tensors = _Tensors(dict(donor.named_parameters()), dict([*donor.named_parameters(), *donor.named_buffers()]))
    blocks = {block.name: block for block in space.blocks if isinstance(block, Experts)}
    moves = []
    for name, order in orders.items():
        _require_groups(donor, blocks[name], order)
        moves.append((order, *_moving(space, blocks[name], tensors)))
    with torch.no_grad():
        for order, stacked, listed in moves:
            for tensor, rows in stacked:
                whole = tensor if rows is None else tensor.view(-1, rows, *tensor.shape[1:])
                whole.copy_(whole[order])
            for each in listed:
                old = [tensor.clone() for tensor in each]
                for tensor, number in zip(each, order, strict=True):
                    tensor.copy_(old[number])
    return orders


def _other_orders(space: ChannelSpace, donor: nn.Module, target: nn.Module) -> Iterator[tuple[str, list[int]]]:
    weights = [dict(model.named_parameters()) for model in (donor, target)]
    for block in space.blocks:
        if not isinstance(block, Experts) or block.router is None or not space.site(block.router).parameters:
            continue
        part = space.site(block.router).parameters[0]
        if any(part.key not in each or each[part.key].is_meta for each in weights):
            continue
        rows = [part.matrix(each)[: block.count] for each in weights]
        theirs, ours = (normalize(each - each.mean(0)) for each in (x.float().cpu() for x in rows))
        cosines = ours @ theirs.T
        order = _assigned(cosines)
        own, found = cosines.diagonal(), cosines[torch.arange(block.count), torch.tensor(order)]
        if ((found > LIKE) & (found > own + CLEARLY)).any():
            yield block.name, order


def _assigned(cosines: torch.Tensor) -> list[int]:
    """For each row a column of its own, the largest numbers first."""
    count = len(cosines)
    order, taken = [-1] * count, set[int]()
    for place in cosines.flatten().argsort(descending=True, stable=True).tolist():
        row, column = divmod(place, count)
        if order[row] < 0 and column not in taken:
            order[row] = column
            taken.add(column)
    return order


def _require_groups(donor: nn.Module, block: Experts, order: Sequence[int]) -> None:
    """Raise :class:`ActError` if routing first chooses among groups of neighbours, and the order does not keep them."""
    groups = getattr(getattr(donor, "config", None), "n_group", None) or 1
    size = block.count // groups
    ours = [{number // size for number in order[at : at + size]} for at in range(0, block.count, size)]
    if groups > 1 and any(len(group) > 1 for group in ours):
        raise ActError(
            f"{block.name} routes to {groups} groups of experts first, and the target's order would take the donor's "
            "groups apart, which changes what it computes; leave the experts as they are, without matching"
        )


def _moving(
    space: ChannelSpace, block: Experts, tensors: _Tensors
) -> tuple[list[tuple[torch.Tensor, int | None]], list[list[torch.Tensor]]]:
    """The tensors that hold something of each expert: stacked in one (with the rows of each), or one for each."""
    stacked: dict[str, int | None] = {}
    listed: dict[tuple[str, int], list[str]] = {}
    for expert in range(block.count):
        for role, name in zip(block.roles, block.sites(expert), strict=True):
            for number, part in enumerate(space.site(name).parameters):
                if part.expert is None:
                    listed.setdefault((role, number), []).append(part.key)
                else:
                    stacked[part.key] = part.rows
    assert block.router is not None
    router = space.site(block.router).module
    around = _shared_path(block.name, router)
    routing = router if router.rpartition(".")[0] == around else router.rpartition(".")[0]
    known = {*stacked, *(name for names in listed.values() for name in names)}
    for name, tensor in tensors.all.items():
        owner = name.rpartition(".")[0]
        if name in known or tensor.shape[:1] != (block.count,):
            continue
        if name.startswith(f"{routing}.") or (owner == around and tensor.dim() == 1):
            stacked[name] = None
        elif name.startswith(f"{block.name}."):
            raise ActError(
                f"it is unknown whether {name} belongs to the experts, so they cannot be put in another order"
            )
    return (
        [(tensors.all[name].detach(), rows) for name, rows in stacked.items()],
        [[tensors.parameters[name].detach() for name in names] for names in listed.values()],
    )


def _shared_path(one: str, other: str) -> str:
    """The path of the innermost module that holds both, or is one of them."""
    parts = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        parts.append(a)
    return ".".join(parts)

"""Local match: how far a donor's row alone, on the target's own input, brings the target's output towards the donor's.

For a channel whose output is ``a_t`` in the target and ``a_d`` in the donor, for the same token, and ``a_s`` with the
donor's parameters on the *target's* input, moving the row changes the output by ``delta = a_s - a_t``, where
``D = a_d - a_t`` is what one wants to change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from act.data.corpus import Corpus
from act.models.channels import ChannelSpace


class Match(NamedTuple):
    """Means over the counted tokens of a text, float64 ``[N]``."""

    benefit: torch.Tensor  # delta * D
    cost: torch.Tensor  # delta ** 2
    wanted: torch.Tensor  # D ** 2
    size: torch.Tensor  # a_t ** 2


@torch.no_grad()
def match(donor: nn.Module, target: nn.Module, corpus: Corpus, space: ChannelSpace) -> Match:
    """The sums of both models over a corpus; the modules of all sites take one tensor and give one."""
    modules = {side: dict(model.named_modules()) for side, model in (("donor", donor), ("target", target))}
    taken: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {"donor": {}, "target": {}}
    sums = torch.zeros(4, len(space), dtype=torch.float64)
    tokens = 0

    def taking(side: str, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            taken[side][name] = given[0], output

        return hook

    hooks = [
        modules[side][site.name].register_forward_hook(taking(side, site.name)) for side in taken for site in space
    ]
    try:
        for sequence in corpus.sequences():
            ids = torch.as_tensor(sequence.input_ids, dtype=torch.int64)[None]
            counted = torch.as_tensor(sequence.count_mask)
            for model in (donor, target):
                model(input_ids=ids, use_cache=False)
            for site in space:
                given, before = taken["target"][site.name]
                swapped = modules["donor"][site.name].forward(given)  # no hook runs
                delta, wanted = ((to - before)[0, counted] for to in (swapped, taken["donor"][site.name][1]))
                products = (delta * wanted, delta.square(), wanted.square(), before[0, counted].square())
                sums[:, site.channels] += torch.stack([each.sum(0) for each in products]).double()
            tokens += int(counted.sum())
    finally:
        for hook in hooks:
            hook.remove()
    return Match(*(sums / tokens))


def benefit(found: Match, space: ChannelSpace) -> torch.Tensor:
    """``E[delta D]`` over its module's mean of ``E[D^2]``, by which modules are compared."""
    return found.benefit / _by_module(found.wanted, space)


def per_root_cost(found: Match, keep: Match, space: ChannelSpace) -> torch.Tensor:
    """The benefit over the root of what the change disturbs in what to keep, ``E[delta^2]`` over its module's size.

    The cost of a channel that hardly touches what is kept counts as a thousandth of the median cost.
    """
    cost = keep.cost / _by_module(keep.size, space)
    return benefit(found, space) / cost.clamp_min(1e-3 * float(cost.median())).sqrt()


def _by_module(values: torch.Tensor, space: ChannelSpace) -> torch.Tensor:
    """For each channel, the mean over its module; 1 where that is 0."""
    means = torch.ones_like(values)
    for site in space:
        means[site.channels] = values[site.channels].mean() or 1.0
    return means

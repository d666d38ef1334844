"""Modules that use parameters without calling a module for each: packed experts, most routers, many convolutions.

What such a **holder** computes with a parameter is seen while its forward runs (:mod:`act.taps.parameter_calls`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import nn

from act.core.errors import ActError
from act.models.kinds import is_router
from act.models.sites import ParameterSlice, Site

KERNELS = ("eager", "grouped_mm", "batched_mm")
"""The implementations of experts in transformers whose products are those of PyTorch."""


@dataclass(frozen=True)
class Bank:
    """Sites that are read together: one role of all experts of a layer, or a single site.

    Attributes:
        name: such as ``model.layers.0.mlp.experts.gate``.
        sites: by the number of the expert.
    """

    name: str
    sites: tuple[Site, ...]

    @property
    def routed(self) -> bool:
        """Whether only some tokens reach each site."""
        return self.sites[0].expert is not None


@dataclass(frozen=True)
class Weight:
    """One parameter of a holder, and the banks whose channels it makes.

    Attributes:
        name: of the parameter, within the model.
        expert: the expert that it belongs to, if it is of one only.
        packed: whether its first dimension runs over experts.
        rows: rows of each expert, if it is flat (see :class:`act.models.sites.ParameterSlice`).
        bias: the parameter that is added to its products, if there is one.
        banks: each with the span of its channels among the outputs.
    """

    name: str
    expert: int | None
    packed: bool
    rows: int | None
    bias: str | None
    banks: tuple[tuple[Bank, tuple[int, int, int] | None], ...]


@dataclass(frozen=True)
class Holder:
    """A module whose forward is watched, by its path, with the parameters that it uses."""

    name: str
    weights: tuple[Weight, ...]

    @cached_property
    def banks(self) -> tuple[Bank, ...]:
        """What it computes, in a fixed order."""
        return tuple({bank.name: bank for weight in self.weights for bank, _ in weight.banks}.values())

    @property
    def routed(self) -> bool:
        """Whether it holds experts."""
        return any(bank.routed for bank in self.banks)

    @property
    def experts(self) -> str:
        """Path of the module of its experts: itself, or the list of modules within it."""
        return next(bank.sites[0].experts for bank in self.banks if bank.routed)

    @property
    def shared(self) -> bool:
        """Whether every token passes all of its experts anyway."""
        return "shared" in self.experts.rpartition(".")[2]


def holders_of(model: nn.Module, sites: Iterable[Site], uncalled: Iterable[Site] = ()) -> list[Holder]:
    """The holders of a model, for those of its sites that no module's output is.

    Args:
        model: the model.
        sites: all its sites.
        uncalled: linears and convolutions that the model does not call, whose parents may use their weights.
    """
    modules = dict(model.named_modules())
    found: dict[str, list[Site]] = {}
    for site in sites:
        if site.expert is not None:
            path = site.experts
            listed = isinstance(modules[path], nn.ModuleList)
            found.setdefault(path.rpartition(".")[0] if listed else path, []).append(site)
        elif site.scales is None and _is_parameter(site):
            found.setdefault(site.module, []).append(site)
        elif _is_router(site, modules):
            found.setdefault(site.name, []).append(site)
    for site in uncalled:
        found.setdefault(site.name.rpartition(".")[0], []).append(site)
    return [Holder(name, _weights(held)) for name, held in found.items()]


def _is_parameter(site: Site) -> bool:
    """Whether a site is of a parameter that no module applies as a whole."""
    return site.expert is None and site.columns is None and site.module != site.name


def _is_router(site: Site, modules: Mapping[str, nn.Module]) -> bool:
    module = modules.get(site.name)
    return bool(site.parameters) and module is not None and not isinstance(module, nn.Linear) and is_router(module)


Parameters = Callable[[str], torch.Tensor]
"""A parameter by its name, as it is now: offloaded ones are replaced while their module runs."""


def parameters_of(model: nn.Module) -> Parameters:
    """The parameters of a model."""
    modules = dict(model.named_modules())

    def parameter(name: str) -> torch.Tensor:
        owner, _, leaf = name.rpartition(".")
        return cast(torch.Tensor, getattr(modules[owner], leaf))

    return parameter


def around(holders: Iterable[Holder]) -> list[Holder]:
    """The modules around these, as holders of their parameters: a module may be used without its forward."""
    found: dict[str, list[Weight]] = {}
    for holder in holders:
        found.setdefault(holder.name.rpartition(".")[0], []).extend(holder.weights)
    return [Holder(name, tuple(weights)) for name, weights in found.items()]


def require_known_kernels(model: nn.Module, holders: Iterable[Holder]) -> None:
    """Raise :class:`ActError` where experts are spread over processes, quantised, or run by kernels of their own."""
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    for holder in holders:
        if not holder.routed:
            continue
        module = modules[holder.name]
        held = [parameters.get(weight.name) for weight in holder.weights]
        if getattr(module, "_is_expert_parallel", False) or any(type(each).__name__ == "DTensor" for each in held):
            raise ActError(
                f"the experts of {holder.name} are spread over processes (expert parallelism), so that no process sees "
                "all tokens of an expert; load the model without it, and let several processes read the corpus instead"
            )
        kernels = getattr(getattr(module, "config", None), "_experts_implementation", None)
        if kernels is not None and kernels not in KERNELS:
            raise ActError(
                f"the experts of {holder.name} run by {kernels!r}, whose products cannot be read; call "
                f"model.set_experts_implementation with {' or '.join(map(repr, KERNELS))} first"
            )
        for weight, parameter in zip(holder.weights, held, strict=True):
            if parameter is None or not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
                kind = "no parameter" if parameter is None else parameter.dtype
                raise ActError(
                    f"the experts of {holder.name} are quantised ({weight.name} is {kind}), and their products cannot "
                    "be read; load the model unquantised"
                )


def _weights(sites: list[Site]) -> tuple[Weight, ...]:
    """The parameters of one holder."""
    banks: dict[str, list[Site]] = {}
    for site in sites:
        banks.setdefault(_bank_name(site), []).append(site)
    whole = {name: Bank(name, tuple(held)) for name, held in banks.items()}
    found: dict[str, dict[str, tuple[Bank, tuple[int, int, int] | None]]] = {}
    parts: dict[str, tuple[Site, ParameterSlice]] = {}
    biases: dict[str, str] = {}
    for site in sites:
        weight, *rest = site.parameters
        parts.setdefault(weight.key, (site, weight))
        found.setdefault(weight.key, {}).setdefault(_bank_name(site), (whole[_bank_name(site)], weight.span))
        if rest:
            biases[weight.key] = rest[0].key
    return tuple(
        Weight(
            name,
            None if parts[name][1].expert is not None else parts[name][0].expert,
            parts[name][1].expert is not None,
            parts[name][1].rows,
            biases.get(name),
            tuple(held.values()),
        )
        for name, held in found.items()
    )


def _bank_name(site: Site) -> str:
    return site.name if site.expert is None else f"{site.experts}.{site.kind}"

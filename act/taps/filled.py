"""Channels of holders set to fixed values: what ablation does where no module gives a channel by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

from act.core.errors import ActError
from act.taps.attachments import Attachments
from act.taps.holders import Bank, Holder, Parameters, Weight, parameters_of
from act.taps.parameter_calls import ParameterCalls, Product

Fills = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Site -> its channels, int64 ``[K]``, and the value of each, ``[K]``."""


def fill_held(attachments: Attachments, holders: Iterable[Holder], fills: Fills) -> set[str]:
    """Set channels of experts and routers wherever the model computes them with their parameters.

    Args:
        attachments: where forwards are replaced.
        holders: those of the model, as a probe has found them.
        fills: which channels.

    Returns:
        The sites of ``fills`` that are set so; the others are outputs of modules.
    """
    parameter = parameters_of(attachments.model)
    found: set[str] = set()
    for holder in holders:
        names = {site.name for bank in holder.banks for site in bank.sites} & fills.keys()
        if names:
            attachments.replace(holder.name, partial(_forward, holder, parameter, fills))
            found |= names
    return found


def _forward(
    holder: Holder,
    parameter: Parameters,
    fills: Fills,
    original: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    with _Filling(holder, parameter, fills) as calls:
        output = original(*args, **kwargs)
    calls.require_filled()
    return output


class _Filling(ParameterCalls):
    """Sets channels in each product as soon as it is whole."""

    def __init__(self, holder: Holder, parameter: Parameters, fills: Fills) -> None:
        super().__init__(holder, parameter, tokens=0)
        self._fills = fills
        self._filled: set[str] = set()  # parameters
        self._waiting: Product | None = None  # for its bias

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        if self._waiting is not None and not self._waiting.lacks_bias:
            self._fill(self._waiting)
            self._waiting = None
        return output

    def require_filled(self) -> None:
        """Raise :class:`ActError` if the forward computed something with a parameter that was not recognised."""
        for weight in self.holder.weights:
            sites = (site for bank, _ in weight.banks for site in bank.sites)
            wanted = any(site.name in self._fills for site in sites)
            if wanted and (weight.packed or weight.expert is None) and weight.name not in self._filled:
                raise ActError(
                    f"it was not seen what {self.holder.name} computes with {weight.name}, so its channels cannot be "
                    "set; leave them out"
                )

    def _add(self, *args: Any, **kwargs: Any) -> None:
        super()._add(*args, **kwargs)
        self._waiting = self._products.pop()
        self._products = [self._waiting]  # to which a bias may be added

    def _add_columns(self, weight: Weight, output: torch.Tensor, bias: torch.Tensor | None) -> None:
        for bank, _ in weight.banks:
            for _, channels, values in self._wanted(bank):
                at = channels.to(output.device)
                before_bias = values.to(output) - (0 if bias is None else bias[at].to(output))
                output[:, at] = before_bias[:, None]
        self._filled.add(weight.name)

    def _add_all(self, weight: Weight, x: torch.Tensor, output: torch.Tensor) -> None:
        reached = self._reached(weight, x)
        for bank, span in weight.banks:
            for number, channels, values in self._wanted(bank):
                part = output[number] if span is None else output[number][:, slice(*span)]
                _set(part, reached[number].nonzero().flatten(), channels, values)
        self._filled.add(weight.name)

    def _tokens_of(self, x: torch.Tensor, rows: int, expert: int | None = None) -> torch.Tensor:
        return self._every(x.device)  # does not matter here

    def _wanted(self, bank: Bank) -> Iterable[tuple[int, torch.Tensor, torch.Tensor]]:
        return [(n, *self._fills[site.name]) for n, site in enumerate(bank.sites) if site.name in self._fills]

    def _fill(self, product: Product) -> None:
        experts = product.experts
        for bank, span in product.weight.banks:
            part = product.rows if span is None else product.rows[:, slice(*span)]
            for number, channels, values in self._wanted(bank):
                every = torch.arange(len(part), device=part.device)
                if experts is None:
                    rows = every
                elif isinstance(experts, int):
                    rows = every if experts == number else every[:0]
                elif product.in_order:
                    rows = every[int(experts[number - 1]) if number else 0 : int(experts[number])]
                else:
                    rows = (experts.flatten() == number).nonzero().flatten()
                _set(part, rows, channels, values)
        self._filled.add(product.weight.name)


def _set(part: torch.Tensor, rows: torch.Tensor, channels: torch.Tensor, values: torch.Tensor) -> None:
    """Set some channels of some rows of a view, in place."""
    part.detach()[rows[:, None], channels.to(part.device)] = values.to(part)

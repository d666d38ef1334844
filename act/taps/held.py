"""Holders: their forwards are watched, and what they compute is read when they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from act.core.errors import ActError
from act.taps.attachments import Attachments
from act.taps.holders import Holder, Parameters
from act.taps.measurement import Measurement
from act.taps.parameter_calls import ParameterCalls
from act.taps.twins import UNFOLLOWED

ROWS_AT_ONCE = 1 << 14
"""Rows that all experts together compute at a time, where every token goes through every expert."""


class HeldParameters:
    """The holders of one model whose sites are measured.

    Args:
        holders: all holders of the model.
        parameter: finds the parameters of the model.
        measurement: where their rows go.
        all_experts: measure every expert on every token. What the model computes stays as it is.
        donor: finds the parameters of a donor, if outputs are swapped.
    """

    def __init__(
        self,
        holders: Iterable[Holder],
        parameter: Parameters,
        measurement: Measurement,
        all_experts: bool = False,
        donor: Parameters | None = None,
    ) -> None:
        wanted = measurement.sites.keys()
        self._holders = [
            holder for holder in holders if any(site.name in wanted for bank in holder.banks for site in bank.sites)
        ]
        self._parameter = parameter
        self._measurement = measurement
        self._all_experts = all_experts
        self._donor = donor

    def attach(self, attachments: Attachments) -> set[str]:
        """Watch the forwards of all holders."""
        for holder in self._holders:
            attachments.replace(holder.name, partial(self._forward, holder, attachments.modules[holder.name]))
        return {site.name for holder in self._holders for bank in holder.banks for site in bank.sites}

    def reset(self) -> None:
        """Nothing is kept between forwards."""

    def _forward(
        self, holder: Holder, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self._all_experts and holder.routed and not holder.shared:
            for run_some in every_expert(holder, module, original, args, kwargs):
                self._watched(holder, run_some)
            return original(*args, **kwargs)
        return self._watched(holder, partial(original, *args, **kwargs))

    def _watched(self, holder: Holder, run: Callable[[], Any]) -> Any:
        sizes, sites = self._measurement.sizes, [site.name for bank in holder.banks for site in bank.sites]
        tokens = sizes.batch * sizes.of(self._measurement.tokens_of(*sites))
        with ParameterCalls(holder, self._parameter, tokens, self._donor) as calls:
            output = run()
        for bank, rows in calls.results():
            if self._donor and rows.swapped is None:
                unswapped = (site.name for site in bank.sites if site.name in self._measurement.sites)
                self._measurement.unswapped.update(dict.fromkeys(unswapped, UNFOLLOWED))
            self._measurement.read_bank(bank, rows)
        return output


def every_expert(
    holder: Holder, module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Callable[[], Any]]:
    """Calls by which experts see every token, some experts at a time.

    Raises:
        ActError: experts that are not given tokens, their experts, and the weights of these.
    """
    given: dict[int | str, Any] = dict(enumerate(args)) | dict(kwargs)
    tensors = {place: x for place, x in given.items() if isinstance(x, torch.Tensor)}
    hidden = next((place for place, x in tensors.items() if x.is_floating_point()), None)
    index = next((place for place, x in tensors.items() if not x.is_floating_point() and x.dim() == 2), None)
    experts_module = module.get_submodule(holder.experts.removeprefix(holder.name).lstrip("."))
    if isinstance(experts_module, nn.ModuleList) and hidden is not None:
        tokens = tensors[hidden].reshape(-1, tensors[hidden].shape[-1])
        yield lambda: [expert(tokens) for expert in experts_module]
        return
    if len(tensors) != 3 or hidden is None or index is None or tensors[hidden].dim() != 2:
        raise ActError(
            f"{holder.name} ({type(module).__name__}) does not take tokens, the experts of each and their weights, so "
            "not every token can be shown to every expert; measure the tokens that are routed to each (without "
            "--moe-all-experts)"
        )
    count, rows = max(len(bank.sites) for bank in holder.banks), len(tensors[hidden])
    some = max(1, ROWS_AT_ONCE // max(1, rows))
    for first in range(0, count, some):
        experts = torch.arange(first, min(first + some, count), device=tensors[index].device).expand(rows, -1)
        experts = experts.to(tensors[index].dtype)
        (weights,) = tensors.keys() - {hidden, index}
        changed = {**given, index: experts, weights: tensors[weights].new_zeros(experts.shape)}
        positional = [changed[place] for place in range(len(args))]
        yield partial(original, *positional, **{name: changed[name] for name in kwargs})

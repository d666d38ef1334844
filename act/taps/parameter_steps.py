"""What products with parameters that no module applies, such as those of packed experts, change by to first order.

Such a product is linear in its parameter: what it changes by is the same call with the step to the donor in the place
of the parameter. So whatever way a model computes its experts in, the rows come out as they went.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from act.core.errors import ActError
from act.models.sites import Site
from act.taps.holders import Holder, Parameters, Weight
from act.taps.parameter_calls import ParameterCalls, Product
from act.taps.recomputed import Kept
from act.taps.steps import Steps

Take = Callable[[tuple[Site, ...], torch.Tensor, torch.Tensor, "torch.Tensor | int"], None]
"""Called with the sites of a bank, rows ``[R, C]`` of gradient times change, the token of each row, int64 ``[R]``, and
the number of its site, int64 ``[R]`` or one for all."""

_BIASED: dict[Any, int] = {F.linear: 2, F.conv1d: 2}
"""Functions that take a bias: its place among their arguments."""


class ParameterSteps(ParameterCalls):
    """Over one forward of a holder with gradients: calls ``take`` on the way back, for each product.

    Args:
        holder: what to look for.
        parameter: finds the parameters of the model.
        tokens: how many tokens the batch has, padding included.
        steps: the way to the donor.
        take: see :data:`Take`.
    """

    def __init__(self, holder: Holder, parameter: Parameters, tokens: int, steps: Steps, take: Take) -> None:
        super().__init__(holder, parameter, tokens)
        self._steps, self._take = steps, take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = len(self._products)
        output = super().__torch_function__(func, types, args, kwargs)
        for product in self._products[known:]:
            self._watch(product, func, args, kwargs or {}, output)
        return output

    def end(self) -> None:
        """Forget the activations of the forward; raises :class:`ActError` where the token of a row is unknown."""
        for seen in (self._gathered, self._picked, self._products, self._kept, self._last):
            seen.clear()
        if self._problem:
            raise ActError(f"{self._problem}; exclude what it computes, or report the architecture")

    def _watch(
        self, product: Product, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
    ) -> None:
        if not output.requires_grad:
            return
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs.items())
        place, step = next(
            (place, step) for place, each in given.items() if (step := self._step_of(product.weight, each)) is not None
        )
        for bias in (_BIASED.get(func, "bias"), "bias"):
            if bias in given:
                given[bias] = None  # its step is added below
        tensors = {key: x for key, x in given.items() if isinstance(x, torch.Tensor) and key != place}
        others = {key: x for key, x in given.items() if key not in tensors and key != place}
        kept, tokens = Kept(tuple(tensors.values())), product.tokens
        product.rows = product.rows.new_empty(0)  # the activations may go

        def hook(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                again = {**others, **dict(zip(tensors, kept.take(), strict=True)), place: step()}
                positional = [again.pop(number) for number in range(len(args))]
                change = product.arrange(func(*positional, **{str(name): x for name, x in again.items()})).float()
                experts = _of_rows(product, len(change))
                if product.weight.bias is not None:
                    change = change + self._bias(product.weight, experts)
                rows = change.mul_(product.arrange(gradient))
                for bank, span in product.weight.banks:
                    self._take(bank.sites, rows if span is None else rows[:, slice(*span)], tokens, experts)

        output.register_hook(hook)

    def _step_of(self, weight: Weight, x: Any) -> Callable[[], torch.Tensor] | None:
        """Makes what stands in the place of an argument, if that is the parameter or a part of it."""
        if not isinstance(x, torch.Tensor):
            return None
        if picked := self._picked.get(id(x)):
            return partial(self._steps.rows, weight.name, picked[2], x.dtype)
        places = self._places.get(x.untyped_storage().data_ptr(), ())
        for found, parameter in places:
            first = int(x.storage_offset() - parameter.storage_offset())
            if found is weight and 0 <= first < parameter.numel():
                return partial(self._steps.like, weight.name, x.shape, x.stride(), first, x.dtype)
        return None

    def _bias(self, weight: Weight, experts: torch.Tensor | int) -> torch.Tensor:
        step = self._steps.of(str(weight.bias)).float()
        if not weight.packed:
            return step
        return step.view(-1, step.shape[-1])[experts]


def _of_rows(product: Product, rows: int) -> torch.Tensor | int:
    """The number of each row's expert, or of that of all."""
    if not isinstance(product.experts, torch.Tensor):
        return product.experts or 0
    if not product.in_order:
        return product.experts
    ends = torch.arange(rows, device=product.experts.device)
    return torch.searchsorted(product.experts.to(ends.dtype), ends, right=True).clamp_(max=len(product.experts) - 1)

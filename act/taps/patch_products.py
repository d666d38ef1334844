"""Products of patches with a matrix that no module applies as a whole, such as that behind the tower of Gemma 3."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from act.models.layout import OF_PATCHES
from act.models.sites import Site
from act.taps.attachments import Attachments
from act.taps.holders import Parameters, parameters_of
from act.taps.twins import UNFOLLOWED, twin

if TYPE_CHECKING:
    from act.taps.measurement import Measurement

_PRODUCTS = (F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


def is_matrix(site: Site) -> bool:
    """Whether a site is of one parameter that no module applies as a whole."""
    return site.module != site.name and site.columns is None and site.expert is None and len(site.parameters) == 1


class Products(TorchFunctionMode):
    """Keeps in :attr:`found`, by name and in order, what a model computes with some of its parameters.

    With the parameters of a ``donor``, it also keeps a call that computes what those give.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], donor: Parameters | None = None) -> None:
        super().__init__()
        self._parameter, self._donor = parameters_of(model), donor
        self._names = tuple(names)
        self.found: list[tuple[str, torch.Tensor, Callable[[], torch.Tensor] | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _PRODUCTS and len(args) > 1 and isinstance(args[1], torch.Tensor):
            for name in self._names:
                parameter = self._parameter(name)
                if args[1].data_ptr() == parameter.data_ptr() and args[1].numel() == parameter.numel():
                    theirs = None if self._donor is None else twin(args[1], parameter, self._donor(name))
                    again = None if theirs is None else partial(func, args[0].to(theirs.device), theirs, *args[2:])
                    self.found.append((name, output.detach(), again))
        return output


class PatchProducts:
    """The sites of one model that are such products.

    Args:
        model: the model.
        measurement: where their rows go.
        donor: finds the parameters of a donor, if outputs are swapped.
    """

    def __init__(self, model: nn.Module, measurement: Measurement, donor: Parameters | None = None) -> None:
        self._model, self._measurement, self._donor = model, measurement, donor
        self._names: dict[str, list[str]] = {}
        for name, site in measurement.sites.items():
            if is_matrix(site) and site.layouts[0] in OF_PATCHES:
                self._names.setdefault(site.module, []).append(name)

    def attach(self, attachments: Attachments) -> set[str]:
        """Watch the forwards of the modules that hold the matrices."""
        for module, names in self._names.items():
            attachments.replace(module, partial(self._forward, names))
        return {name for names in self._names.values() for name in names}

    def reset(self) -> None:
        """Nothing is kept between forwards."""

    def _forward(self, names: list[str], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with Products(self._model, names, self._donor) as products:
            output = original(*args, **kwargs)
        for name, product, swapped in products.found:
            self._measurement.read(name, product, swapped)
            if self._donor and swapped is None:
                self._measurement.unswapped.setdefault(name, UNFOLLOWED)
        return output

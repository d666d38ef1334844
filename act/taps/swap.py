"""Swapped outputs: what a donor's modules give on the inputs that a target gives its own.

They are computed as the target reaches a site, so that no activation is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from act.models.placement import run_devices
from act.models.sites import Site
from act.taps.fusion import Norm
from act.taps.holders import parameters_of
from act.taps.residual import normed, plain

_SCALES = "it only scales or shifts what another site gives"


class Swap:
    """The modules of a donor, to be called with what those of a target are given.

    Make it before anything is attached to either model: the donor's own forwards run, without the hooks of taps.

    Args:
        donor, target: models whose modules have the same names.

    Attributes:
        parameter: finds the parameters of the donor.
        norms: how those of its norms run that can run fused.
    """

    def __init__(self, donor: nn.Module, target: nn.Module) -> None:
        self._modules = dict(donor.named_modules())
        self._forwards = {name: module.forward for name, module in self._modules.items()}
        self._devices = run_devices(donor, self._modules)
        self.parameter = parameters_of(donor)
        self.norms: Mapping[str, Norm] = {}
        refused = ((name, self._refused(name, module)) for name, module in target.named_modules())
        self._left_out = {name: reason for name, reason in refused if reason}

    def on(self, name: str, args: Iterable[Any], kwargs: Mapping[str, Any] | None = None) -> Callable[[], Any] | None:
        """The call of the donor's module with what the target's was given; None if it cannot be made."""
        if name in self._left_out:
            return None
        return lambda: self._output(name, [*args], kwargs or {})

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """Apply none of these modules."""
        self._left_out.update(dict.fromkeys(names, reason))

    def unswapped(self, sites: Iterable[Site]) -> dict[str, str]:
        """Why sites have no swapped output, by name, as far as the models show it before they run."""
        found = {site.name: _SCALES if site.scales else self._left_out.get(site.module) for site in sites}
        return {name: reason for name, reason in found.items() if reason}

    def _refused(self, name: str, module: nn.Module) -> str | None:
        theirs = self._modules.get(name)
        if theirs is None:
            return "the donor has no such module"
        parts = [part for one in (module, theirs) for part in one.modules()]
        if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
            return "it has hooks of its own, which may change what it is given or gives"
        away = (part for part in theirs.modules() if any(one.is_meta for one in part.parameters(recurse=False)))
        if any("_hf_hook" not in vars(part) for part in away):
            return "the donor's is offloaded together with what is around it"
        return None

    def _output(self, name: str, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        device = self._devices[name]
        args = [_there(x, device) for x in args]
        norm, module = self.norms.get(name), self._modules[name]
        with torch.no_grad():
            if norm is not None and len(args) == 1 and not kwargs and _fits(args[0], module):
                return normed(module, norm, args[0])[1]
            with _without_hooks([*module.modules()][1:]):
                return self._forwards[name](*args, **{key: _there(x, device) for key, x in kwargs.items()})


def _there(x: Any, device: torch.device) -> Any:
    return plain(x).to(device) if isinstance(x, torch.Tensor) else x


def _fits(x: object, module: nn.Module) -> bool:
    weight = module.get_parameter("weight")
    return isinstance(x, torch.Tensor) and x.is_contiguous() and (x.dtype, x.device) == (weight.dtype, weight.device)


@contextlib.contextmanager
def _without_hooks(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Set the hooks of the parts of an adapter aside, which taps have put there."""
    kept = [(module, module._forward_hooks, module._forward_pre_hooks) for module in modules]
    try:
        for module, _, _ in kept:
            module._forward_hooks, module._forward_pre_hooks = {}, {}
        yield
    finally:
        for module, after, before in kept:
            module._forward_hooks, module._forward_pre_hooks = after, before

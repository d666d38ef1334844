"""What the outputs of a module would change by, to first order, if its parameters moved to the donor's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

ROWS_AT_ONCE = 4096

Change = Callable[[tuple[torch.Tensor, ...]], torch.Tensor]
"""The change of an output, in its shape, from the tensors that the module was given."""


class Steps:
    """The way from the target's parameters to the donor's: ``theta_d - theta_t``.

    Differences are formed in float32, then given in the type of the target, part by part, on the device of the target:
    so the donor may be on another one, and at most one parameter of it is copied.

    Args:
        donor, target: views of one architecture (:func:`act.models.common.same_names`).
    """

    def __init__(self, donor: nn.Module, target: nn.Module) -> None:
        self._donor, self._target = (dict(model.named_parameters(remove_duplicate=False)) for model in (donor, target))
        self._keys = {id(parameter): key for key, parameter in self._target.items()}
        self._held: dict[str, torch.Tensor] = {}

    def parameter(self, key: str) -> torch.Tensor:
        """A parameter of the target."""
        return self._target[key]

    def key_of(self, parameter: torch.Tensor) -> str:
        """The name of a parameter of the target."""
        return self._keys[id(parameter)]

    def hold(self, module: nn.Module) -> None:
        """Keep the steps of a module that is about to be called several times, until :meth:`release`."""
        keys = map(self.key_of, module.parameters(recurse=False))
        self._held |= {key: self.of(key) for key in keys if key not in self._held}

    def release(self) -> None:
        """Forget what was held."""
        self._held.clear()

    def of(self, key: str) -> torch.Tensor:
        """The step of a whole parameter."""
        return self._held[key] if key in self._held else self._between(*self._both(key))

    def rows(self, key: str, index: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The step of some rows of a parameter, ``[*index.shape, …]``."""
        mine, theirs = self._both(key)
        return (_wide(theirs[index.to(theirs.device)].to(mine.device)) - _wide(mine[index])).to(dtype)

    def like(
        self, key: str, shape: torch.Size, stride: tuple[int, ...], offset: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """The step of a view that the model takes of a parameter, which begins ``offset`` values after it does."""
        wholes = (parameter.contiguous() for parameter in self._both(key))
        mine, theirs = (whole.as_strided(shape, stride, whole.storage_offset() + offset) for whole in wholes)
        return self._between(mine, theirs).to(dtype)

    def _both(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._target[key].detach(), self._donor[key].detach()

    @staticmethod
    def _between(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        step = torch.empty_like(mine)
        if not mine.dim():
            return step.copy_(_wide(theirs.to(mine.device)) - _wide(mine))
        for some in (slice(start, start + ROWS_AT_ONCE) for start in range(0, len(mine), ROWS_AT_ONCE)):
            step[some] = _wide(theirs[some].to(mine.device)) - _wide(mine[some])
        return step


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def change_of(module: Any, steps: Steps, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Change:
    """What changes in the output of a module that was called like this; it needs all tensors among its arguments.

    A plain linear is multiplied with the step alone. Of any other module the derivative along the step is taken forward
    (exact for norms, convolutions and whatever else is linear in its parameters).
    """
    if type(module).forward is nn.Linear.forward and len(args) == 1 and not kwargs:
        return lambda tensors: _linear(module, steps, tensors[0])
    if type(module).__name__ == "Conv1D" and len(args) == 1 and not kwargs:
        return lambda tensors: _transposed(module, steps, tensors[0])
    if type(module).forward is nn.Embedding.forward and len(args) == 1 and not kwargs:
        return lambda tensors: steps.rows(steps.key_of(module.weight), tensors[0])
    _load_forward_mode()
    leaves, spec = tree_flatten((args, dict(kwargs)))
    others = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def change(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        given = list(others)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        args, kwargs = tree_unflatten(given, spec)
        own = {name: parameter.detach() for name, parameter in module.named_parameters(recurse=False)}
        moved = {name: steps.of(steps.key_of(module.get_parameter(name))) for name in own}
        slope: torch.Tensor = jvp(lambda given: functional_call(module, given, args, kwargs), (own,), (moved,))[1]
        return slope

    return change


@cache
def _load_forward_mode() -> None:
    """Have PyTorch load its forward mode without the warning that it deprecates what it loads it with (2.14)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        jvp(torch.neg, (torch.zeros(1),), (torch.zeros(1),))


def tensors_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """All tensors among the arguments of a call, in the order in which a :data:`Change` takes them."""
    return tuple(leaf for leaf in tree_flatten((args, dict(kwargs)))[0] if isinstance(leaf, torch.Tensor))


def _linear(module: Any, steps: Steps, x: torch.Tensor) -> torch.Tensor:
    weight, bias = steps.of(steps.key_of(module.weight)), module.bias
    return F.linear(x.to(weight.dtype), weight, None if bias is None else steps.of(steps.key_of(bias)))


def _transposed(module: Any, steps: Steps, x: torch.Tensor) -> torch.Tensor:
    weight = steps.of(steps.key_of(module.weight))
    return x.to(weight.dtype) @ weight + steps.of(steps.key_of(module.bias))

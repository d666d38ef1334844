"""Hooks and replaced forwards on the modules of a model, and what each mechanism does with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import nn


class Attachments:
    """Everything that was put on a model; :meth:`remove` takes it away again.

    Attributes:
        modules: the modules of the model, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self._undo = contextlib.ExitStack()

    def after(self, name: str, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args, kwargs, output)`` after each forward of a module."""
        self._undo.callback(self.modules[name].register_forward_hook(hook, with_kwargs=True).remove)

    def before(self, name: str, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args)`` before each forward of a module."""
        self._undo.callback(self.modules[name].register_forward_pre_hook(hook).remove)

    def replace(self, name: str, forward: Callable[..., Any]) -> None:
        """Make a module run ``forward(original_forward, *arguments)`` instead of its own forward."""
        module = self.modules[name]
        before = {key: module.__dict__[key] for key in ("forward",) if key in module.__dict__}
        module.forward = partial(forward, module.forward)
        self._undo.callback(module.__dict__.update, before)
        self._undo.callback(module.__dict__.pop, "forward", None)

    def undo_by(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when everything is taken away."""
        self._undo.callback(callback)

    def remove(self) -> None:
        """Restore the model; calling it again does nothing."""
        self._undo.close()


class Mechanism(Protocol):
    """One way in which a model computes, and in which the sites on it are read."""

    def attach(self, attachments: Attachments) -> set[str]:
        """Put hooks and fused forwards in place.

        Returns:
            Names of the sites that the mechanism reads, and that need no hook of their own.
        """
        ...

    def reset(self) -> None:
        """Forget whatever an unfinished forward has left behind."""
        ...

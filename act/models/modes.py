"""What a model is set to: training or evaluation mode, and whatever it sets itself while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from act.models.views import original


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode over the block, so that dropout is off; every module then gets its own mode back."""
    model = original(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give every module its attributes and children back when the block ends, as it had them before.

    A model may set itself to something else for good when it is tried on a few tokens: BigBird leaves out its sparse
    attention. What a tensor holds is not restored.
    """
    held = ("_modules", "_parameters", "_buffers")
    before = [
        (module, dict(vars(module)), {name: dict(vars(module)[name]) for name in held})
        for module in original(model).modules()
    ]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            for name, content in contents.items():
                _refill(attributes[name], content)
            _refill(vars(module), attributes)


def _refill(into: dict[str, Any], content: dict[str, Any]) -> None:
    into.clear()
    into.update(content)

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
    """Give every module its children, tensors and plain public attributes back when the block ends, as it had them.

    A model may set itself to something else for good when it is tried on a few tokens: BigBird leaves out its sparse
    attention, FSMT makes a new table of positions. What a model adds, and what is private to it, such as hooks that it
    installs once, stays; what a tensor holds is not restored.
    """
    before = [
        (module, dict(module._modules), dict(module._parameters), dict(module._buffers), _plain_attributes(module))
        for module in original(model).modules()
    ]
    try:
        yield
    finally:
        for module, children, parameters, buffers, attributes in before:
            module._modules.update(children)
            module._parameters.update(parameters)
            module._buffers.update(buffers)
            vars(module).update(attributes)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    kinds = (str, bool, int, float, type(None))
    return {name: x for name, x in vars(module).items() if not name.startswith("_") and isinstance(x, kinds)}

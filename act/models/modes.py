"""Training and evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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

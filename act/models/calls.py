"""How a model is called: which arguments its forward takes."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The arguments that keep a forward from returning its keys and values; none for a model that returns none."""
    return {"use_cache": False} if _takes(model, "use_cache") else {}


def has_decoder(model: nn.Module) -> bool:
    """Whether a model reads two texts: a source with its encoder and what its decoder is to write."""
    return _takes(model, "decoder_input_ids")


def _takes(model: nn.Module, name: str) -> bool:
    """Whether a model, or the one that it hands other arguments on to, has an argument of this name."""
    parameters = inspect.signature(model.forward).parameters
    if name in parameters:
        return True
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return False
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "base_model", None)  # type: ignore[operator]
    if inner is None or inner is model:
        return inner is None and name == "use_cache"
    return _takes(inner, name)

"""Quantised linears and embeddings: what they give can be read, while their channels are no rows of a parameter."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NOT_MOVED = (
    "which can be profiled but not transferred; load the unquantised checkpoint, transfer, and quantise the result"
)
NO_STEP = (
    "so there is no step from one model's weights to the other's, nor a gradient along it; load the model unquantised"
)

OUTPUTS = ("out_features", "outfeatures", "embedding_dim")
INPUTS = ("in_features", "infeatures")


def width_of(module: nn.Module) -> int | None:
    """How many channels a quantised linear or embedding has; None for any other module."""
    weight = {**module._parameters, **module._buffers}.get("weight")
    if any(True for _ in module.children()) or (weight is not None and not _is_packed(weight)):
        return None  # whatever else it holds, such as a mask or a scalar
    return _size(module, OUTPUTS) if any(map(_is_packed, _tensors(module))) else None


def quantised_by(config: PretrainedConfig) -> str | None:
    """The method by which the weights of a model are quantised; None if they are not, or may be plain once loaded."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    given = getattr(config.get_text_config(), "quantization_config", None) or getattr(
        config, "quantization_config", None
    )
    if not given:
        return None
    found: Mapping[str, object] = given if isinstance(given, Mapping) else given.to_dict()
    method = str(found.get("quant_method") or "by an unnamed method")
    options = AUTO_QUANTIZATION_CONFIG_MAPPING.get(getattr(method, "value", method))
    undone = options is not None and "dequantize" in inspect.signature(options).parameters
    return None if undone else method


def is_stored_otherwise(module: nn.Module) -> bool:
    """Whether a module is quantised, and not only a linear whose matrix is of integers."""
    held = {**module._parameters, **module._buffers}
    plain = not any(is_traceable_wrapper_subclass(tensor) for tensor in _tensors(module))
    is_matrix = type(module) is nn.Linear and plain and {*held} == {"weight", "bias"}
    return width_of(module) is not None and not is_matrix


def inputs_of(module: nn.Module) -> int | None:
    """How many inputs a linear of any kind has; None for a module that does not say."""
    return _size(module, INPUTS)


def plain_tensors(tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that one of a class of its own is made of, each with what follows its name; itself if it is plain."""
    if not is_traceable_wrapper_subclass(tensor):
        yield "", tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        for rest, inner in plain_tensors(getattr(tensor, name)):
            yield f".{name}{rest}", inner


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    own = itertools.chain(module._parameters.values(), module._buffers.values())
    return (tensor for tensor in own if tensor is not None)


def _is_packed(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.dtype.itemsize < 2 or is_traceable_wrapper_subclass(tensor)


def _size(module: nn.Module, names: tuple[str, ...]) -> int | None:
    found = (getattr(module, name, None) for name in names)
    return next((size for size in found if isinstance(size, int)), None)

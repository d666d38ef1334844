"""How a model is called: which arguments its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from act.core.errors import ActError, brief

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Reader = Literal["decoder", "encoder", "encoder-decoder"]
"""How a model reads: token by token; a whole text at once; or so a source, for a decoder beside the encoder."""


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The arguments that keep a forward from returning its keys and values; none for a model that returns none."""
    return {"use_cache": False} if _takes(model, "use_cache") else {}


def cache_argument(model: nn.Module) -> str:
    """The argument by which a model takes keys and values that it kept: transformers 5.24 renamed it for some."""
    return "cache" if _takes(model, "cache") else "past_key_values"


def has_decoder(model: nn.Module) -> bool:
    """Whether a model reads two texts: a source with its encoder and what its decoder is to write."""
    return _takes(model, "decoder_input_ids")


def takes_images(model: nn.Module) -> bool:
    """Whether a model reads images beside text, as the processors of transformers give them."""
    return _takes(model, "pixel_values")


def reader_of(model: nn.Module) -> Reader:
    """How a model reads."""
    if has_decoder(model):
        return "encoder-decoder"
    return "encoder" if _encodes(getattr(model, "config", None)) else "decoder"


def reader_by(kind: Any, config: PretrainedConfig) -> Reader:
    """How a model of this class (see :func:`act.models.architecture.class_of`) and configuration will read."""
    if "decoder_input_ids" in arguments_of(kind):
        return "encoder-decoder"
    return "encoder" if _encodes(config) else "decoder"


def arguments_of(kind: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of the forward of a class of models."""
    return inspect.signature(getattr(kind, "forward", kind)).parameters


def _encodes(config: Any) -> bool:
    """Whether models of such a configuration see whole texts: they fill in masked tokens, or are half of two."""
    from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    known = any(type(config) in auto._model_mapping for auto in (AutoModelForMaskedLM, AutoModelForSeq2SeqLM))
    return known and not getattr(config, "is_decoder", False)


def shared_table(model: nn.Module) -> nn.Module | None:
    """The embedding that only holds what an encoder or decoder embeds with, by a module of its own, if there is one.

    Nothing calls it, so it gives no channels.
    """
    parts = [module for find in _SIDES if (module := _side(model, find)) is not None]
    inside = [module for part in parts for module in part.modules() if isinstance(module, nn.Embedding)]
    outside = (m for m in model.modules() if isinstance(m, nn.Embedding) and all(m is not one for one in inside))
    return next((table for table in outside if any(one.weight is table.weight for one in inside)), None)


_SIDES = ("get_encoder", "get_decoder")


def _side(model: nn.Module, find: str) -> nn.Module | None:
    found: Any = getattr(model, find, None)
    part: nn.Module | None = found() if found else None
    return None if part is model else part


def require_decoder(model: nn.Module, what: str, instead: str) -> None:
    """Raise :class:`ActError` unless a model writes texts token by token, which ``what`` needs."""
    reader = reader_of(model)
    if reader == "decoder" and getattr(model, "base_model", None) is not model:
        return
    kind = {"decoder": "a model without an LM head", "encoder": "an encoder"}.get(reader, "an encoder with a decoder")
    raise ActError(f"{type(model).__name__} is {kind}, and {what} needs a causal language model; {instead}")


def decoder_inputs(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a decoder reads to write labels ``[batch, length]``, -100 where there are none: it sees each a place later.

    The model may do that itself; otherwise a start token comes first. The function raises ActError if none is known.
    """
    prepare: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None) or _shifted_by(model)

    def shifted(labels: torch.Tensor) -> torch.Tensor:
        try:
            ids: torch.Tensor = prepare(labels)
        except (TypeError, ValueError, AssertionError) as error:
            raise ActError(f"{type(model).__name__} does not say how its decoder starts ({brief(error)})") from error
        return ids

    return shifted


def _shifted_by(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    config: Any = getattr(model, "config", None)
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    known = (getattr(config, name, None) for name in names)
    start = next((token for token in known if isinstance(token, int)), None)

    def shifted(labels: torch.Tensor) -> torch.Tensor:
        if start is None:
            raise ValueError("its configuration has no decoder_start_token_id")
        return torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1].clamp(min=0)], dim=1)

    return shifted


def _takes(model: nn.Module, name: str) -> bool:
    """Whether a model, or the one that it hands other arguments on to, has an argument of this name."""
    parameters = inspect.signature(model.forward).parameters
    if name in parameters:
        return True
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return False
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "base_model", None)  # type: ignore[operator]
    if inner is model and hasattr(model, "language_model"):  # of a model of text and images
        inner = model.language_model
    if inner is None or inner is model:
        return inner is None and name == "use_cache"
    return _takes(inner, name)

"""The input embedding and the LM head of a model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The module that embeds token ids, if the model has one."""
    return _found_by(getattr(model, "get_input_embeddings", None))


def lm_head(model: nn.Module) -> nn.Module | None:
    """The module that gives the logits, if the model has one."""
    return _found_by(getattr(model, "get_output_embeddings", None))


def _found_by(find: Callable[[], object] | None) -> nn.Module | None:
    try:
        found = find() if find else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None  # Perceiver's is the tensor that its queries are

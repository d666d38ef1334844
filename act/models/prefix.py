"""A text that several others continue, computed once: the model keeps its keys and values, as for generation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from act.core.errors import brief
from act.models.calls import cache_argument, reader_of
from act.models.limits import alike_before, vocabulary
from act.models.placement import input_device
from act.models.trials import tried

if TYPE_CHECKING:
    from transformers import DynamicCache

PROBED = 6, 5
"""Tokens of the prefix that :func:`why_unshared` tries, and of the texts that continue it."""

BY_LENGTH = "dynamic", "longrope", "su"
"""Kinds of rotary embedding whose frequencies depend on the length of a text; a probe is too short to show it."""


@dataclass(frozen=True)
class Prefix:
    """What each model of a run keeps of a text: its keys and values. Nothing that follows changes them."""

    caches: tuple[DynamicCache, ...]
    tokens: int = 0
    """How many it has once the forward that it grows by has come to the attention of its first layer."""

    @classmethod
    def empty(cls, models: int = 1) -> Prefix:
        """That of no text at all, for so many models."""
        from transformers import DynamicCache

        # Without the configuration it keeps every token: masks tell what is in a window.
        return cls(tuple(DynamicCache() for _ in range(models)))

    def of(self, number: int) -> Prefix:
        """That of one of the models."""
        return Prefix((self.caches[number],), self.tokens)

    def growing(self, tokens: int) -> Prefix:
        """A copy that takes in so many tokens in the next forward, of one text."""
        total = self.caches[0].get_seq_length() + tokens
        return Prefix(tuple(_with_layers(cache, copy.copy) for cache in self.caches), total)

    @property
    def is_whole(self) -> bool:
        """Whether the tokens that it grows by have places, which those behind it are counted from."""
        return all(cache.get_seq_length() >= self.tokens for cache in self.caches)

    def standing(self) -> Prefix:
        """A copy that stands before each text of a batch and takes in nothing."""
        return Prefix(tuple(_with_layers(cache, _standing) for cache in self.caches))

    def inputs(self, argument: str) -> dict[str, Any]:
        """The arguments with which one model runs on the texts that follow; ``argument`` is what it calls this."""
        (cache,) = self.caches
        return {argument: cache, "use_cache": True}


@contextlib.contextmanager
def _longest(model: nn.Module, tokens: int) -> Iterator[list[str]]:
    """Names of the modules whose outputs, over the block, run over so many tokens."""
    found: list[str] = []

    def note(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor) and any(size and size % tokens == 0 for size in output.shape[:-1]):
            found.append(name)

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                hook = module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
                stack.callback(hook.remove)
        yield found


def _with_layers(cache: DynamicCache, make: Any) -> DynamicCache:
    new = copy.copy(cache)
    new.layers = [make(layer) for layer in cache.layers]
    return new


def _standing(layer: Any) -> Any:
    """A layer of a cache that shows its keys and values before those of every row, and stays as it is."""
    new = copy.copy(layer)
    new.update = partial(_joined, layer)
    return new


def _joined(layer: Any, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    both = ((layer.keys, keys), (layer.values, values))
    return tuple(torch.cat([before.expand(len(after), -1, -1, -1), after], dim=-2) for before, after in both)


def _beginning(layer: Any, tokens: int) -> Any:
    """What a layer keeps of the first tokens of the first text."""
    new = copy.copy(layer)
    new.keys, new.values = (kept[:1, :, :tokens] for kept in (layer.keys, layer.values))
    return new


def why_unshared(model: nn.Module) -> str | None:
    """Why texts that begin alike cannot share their beginning; None if they can.

    They can if no token sees those after it, and the model gives for them, behind the keys and values of what they
    share, what it gives for the whole texts, and computes nothing for the shared tokens again.
    """
    from transformers.cache_utils import DynamicLayer

    if reader_of(model) != "decoder":
        return f"{type(model).__name__} reads texts as a whole"
    if by_length := _rotary_by_length(getattr(model, "config", None)):
        return f"{type(model).__name__} turns the first keys of a longer text otherwise (rotary embedding {by_length})"
    before, after = PROBED
    ids = torch.arange(1, 1 + before + after, device=input_device(model)).repeat(2, 1)
    ids[1, before:] += 1
    ids %= vocabulary(model) or 1
    try:
        body: Any = model.base_model
        argument = cache_argument(body)
        with tried(model), torch.no_grad():
            kept = Prefix.empty()
            output = body(input_ids=ids, **kept.inputs(argument))
            if not alike_before(output, after):
                return f"{type(model).__name__} gives a token other values if those after it are others"
            whole = output.last_hidden_state[:, before:]
            layers = kept.caches[0].layers
            if not layers or any(type(layer) is not DynamicLayer for layer in layers):
                return f"{type(model).__name__} keeps more of a text than keys and values"
            with _longest(body, before + after) as repeated:
                prefix = Prefix((_with_layers(kept.caches[0], partial(_beginning, tokens=before)),))
                parts = body(input_ids=ids[:, before:], **prefix.standing().inputs(argument)).last_hidden_state
    except Exception as error:  # a model of an unknown kind may raise anything
        return f"{type(model).__name__} does not run behind keys and values that it kept ({brief(error, 100)})"
    if repeated:
        return f"{repeated[0]} of {type(model).__name__} runs over the tokens of a prefix again"
    tolerance = 1e-5 if whole.dtype == torch.float32 else 3e-2
    if not torch.allclose(parts, whole, rtol=tolerance, atol=tolerance * float(whole.abs().max())):
        return f"{type(model).__name__} gives other values behind keys and values that it kept"
    return None


def _rotary_by_length(values: Any) -> str | None:
    """The kind of rotary embedding, anywhere in a configuration, that depends on how long a text is."""
    if not isinstance(values, dict):
        values = vars(values) if hasattr(values, "to_dict") else {}
    kind = values.get("rope_type", values.get("type"))
    if kind in BY_LENGTH:
        return str(kind)
    return next(filter(None, map(_rotary_by_length, values.values())), None)

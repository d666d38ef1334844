"""Views: a model under the names of the language model inside it.

A vision-language model holds a language model, and so does a wrapper such as that of PEFT. Its view has the same
modules and parameters under the names that they have in a model of text alone, so that the two can be compared.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from act.core.errors import ActError
from act.models.embeddings import lm_head

_WRAPPERS = ("DistributedDataParallel", "DataParallel")


class LanguageView(nn.Module):
    """A model whose parts have other names; made by :func:`language_view`.

    Modules, parameters and buffers are those of the original, and so is its forward. An attribute that it does not have
    itself is the original's.

    Attributes:
        original: the model.
        config: the configuration of the language model, which says how many heads there are.
        beside: names of what does not belong to the language model, such as the vision tower.
    """

    original: nn.Module
    beside: tuple[str, ...]

    def __init__(self, original: nn.Module, names: Mapping[str, str], language: int, config: object) -> None:
        """Give parts of a model their names.

        Args:
            original: the model.
            names: path of a module, parameter or buffer in the original -> its name here, one without a dot.
            language: how many of them, the first, belong to the language model.
            config: that of the language model.
        """
        super().__init__()
        self.__dict__["original"] = original  # not as one of its modules
        self._names = dict(names)
        self.beside = tuple(names.values())[language:]
        self.config = config
        self.training = original.training
        for path, name in names.items():
            if not path:
                self.add_module(name, original)
                continue
            holder, _, leaf = path.rpartition(".")
            for mine, theirs in zip(_members(self), _members(original.get_submodule(holder)), strict=True):
                if leaf in theirs:
                    mine[name] = theirs[leaf]

        @functools.wraps(original.forward)  # for its signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["original"], name)

    def train(self, mode: bool = True) -> LanguageView:
        """Put the original, all of it, in training mode or out of it."""
        self.original.train(mode)
        self.training = mode
        return self

    def name_of(self, path: str) -> str:
        """The name here of a module, parameter or buffer of the original; raises KeyError if it has none."""
        held = next(part for part in (path, *_around(path)) if part in self._names or not part)
        return self._names[held] + path[len(held) :]


def language_view(model: nn.Module) -> nn.Module:
    """A model under the names of the language model that it is or holds.

    ``model.language_model.layers.0.mlp`` of a vision-language model becomes ``model.layers.0.mlp``, as in the model of
    text alone; the vision tower keeps its own name beside it. A PEFT model gets the names of its base model. A view, or
    a model in which there is nothing to rename, is returned as it is.

    Raises:
        ActError: a model that puts virtual tokens before the text.

    >>> from act.models.views import language_view
    >>> language_view(model) is model
    True
    """
    if isinstance(model, LanguageView):
        return model
    _refuse_virtual_tokens(model)
    whole, around = _unwrapped(model)
    config: Any = getattr(whole, "config", None)
    language, beside = _parts(whole, config)
    if language:
        config = config.get_text_config()
    elif whole is model:
        return model
    else:
        language = {leaf: leaf for leaf in leaves(whole)}
    names = {around + path: name for path, name in (language | beside).items()}
    kind = type(type(model).__name__, (LanguageView,), {})  # what messages call it
    view: LanguageView = kind(model, names, len(language), config)
    return view


def original(model: nn.Module) -> nn.Module:
    """The model that a view shows; any other model as it is."""
    return original(model.original) if isinstance(model, LanguageView) else model


def own_names(model: nn.Module) -> dict[str, str]:
    """The name of each parameter of a view -> its name in the original."""
    own = {id(parameter): name for name, parameter in original(model).named_parameters()}
    return {name: own[id(parameter)] for name, parameter in model.named_parameters()}


def _refuse_virtual_tokens(model: nn.Module) -> None:
    adapters = getattr(model, "peft_config", None)
    for config in adapters.values() if isinstance(adapters, Mapping) else ():
        if getattr(config, "is_prompt_learning", False):
            method = str(getattr(config.peft_type, "value", config.peft_type)).replace("_", " ").lower()
            raise ActError(
                f"the model has an adapter of {method}, which puts virtual tokens before those of the text, so its "
                "outputs are of other positions; profile its base model (get_base_model() of peft)"
            )


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside wrappers, and the path to it, with a dot at its end."""
    find: Any = getattr(model, "get_base_model", None)
    inner = find() if find is not None and hasattr(model, "peft_config") else None
    if type(model).__name__ in _WRAPPERS:
        inner = model.module
    if inner is None or inner is model:
        return model, ""
    path = next(path for path, module in model.named_modules() if module is inner)
    whole, further = _unwrapped(inner)
    return whole, f"{path}.{further}"


def _parts(model: nn.Module, config: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Paths and names of the language model inside a model, and of what is beside it; empty if it is all of it."""
    path = _language_path(model, config)
    if path is None:
        return {}, {}
    head = lm_head(model)
    head_path = next((found for found, module in model.named_modules() if head is not None and module is head), "")
    if f"{head_path}.".startswith(f"{path}."):  # a whole model with a head of its own
        language = {f"{path}.{leaf}": leaf for leaf in leaves(model.get_submodule(path))}
    else:
        language = {path: _base_name(config.get_text_config())}
    beside: dict[str, str] = {}
    around = _around(path)
    for holder in reversed(around):
        for leaf in leaves(model.get_submodule(holder)):
            found = f"{holder}.{leaf}".lstrip(".")
            if found in (path, *around):
                continue
            known = {*language.values(), *beside.values()}
            parts = language if f"{head_path}.".startswith(f"{found}.") else beside
            parts[found] = found.replace(".", "_") if leaf in known else leaf
    return language, beside


def _language_path(model: nn.Module, config: Any) -> str | None:
    """The path of the language model inside a model of text and something else."""
    try:
        text = config.get_text_config()
        decoder = model.get_decoder()  # type: ignore[operator]
    except (AttributeError, ValueError, NotImplementedError):  # no Hugging Face model, or one with several texts
        return None
    if text is config or config.is_encoder_decoder:
        return None
    path = next((path for path, module in model.named_modules() if module is decoder), "")
    of_text = [one for one in (path, *_around(path)) if type(_config_of(model, one)) is type(text)]
    return of_text[-1] if of_text and of_text[-1] else None


def _config_of(model: nn.Module, path: str) -> Any:
    return getattr(model.get_submodule(path), "config", None)


def _base_name(config: Any) -> str:
    """What a causal language model of this configuration calls the model without its head."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return str(getattr(kind, "base_model_prefix", "")) or "model"


def _around(path: str) -> list[str]:
    """The paths of the modules around one, the innermost first, down to the model, whose path is empty."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)] if path else []


def _members(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What a module holds by itself: modules, parameters, buffers."""
    return module._modules, module._parameters, module._buffers


def leaves(module: nn.Module) -> list[str]:
    """The names of what a module holds by itself: modules, parameters, buffers."""
    return [leaf for members in _members(module) for leaf, held in members.items() if held is not None]

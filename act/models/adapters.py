"""Adapters, such as those of PEFT, that stand in the place of modules: and what is inside them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from torch import nn

from act.core.errors import ActError
from act.models.views import language_view


def plain(module: nn.Module) -> nn.Module:
    """The module whose place an adapter has taken; any other module as it is."""
    inner = module._modules.get("base_layer")
    if inner is None and "original_module" in module._modules:  # trained and stored as a whole
        saved = dict((module._modules.get("modules_to_save") or nn.ModuleDict()).named_children())
        active = [name for name in getattr(module, "active_adapters", ()) if name in saved]
        inner = saved[active[0]] if active else module._modules["original_module"]
    return module if inner is None else plain(inner)


def leaf(path: str) -> str:
    """The last part of a path; of a part of an adapter, the one before the adapter's name."""
    *_, before, last = ("", *path.split("."))
    return before if before.startswith(("lora_", "ia3_")) else last


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by name; an adapter's name stands for the module inside it, whose output it adapts.

    Raises:
        ActError: an adapter that is no module beside another one.
    """
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if type(module).__name__ == "ParamWrapper":
            raise ActError(f"{name} has an adapter on a parameter, not on a module, which cannot be read; {MERGE}")
        if module not in inside:
            held = plain(module)
            inside |= {held} - {module}
            yield name, held


def adapted(model: nn.Module) -> str | None:
    """The first module of a model that has an adapter; None without one."""
    modules = language_view(model).named_modules()
    return next((name for name, module in modules if plain(module) is not module), None)


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep from the user that peft asks transformers by a name that is going to be another one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*is deprecated", FutureWarning)
        yield


def require_none(model: nn.Module, side: str) -> None:
    """Raise :class:`ActError` if the model (``side``: donor or target) has an adapter."""
    if (name := adapted(model)) is not None:
        raise ActError(
            f"{name} of the {side} has an adapter beside it, so that a transfer would move half of what it "
            f"computes; {MERGE}"
        )


MERGE = "merge the adapter (--merge on the command line, merge_and_unload of peft), and use the merged model throughout"

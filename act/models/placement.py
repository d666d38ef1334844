"""Where the parts of a model live: on one device, spread over several by ``device_map``, or offloaded by accelerate.

Outside its module's forward, an offloaded parameter is on the ``meta`` device. A hook of accelerate (``_hf_hook``)
holds its values and knows where the module runs; only its attributes are read, so accelerate need not be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from act.core.errors import ActError, option
from act.models.embeddings import input_embedding, lm_head
from act.models.quantised import plain_tensors, width_of
from act.models.views import original

_SPREAD = {"DTensor": "tensor parallelism or FSDP", "FlatParameter": "FSDP"}


def run_devices(model: nn.Module, names: Iterable[str]) -> dict[str, torch.device]:
    """The device on which each of these modules runs and has its output, by name."""
    modules = dict(model.named_modules())
    return {name: _run_device(modules, name) for name in names}


def input_device(model: nn.Module) -> torch.device:
    """The device for the token ids: that of the input embedding, or else of the first parameter."""
    modules = dict(model.named_modules())
    embed = input_embedding(model)
    name = next((name for name, module in modules.items() if module is embed), None)
    if name is None:
        name = next(iter(dict(model.named_parameters())), "").rpartition(".")[0]
    return _run_device(modules, name)


def values(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and values of every parameter, once each, and of the buffers of quantised modules.

    For offloaded parameters, they are the tensors that accelerate keeps.

    Raises:
        ActError: a parameter without values.
    """
    modules = dict(model.named_modules())
    apart = ties_apart(model)
    for name, parameter in model.named_parameters():
        if id(parameter) not in apart:
            whole = (_offloaded(modules, name) if parameter.is_meta else parameter).detach()
            yield from ((f"{name}{rest}", plain) for rest, plain in plain_tensors(whole))
    for name, module in modules.items():
        if width_of(module) is not None:  # it may hold its values in buffers
            yield from ((f"{name}.{leaf}", tensor) for leaf, tensor in module._buffers.items() if tensor is not None)


def require_in_memory(model: nn.Module, what: str) -> None:
    """Raise :class:`ActError` if a parameter of the model (``what``: donor or target) is offloaded or not loaded."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            on_the_cpu = option("--device cpu instead of --device-map", "device_map='cpu'")
            raise ActError(
                f"{name} of the {what} is not in memory (offloaded, or on the meta device), so it cannot be changed or "
                "compared; load the model without offloading, on the CPU if it does not fit on the GPUs "
                f"({on_the_cpu})"
            )


def require_whole(model: nn.Module) -> None:
    """Raise :class:`ActError` if a parameter is spread over processes, so that none has all channels of it."""
    for name, parameter in model.named_parameters():
        kind = type(parameter).__name__
        if kind in _SPREAD or hasattr(parameter, "ds_tensor"):  # DeepSpeed's third stage
            raise ActError(
                f"{name} is spread over processes ({_SPREAD.get(kind, 'DeepSpeed')}), of which each holds a part of "
                "its channels; load the model without it, and let several processes read the corpus instead"
            )


def require_values(model: nn.Module, what: str) -> None:
    """Raise :class:`ActError` if the model (``what``: donor, target or model) has no values to run with."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if parameter.is_meta and _run_device(modules, name.rpartition(".")[0]).type == "meta":
            raise ActError(
                f"{name} of the {what} has no values (it is on the meta device); load the model with its weights"
            )


def ties_apart(model: nn.Module) -> dict[int, int]:
    """Ids of the LM head's and the embedding's weight, where offloading has split one tied tensor in two."""
    config = getattr(original(model), "config", None)
    head, embed = (getattr(part, "weight", None) for part in (lm_head(model), input_embedding(model)))
    if not getattr(config, "tie_word_embeddings", False) or head is None or embed is None:
        return {}
    return {id(head): id(embed)} if head is not embed and (head.is_meta or embed.is_meta) else {}


def moves_only(hook: Any) -> bool:
    """Whether a hook of accelerate only brings a module's input to the module's device."""
    named = type(hook).__name__ == "AlignDevicesHook"
    return named and not hook.offload and not hook.io_same_device


def takes_back(module: nn.Module) -> bool:
    """Whether a hook of accelerate brings a module its tensors, and takes them back after its forward."""
    return any(getattr(hook, "offload", False) for hook in _hooks({"": module}, ""))


def _run_device(modules: dict[str, nn.Module], name: str) -> torch.device:
    parameter = next(modules[name].parameters(), None)
    if parameter is not None and not parameter.is_meta:
        return parameter.device
    for hook in _hooks(modules, name):
        if getattr(hook, "execution_device", None) is not None:
            place = hook.execution_device
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return torch.device("meta" if parameter is not None else "cpu")


def _offloaded(modules: dict[str, nn.Module], name: str) -> torch.Tensor:
    owner = name.rpartition(".")[0]
    while True:
        for hook in _hooks(modules, owner, upwards=False):
            kept = getattr(hook, "weights_map", None)
            local = name[len(owner) + 1 :] if owner else name
            if kept is not None and local in kept:
                tensor: torch.Tensor = kept[local]
                return tensor
        if not owner:
            raise ActError(f"{name} has no values (it is on the meta device); load the model with its weights")
        owner = owner.rpartition(".")[0]


def _hooks(modules: dict[str, nn.Module], name: str, upwards: bool = True) -> Iterator[Any]:
    """Accelerate's hooks on a module and, ``upwards``, on the modules around it, innermost first."""
    hook = getattr(modules[name], "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
    if upwards and name:
        yield from _hooks(modules, name.rpartition(".")[0])

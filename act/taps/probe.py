"""A short forward that records which tensors flow between the parts of a model."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from act.models.modes import evaluating
from act.models.placement import input_device
from act.models.rotary import RotaryFunction, rotary_functions
from act_kernels.ops import FLOAT_DTYPES

PROBE_TOKENS = 5
ADDITIONS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)


@dataclass
class Call:
    """Input and output of a module in the probe."""

    input: torch.Tensor
    output: torch.Tensor


@dataclass
class Recording:
    """What the probe saw, by module name."""

    sites: dict[str, Call] = field(default_factory=dict)
    """The last call of each site that takes one tensor and returns one."""
    holders: dict[str, Call] = field(default_factory=dict)
    """The same for the modules that sites are children of."""
    sums: dict[str, str] = field(default_factory=dict)
    """Site -> the site that reads its output, or the sum of its output and another tensor."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often each was called: modules that run more than once per forward are not fused with their neighbours."""
    rotated: set[str] = field(default_factory=set)
    """Linears whose output goes into a rotary embedding as it is."""


class TracedOutput(torch.Tensor):
    """A site's output that notes which sum it goes into; the result of any operation is a plain tensor."""

    origin: str
    added: dict[int, tuple[str, torch.Tensor]]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_idle_dropout(func, args, kwargs or {}):
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if func in ADDITIONS and len(args) == 2 and not kwargs:
                for one, other in (args, args[::-1]):
                    if isinstance(one, TracedOutput) and isinstance(other, torch.Tensor) and one.shape == other.shape:
                        one.added[id(result)] = (one.origin, result)
            return result


def probe(model: nn.Module, sites: set[str]) -> Recording | None:
    """Run the model in eval mode on :data:`PROBE_TOKENS` tokens and record its sites and the modules around them.

    None where the model does not run with ``input_ids`` alone, or is in a dtype that no kernel takes.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.dtype not in FLOAT_DTYPES:
        return None
    recording = Recording()
    added: dict[int, tuple[str, torch.Tensor]] = {}
    storages: dict[int, tuple[str, torch.Tensor]] = {}

    def note_rotary(q: torch.Tensor, k: torch.Tensor, *_: Any) -> None:
        for x in (q, k):
            name, _output = storages.get(x.untyped_storage().data_ptr(), ("", x))
            recording.rotated.add(name)

    def note(name: str, is_site: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if (
                len(args) != 1
                or kwargs
                or not isinstance(args[0], torch.Tensor)
                or not isinstance(output, torch.Tensor)
            ):
                return None
            recording.counts[name] += 1
            if is_site and isinstance(args[0], TracedOutput):
                recording.sums.setdefault(args[0].origin, name)
            elif is_site and id(args[0]) in added:
                recording.sums.setdefault(added[id(args[0])][0], name)
            given, plain_output = (x.as_subclass(torch.Tensor) for x in (args[0], output))
            (recording.sites if is_site else recording.holders)[name] = Call(given, plain_output.clone())
            if not is_site:
                return None
            storages[output.untyped_storage().data_ptr()] = name, output
            traced = plain_output.as_subclass(TracedOutput)
            traced.origin, traced.added = name, added
            return traced

        return hook

    holders = {name.rpartition(".")[0] for name in sites} - sites
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name in sites or name in holders:
                handle = module.register_forward_hook(note(name, name in sites), with_kwargs=True)
                stack.callback(handle.remove)
        for namespace, name in rotary_functions(model):
            stack.callback(RotaryFunction.add(namespace, name, note_rotary))
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        try:
            ids = torch.arange(1, PROBE_TOKENS + 1, device=input_device(model))[None] % 8
            model(input_ids=ids, use_cache=False)
        except Exception:  # a model that needs other inputs may raise anything; it is not fused
            return None
    return recording


def is_idle_dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is a dropout that drops nothing."""
    if func is not torch.nn.functional.dropout:
        return False
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    return not given.get("training", True) or given.get("p") == 0

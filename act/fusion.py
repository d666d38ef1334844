"""Which parts of a model can run through fused kernels: recognised by what they compute, not by what they are called.

A short probe forward records what flows between linears, norms and residual sums. A part is fused only where the fused
op gives back what the part itself gave, bit for bit, or for norms within one unit in the last place; everything else
runs as it is, and its sites are read one by one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from act.channels import ChannelSpace
from act.rotary import RotaryFunction, rotary_functions
from act_kernels import add_norm, gated_mlp
from act_kernels.ops import ACTIVATIONS, FLOAT_DTYPES

PROBE_TOKENS = 5
NORM_STYLES = ("rms", "rms_one_plus", "rms_float", "layer")
ADDITIONS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)


@dataclass(frozen=True)
class GatedMlp:
    """``down(activation(gate(x)) * up(x))``, by module names; ``gate == up``: halves of one projection."""

    gate: str
    up: str
    down: str
    activation: str
    gate_first: bool = True
    """Of one projection's two halves, whether the first is the gate."""


@dataclass(frozen=True)
class Norm:
    """What :func:`act_kernels.add_norm` needs beside the tensors."""

    style: str
    eps: float


@dataclass(frozen=True)
class Fusion:
    """The parts of one model that run fused, by module name."""

    mlps: dict[str, GatedMlp] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    """Site whose output a norm reads, by itself or added to the residual -> that norm."""
    attentions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Attention module -> its projections that read the same input (q, k and v, or one for all)."""


def recognise(model: nn.Module, space: ChannelSpace) -> Fusion:
    """The :class:`Fusion` of a model on its device, found by one forward over :data:`PROBE_TOKENS` tokens.

    Empty where the model cannot be probed with ``input_ids`` alone, is in a dtype that no kernel takes, or computes
    gradients: it then runs as it is.
    """
    modules = dict(model.named_modules())
    flows = _probe(model, {site.name: modules[site.name] for site in space})
    if flows is None:
        return Fusion()
    norms = {name: norm for name, flow in flows.seen.items() if (norm := _norm(modules[name], flow))}
    mlps: dict[str, GatedMlp] = {}
    attentions: dict[str, tuple[str, ...]] = {}
    for name, module in modules.items():
        linears = [
            child
            for child in (f"{name}.{leaf}" if name else leaf for leaf, _ in module.named_children())
            if child in flows.seen and isinstance(modules[child], nn.Linear)
        ]
        if mlp := _gated_mlp(module, flows, name, linears):
            mlps[name] = mlp
        turned = [child for child in linears if child in flows.turned]
        if turned:
            attentions[name] = tuple(child for child in linears if _reads_like(flows, turned[0], child))
    sums = {site: norm for site, norm in flows.sums.items() if norm in norms}
    return Fusion(mlps, norms, sums, attentions)


@dataclass
class _Flow:
    """Input and output of one module in the probe."""

    input: torch.Tensor
    output: torch.Tensor


@dataclass
class _Flows:
    seen: dict[str, _Flow] = field(default_factory=dict)
    outer: dict[str, _Flow] = field(default_factory=dict)
    """The same for modules that hold linears."""
    sums: dict[str, str] = field(default_factory=dict)
    turned: set[str] = field(default_factory=set)
    """Linears whose output goes into a rotary embedding as it is."""


class _Traced(torch.Tensor):
    """A site's output that notes the sum it goes into; any other operation leaves it a plain tensor."""

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
                    if isinstance(one, _Traced) and isinstance(other, torch.Tensor) and one.shape == other.shape:
                        one.added[id(result)] = (one.origin, result)
            return result


def _probe(model: nn.Module, sites: dict[str, nn.Module]) -> _Flows | None:
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.dtype not in FLOAT_DTYPES:
        return None
    flows = _Flows()
    added: dict[int, tuple[str, torch.Tensor]] = {}
    storages: dict[int, tuple[str, torch.Tensor]] = {}

    def note_rotary(q: torch.Tensor, k: torch.Tensor, *_: Any) -> None:
        for x in (q, k):
            name, _output = storages.get(x.untyped_storage().data_ptr(), ("", x))
            flows.turned.add(name)

    def note(name: str, is_site: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if (
                len(args) != 1
                or kwargs
                or not isinstance(args[0], torch.Tensor)
                or not isinstance(output, torch.Tensor)
            ):
                return None
            if is_site and isinstance(args[0], _Traced):
                flows.sums.setdefault(args[0].origin, name)
            elif is_site and id(args[0]) in added:
                flows.sums.setdefault(added[id(args[0])][0], name)
            given = _plain(args[0])
            (flows.seen if is_site else flows.outer)[name] = _Flow(given, _plain(output).clone())
            if not is_site:
                return None
            storages[output.untyped_storage().data_ptr()] = name, output
            traced = _plain(output).as_subclass(_Traced)
            traced.origin, traced.added = name, added
            return traced

        return hook

    holders = {name.rpartition(".")[0] for name in sites} - set(sites)
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name in sites or name in holders:
                handle = module.register_forward_hook(note(name, name in sites), with_kwargs=True)
                stack.callback(handle.remove)
        for namespace, name in rotary_functions(model):
            stack.callback(RotaryFunction.add(namespace, name, note_rotary))
        stack.enter_context(_eval_mode(model))
        stack.enter_context(torch.no_grad())
        try:
            model(input_ids=torch.arange(1, PROBE_TOKENS + 1, device=parameter.device)[None] % 8, use_cache=False)
        except Exception:  # whatever a model that wants other inputs raises: it is not fused
            return None
    return flows


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off for the probe; every module's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def is_idle_dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is a dropout that drops nothing."""
    if func is not torch.nn.functional.dropout:
        return False
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    return not given.get("training", True) or given.get("p") == 0


def _plain(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(torch.Tensor)


def _reads_like(flows: _Flows, one: str, other: str) -> bool:
    """Whether two modules read the same tensor."""
    a, b = flows.seen[one].input, flows.seen[other].input
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


def _untouched(module: nn.Module) -> bool:
    """Whether the module runs its class's forward: no one has wrapped it, for offloading say."""
    return "forward" not in vars(module) and "_hf_hook" not in vars(module)


def _gated_mlp(module: nn.Module, flows: _Flows, name: str, linears: list[str]) -> GatedMlp | None:
    if len(linears) not in (2, 3) or name not in flows.outer or not _untouched(module):
        return None
    if any(isinstance(child, nn.Dropout) and child.p > 0 for child in module.modules()):
        return None
    *readers, down = linears
    whole, product = flows.outer[name], flows.seen[down].input
    if whole.output.shape != flows.seen[down].output.shape or not torch.equal(whole.output, flows.seen[down].output):
        return None
    if any(whole.input.data_ptr() != flows.seen[reader].input.data_ptr() for reader in readers):
        return None
    for gate_name, up_name, gate_first in _gate_and_up(readers):
        gate, up = halves(flows.seen[gate_name].output, flows.seen[up_name].output, gate_name == up_name, gate_first)
        if gate.shape != up.shape or gate.shape != product.shape:
            continue
        for activation in ACTIVATIONS:
            mlp = GatedMlp(gate_name, up_name, down, activation, gate_first)
            found = gated_mlp(gate.flatten(0, -2), up.flatten(0, -2), activation)
            if torch.equal(found, product.flatten(0, -2)) and _holds_for_wide_inputs(
                module, mlp, name, whole.input, gate
            ):
                return mlp
    return None


def _holds_for_wide_inputs(module: nn.Module, mlp: GatedMlp, name: str, x: torch.Tensor, gate: torch.Tensor) -> bool:
    """Whether the product is the same where activations differ most: few small values cannot tell GELUs apart."""
    parts = {part: module.get_submodule(part[len(name) + 1 :]) for part in (mlp.gate, mlp.up, mlp.down)}
    wide = torch.randn(1, 16, x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x)
    wide *= (3 * x.float().std() / gate.float().std().clamp(min=1e-6)).to(x.dtype)
    found: list[torch.Tensor] = []
    handle = parts[mlp.down].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        with torch.no_grad():
            module(wide)
            one = parts[mlp.gate](wide)
            gate, up = halves(one, parts[mlp.up](wide), mlp.gate == mlp.up, mlp.gate_first)
    finally:
        handle.remove()
    product = gated_mlp(gate.flatten(0, -2), up.flatten(0, -2), mlp.activation)
    return torch.equal(product, found[0].flatten(0, -2))


def _gate_and_up(readers: list[str]) -> Iterator[tuple[str, str, bool]]:
    if len(readers) == 1:
        yield from ((readers[0], readers[0], first) for first in (True, False))
    else:
        yield from ((gate, up, True) for gate, up in itertools.permutations(readers))


def halves(gate: torch.Tensor, up: torch.Tensor, fused: bool, gate_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up as they are, or as the halves of one projection along its last dimension."""
    if not fused:
        return gate, up
    first, second = gate.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


def _norm(module: nn.Module, flow: _Flow) -> Norm | None:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    x = flow.input
    if isinstance(module, nn.Linear | nn.Embedding) or not isinstance(eps, float) or not _untouched(module):
        return None
    if not isinstance(weight, nn.Parameter) or weight.shape != x.shape[-1:] or weight.dtype != x.dtype:
        return None
    if x.dtype not in FLOAT_DTYPES or flow.output.dtype != x.dtype or flow.output.shape != x.shape:
        return None
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    best, fewest = None, x.numel()
    for style in ("layer",) if bias is not None else NORM_STYLES:
        _, norm = add_norm(x.flatten(0, -2), None, weight, bias, eps=eps, style=style)
        different = _differences(norm, flow.output.flatten(0, -2))
        if different is not None and different < fewest:
            best, fewest = Norm(style, eps), different
    return best


def _differences(one: torch.Tensor, other: torch.Tensor) -> int | None:
    """How many values differ, None if any does by more than one unit in the last place of the dtype."""
    upper = torch.nextafter(other, torch.full_like(other, torch.inf))
    lower = torch.nextafter(other, torch.full_like(other, -torch.inf))
    return int((one != other).sum()) if bool(((one >= lower) & (one <= upper)).all()) else None


def needs_gradient(x: torch.Tensor, module: nn.Module | None = None) -> bool:
    """Whether autograd would record an operation on ``x`` and the parameters of ``module``; fused ops have none."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or (module is not None and any(p.requires_grad for p in module.parameters()))

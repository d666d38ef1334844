"""Which parts of a model can run through fused kernels: recognised by what they compute, not by their names.

A short probe forward records the tensors that flow between linears, norms and residual sums. A part is fused
only where the fused op reproduces the part's output, to float32's rounding at the scale of the output plus one unit in
the last place of a 16-bit type. Everything else runs unchanged, and its sites are read one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from act.models.placement import moves_only
from act.models.trials import QuickLinears
from act.taps.probe import Call, Recording
from act_kernels import add_norm, gated_mlp
from act_kernels.ops import ACTIVATIONS, FLOAT_DTYPES

WIDE_VALUES = 4096
"""How many gates of an MLP are tried with inputs that spread them widely, in 2 to 16 rows."""
NORM_STYLES = ("rms", "rms_one_plus", "rms_float", "layer")


@dataclass(frozen=True)
class GatedMlp:
    """``down(activation(gate(x)) * up(x))``, by module names; ``gate == up``: the two halves of one projection."""

    gate: str
    up: str
    down: str
    activation: str
    gate_first: bool = True
    """Whether the gate is the first half, where gate and up are one projection."""


@dataclass(frozen=True)
class Norm:
    """The options of :func:`act_kernels.add_norm`."""

    style: str
    eps: float


@dataclass(frozen=True)
class Fusion:
    """The parts of one model that can run fused, by module name."""

    mlps: dict[str, GatedMlp] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    """Site -> the norm that reads its output, by itself or added to the residual."""
    attentions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Attention module -> its projections that read the same input (q, k and v, or all in one)."""


def recognise(model: nn.Module, recording: Recording) -> Fusion:
    """The :class:`Fusion` of a model, on its device, from what a probe of it recorded.

    It is empty, so that the model runs unchanged, if the model is in a dtype that no kernel takes.
    """
    modules = dict(model.named_modules())
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.dtype not in FLOAT_DTYPES:
        return Fusion()
    norms = {
        name: norm
        for name, call in recording.sites.items()
        if name not in recording.changing and (norm := _norm(modules[name], call))
    }
    mlps: dict[str, GatedMlp] = {}
    attentions: dict[str, tuple[str, ...]] = {}
    for name, module in modules.items():
        linears = [
            child
            for child in (f"{name}.{leaf}" if name else leaf for leaf, _ in module.named_children())
            if child in recording.sites and isinstance(modules[child], nn.Linear)
        ]
        if mlp := _gated_mlp(module, recording, name, linears):
            mlps[name] = mlp
        rotated = [child for child in linears if child in recording.rotated]
        if rotated and all(recording.counts[child] == 1 for child in linears):
            alike = (child for child in linears if _reads_like(recording, rotated[0], child))
            attentions[name] = tuple(child for child in alike if child not in recording.changed)
    sums = {
        site: norm
        for site, norm in recording.sums.items()
        if norm in norms and recording.counts[site] == recording.counts[norm] == 1
    }
    if any(_hooked(module) for name, module in modules.items() if name in norms or name not in recording.sites):
        sums = {}  # a hook may edit the residual sum in place before its norm reads it
    return Fusion(mlps, norms, sums, attentions)


def _reads_like(recording: Recording, one: str, other: str) -> bool:
    """Whether two modules read the same tensor."""
    a, b = recording.sites[one].input, recording.sites[other].input
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


def _untouched(module: nn.Module) -> bool:
    """Whether the module runs its class's forward, and any hook of accelerate only moves its input to its device."""
    if "forward" not in vars(module):
        return "_hf_hook" not in vars(module)
    original = getattr(vars(module).get("_old_forward"), "__func__", None)
    return original is type(module).forward and moves_only(vars(module).get("_hf_hook"))


def _hooked(module: nn.Module) -> bool:
    """Whether the module has forward hooks, which may read or change its inputs and outputs."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _gated_mlp(module: nn.Module, recording: Recording, name: str, linears: list[str]) -> GatedMlp | None:
    if len(linears) not in (2, 3) or name not in recording.holders or not _untouched(module):
        return None
    if name in recording.changing:
        return None
    if any(_hooked(part) for path, part in module.named_modules(prefix=name) if path != name and path not in linears):
        return None  # the fused kernel would not call a hooked activation module
    if any(isinstance(child, nn.Dropout) and child.p > 0 for child in module.modules()):
        return None
    whole = recording.holders[name]
    calls = {linear: recording.sites[linear] for linear in linears}
    if len({x.device for call in calls.values() for x in (call.input, call.output)}) > 1:
        return None
    readers = [linear for linear in linears if calls[linear].input.data_ptr() == whole.input.data_ptr()]
    others = [linear for linear in linears if linear not in readers]
    if len(others) != 1 or not _same(whole.output, calls[others[0]].output):
        return None
    trials = [calls, _wide_trial(module, name, calls, readers)]
    best, least = None, float("inf")
    for mlp in _candidates(readers, others[0]):
        error = 0.0
        for trial in trials:
            if error < least:
                error += _error(_product(mlp, trial), trial[mlp.down].input)
        if error < least:
            best, least = mlp, error
        if not least:
            break  # none can be better
    return best


def _candidates(readers: list[str], down: str) -> Iterator[GatedMlp]:
    for activation in ACTIVATIONS:
        if len(readers) == 1:
            yield from (GatedMlp(readers[0], readers[0], down, activation, first) for first in (True, False))
        else:
            yield from (GatedMlp(gate, up, down, activation) for gate, up in itertools.permutations(readers))


def _wide_trial(module: nn.Module, name: str, seen: dict[str, Call], readers: list[str]) -> dict[str, Call]:
    """The calls in an MLP for inputs that spread its gates widely, since small values cannot tell two GELUs apart."""
    parts = {linear: module.get_submodule(linear[len(name) + 1 :]) for linear in seen}
    x, gates = seen[readers[0]].input, [seen[reader].output.float() for reader in readers]
    with torch.no_grad(), QuickLinears():
        reach = max(gate.std() for gate in gates).clamp(min=1e-6)
        rows = min(16, max(2, WIDE_VALUES // gates[0].shape[-1]))
        wide = torch.randn(1, rows, x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x)
        calls: dict[str, Call] = {}
        handles = [
            part.register_forward_hook(lambda _, args, output, of=of: calls.update({of: Call(args[0], output)}))
            for of, part in parts.items()
        ]
        try:
            module(wide * (3 * x.float().std() / reach).to(x.dtype))
        finally:
            for handle in handles:
                handle.remove()
    return calls


def _product(mlp: GatedMlp, trial: dict[str, Call]) -> torch.Tensor:
    gate, up = halves(trial[mlp.gate].output, trial[mlp.up].output, mlp.gate == mlp.up, mlp.gate_first)
    return gated_mlp(gate.flatten(0, -2), up.flatten(0, -2), mlp.activation).view(gate.shape)


def halves(gate: torch.Tensor, up: torch.Tensor, fused: bool, gate_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up, which are the halves of one projection along its last dimension if ``fused``."""
    if not fused:
        return gate, up
    first, second = gate.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


def _norm(module: nn.Module, call: Call) -> Norm | None:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    x = call.input
    if isinstance(module, nn.Linear | nn.Embedding) or not isinstance(eps, float) or not _untouched(module):
        return None
    if not isinstance(weight, nn.Parameter) or weight.shape != x.shape[-1:] or weight.dtype != x.dtype:
        return None
    if weight.device != x.device:
        return None
    if x.dtype not in FLOAT_DTYPES or call.output.dtype != x.dtype or call.output.shape != x.shape:
        return None
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    best, least = None, float("inf")
    for style in ("layer",) if bias is not None else NORM_STYLES:
        _, norm = add_norm(x.flatten(0, -2), None, weight, bias, eps=eps, style=style)
        error = _error(norm, call.output.flatten(0, -2))
        if error < least:
            best, least = Norm(style, eps), error
    return best


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Sum of absolute differences; infinite if any exceeds float32's rounding plus one unit of a 16-bit type."""
    if found.shape != expected.shape:
        return float("inf")
    found, wide = found.float(), expected.float()
    scale = wide.square().mean().sqrt()
    allowed = 8 * torch.finfo(torch.float32).eps * (scale + wide.abs())
    if expected.dtype != torch.float32:
        allowed += torch.finfo(expected.dtype).eps * wide.abs().clamp(min=torch.finfo(expected.dtype).tiny)
    difference = (found - wide).abs()
    return float(difference.sum()) if bool((difference <= allowed).all()) else float("inf")


def needs_gradient(x: torch.Tensor, module: nn.Module | None = None) -> bool:
    """Whether autograd would record an operation on ``x`` and the parameters of ``module``; fused ops cannot be."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or (module is not None and any(p.requires_grad for p in module.parameters()))

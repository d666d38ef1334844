"""Experts: linears that only some tokens are routed to, packed in one tensor or in a list of modules.

transformers 5 describes how its expert classes pack (``is_transposed``, ``is_concatenated``); where a class says
nothing, the shapes of its tensors do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from act.models.kinds import kind_of_name
from act.models.quantised import width_of
from act.models.sites import ParameterSlice

Role = Literal["gate", "up", "down"]
ROLES: tuple[Role, ...] = get_args(Role)
Shapes = dict[str, torch.Size]
_PACKED: dict[str, tuple[Role, ...]] = {
    "gate_up_proj": ("gate", "up"),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
}
_FLAT: dict[str, Role] = {"w1": "gate", "v1": "up", "w2": "down"}
_IN_A_MODULE_EACH = ("input_linear", "output_linear")
_INTERLEAVED = ("GptOssExperts",)  # classes that say nothing themselves, in transformers 4


@dataclass(frozen=True)
class ExpertSite:
    """What one expert computes: ``gate``, ``up`` or ``down``, with its number of channels and their parameters."""

    expert: int
    role: Role
    width: int
    parameters: tuple[ParameterSlice, ...]


@dataclass(frozen=True)
class ExpertsFound:
    """The experts of one layer.

    Attributes:
        name: path of the module that holds them.
        count: how many there are.
        sites: expert by expert, in the order of :data:`ROLES`.
        neurons: whether rows of gate and up and columns of down make neurons.
        modules: paths of the modules that are nothing but parts of them.
    """

    name: str
    count: int
    sites: tuple[ExpertSite, ...]
    neurons: bool = True
    modules: frozenset[str] = frozenset()

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that there are, in order."""
        return tuple(role for role in ROLES if any(site.role == role for site in self.sites[: len(ROLES)]))


def experts_of(name: str, module: nn.Module) -> ExpertsFound | None:
    """The experts that a module holds, if it holds any.

    Args:
        name: its path in the model.
        module: any module; meta tensors are fine.
    """
    if isinstance(module, nn.ModuleList):
        return _listed(name, module)
    own = {key: parameter.shape for key, parameter in module.named_parameters(recurse=False)}
    if own.get("down_proj", ())[2:]:
        return _packed(name, module, own)
    children = dict(module.named_children())
    if "mlp" in children and len(children) == 1:
        flat = {key: parameter.shape for key, parameter in children["mlp"].named_parameters(recurse=False)}
        if flat.keys() == _FLAT.keys():
            return _flat(name, module, flat)
    first, second = (_parallel_weight(children.get(child)) for child in _IN_A_MODULE_EACH)
    return None if first is None or second is None else _parallel(name, first, second)


def _packed(name: str, module: nn.Module, own: Shapes) -> ExpertsFound | None:
    if any(len(own[key]) != 3 for key in own.keys() & _PACKED.keys()):
        return None
    down, first = own["down_proj"], own.get("gate_up_proj", own.get("up_proj"))
    if first is None:
        return None
    transposed = getattr(module, "is_transposed", None)
    if transposed is None:
        transposed = _is_transposed(first, down, 2 if "gate_up_proj" in own else 1)
    concatenated = getattr(module, "is_concatenated", type(module).__name__ not in _INTERLEAVED)
    dim = 1 if transposed else 0
    sites = []
    for expert in range(down[0]):
        for key, roles in _PACKED.items():
            if key not in own:
                continue
            width = own[key][1 + dim] // len(roles)
            for place, role in enumerate(roles):
                span = _half(place, width, concatenated) if len(roles) > 1 else None
                weight = ParameterSlice(f"{name}.{key}", dim, expert, span=span)
                bias = ParameterSlice(f"{name}.{key}_bias", 0, expert, span=span)
                parts = (weight, bias) if f"{key}_bias" in own else (weight,)
                sites.append(ExpertSite(expert, role, width, parts))
    return ExpertsFound(name, down[0], tuple(sites))


def _is_transposed(first: torch.Size, down: torch.Size, roles: int) -> bool:
    """Whether matrices are stored as ``[inputs, outputs]``: what ``down`` reads is the width of each role before it."""
    stored_by_output = first[1] == roles * down[2] and first[2] == down[1]
    return not stored_by_output and first[2] == roles * down[1] and first[1] == down[2]


def _half(place: int, width: int, concatenated: bool = True) -> tuple[int, int, int]:
    """Where the first (``place`` 0) or second of two roles lies among the outputs of one projection."""
    return (place * width, (place + 1) * width, 1) if concatenated else (place, 2 * width, 2)


def _flat(name: str, module: nn.Module, own: Shapes) -> ExpertsFound | None:
    """All experts' rows below each other, as in DBRX: ``w1`` and ``v1`` are gates and ups, ``w2`` downs, transposed."""
    count: Any = getattr(module, "num_experts", None) or getattr(module, "moe_num_experts", None)
    shape = own["w1"]
    if not isinstance(count, int) or any(own[key] != shape for key in own) or shape[0] % count:
        return None
    rows = shape[0] // count
    sites = [
        ExpertSite(
            expert,
            role,
            shape[1] if role == "down" else rows,
            (ParameterSlice(f"{name}.mlp.{key}", int(role == "down"), expert, rows),),
        )
        for expert in range(count)
        for key, role in _FLAT.items()
    ]
    return ExpertsFound(name, count, tuple(sites), modules=frozenset({f"{name}.mlp"}))


def _parallel_weight(module: nn.Module | None) -> torch.Size | None:
    """The shape ``[E, O, I]`` of a module that is one linear for each expert, as in JetMoe; None for any other."""
    own = {} if module is None else dict(module.named_parameters())
    return own["weight"].shape if own.keys() == {"weight"} and own["weight"].dim() == 3 else None


def _parallel(name: str, first: torch.Size, second: torch.Size) -> ExpertsFound:
    """Two parallel linears; the first holds gate and up where it has twice the outputs that the second reads."""
    gated = first[1] == 2 * second[2]
    width = second[2] if gated else first[1]
    sites = []
    for expert in range(second[0]):
        for place, role in enumerate(ROLES[:2] if gated else ROLES[1:2]):
            span = _half(place, width) if gated else None
            sites.append(
                ExpertSite(expert, role, width, (ParameterSlice(f"{name}.input_linear.weight", 0, expert, span=span),))
            )
        down = ParameterSlice(f"{name}.output_linear.weight", 0, expert)
        sites.append(ExpertSite(expert, "down", second[1], (down,)))
    modules = frozenset(f"{name}.{child}" for child in _IN_A_MODULE_EACH)
    return ExpertsFound(name, second[0], tuple(sites), neurons=gated, modules=modules)


def _listed(name: str, module: nn.ModuleList) -> ExpertsFound | None:
    """A list of modules of the same linears, called experts."""
    if not name.rpartition(".")[2].endswith("experts") or not len(module):
        return None
    found = [dict(_linears(expert)) for expert in module]
    if any(set(one) not in ({"gate", "up", "down"}, {"up", "down"}) for one in found):
        return None
    if len({tuple((role, one[role][1].weight.shape) for role in sorted(one)) for one in found}) > 1:
        return None
    sites = []
    for number, one in enumerate(found):
        for role in ROLES:
            if role in one:
                path, linear = one[role]
                names = (f"{name}.{number}.{path}.{key}" for key, _ in linear.named_parameters())
                parts = tuple(ParameterSlice(each, 0) for each in names)
                sites.append(ExpertSite(number, role, linear.out_features, parts))
    modules = frozenset(f"{name}.{number}.{one[role][0]}" for number, one in enumerate(found) for role in one)
    return ExpertsFound(name, len(module), tuple(sites), modules=modules)


def _linears(expert: nn.Module) -> Iterator[tuple[str, tuple[str, nn.Linear]]]:
    """Role, path and module of each linear of an expert."""
    for path, module in expert.named_modules():
        if isinstance(module, nn.Linear) and width_of(module) is None:
            yield kind_of_name(path), (path, module)

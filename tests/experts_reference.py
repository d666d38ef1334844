"""What the experts and routers of a tiny model compute, in float64 and by hand: the truth for every expert site.

A forward of the model shows what each module of experts is given; plain products with the stored weights, in float64
and expert by expert, give the rest. Nothing here is shared with the taps.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn


class Rows(NamedTuple):
    """The outputs of one site, one row for each token that reached it."""

    tokens: torch.Tensor
    """int64 ``[R]``: the place of each token in the flattened batch."""
    values: torch.Tensor
    """float64 ``[R, C]``."""

    def of(self, tokens: torch.Tensor) -> Rows:
        """The rows of the tokens that a bool mask ``[batch, length]`` marks."""
        kept = tokens.flatten()[self.tokens]
        return Rows(self.tokens[kept], self.values[kept])

    def where(self, other: Rows) -> torch.Tensor:
        """Its values ``[R, C]`` of the tokens that are in both, in their order."""
        order = self.tokens.argsort()
        return self.values[order[torch.isin(self.tokens[order], other.tokens)]]

    def both(self, other: Rows) -> torch.Tensor:
        """Their difference ``[R, C]`` over the tokens that are in both."""
        return self.where(other) - other.where(self)


def expert_rows(
    model: nn.Module, ids: torch.Tensor, attention_mask: torch.Tensor, by: nn.Module | None = None, **more: Any
) -> dict[str, Rows]:
    """The rows of every expert site and of every router whose weight is its own, by name of the site.

    ``by`` is another model whose modules of experts read what those of this model are given; ``more`` is given to the
    model, too.
    """
    calls: list[tuple[str, nn.Module, tuple[Any, ...], Any]] = []
    handles = []
    for name, module in model.named_modules():
        if _reader(module) or type(module).__name__ == "JetMoeTopKGating":

            def keep(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                given = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in (*args, *kwargs.values())]
                calls.append((name, module, tuple(given), output))

            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(**{"input_ids": ids, "attention_mask": attention_mask, "use_cache": False, **more})
    for handle in handles:
        handle.remove()
    found: dict[str, Rows] = {}
    sorted_tokens: dict[str, torch.Tensor] = {}
    for name, module, given, output in calls:
        parent = name.rpartition(".")[0]
        module = module if by is None else by.get_submodule(name)
        if type(module).__name__ == "JetMoeTopKGating":
            sorted_tokens[parent] = output[1]
        elif type(module).__name__ == "JetMoeParallelExperts":
            found |= _parallel(name, module, *given, sorted_tokens[parent])
        else:
            reader = _reader(module)
            assert reader is not None
            rows = reader(name, module, *given)
            assert not rows.keys() & found.keys(), "a module ran twice"
            found |= rows
    return found


def _reader(module: nn.Module) -> Any:
    """The function that reads a module of experts or a router."""
    kind = type(module).__name__
    own = dict(module.named_parameters(recurse=False))
    known = {
        "Llama4TextExperts": _dense,
        "DbrxExperts": _flat,
        "InklingSharedExperts": _shared,
        "JetMoeParallelExperts": _parallel,
        "LongcatFlashTopkRouter": _classifier,
    }
    if kind in known:
        return known[kind]
    if kind.endswith("Experts") and own.get("down_proj", torch.empty(0)).dim() == 3:
        return _packed
    if kind.endswith("Router") and own.get("weight", torch.empty(0)).dim() == 2:
        return _router
    return None


def _routed(name: str, hidden: torch.Tensor, index: torch.Tensor, experts: int, compute: Any) -> dict[str, Rows]:
    """``compute(x, e)`` gives the outputs of expert e for its rows of ``hidden`` ``[T, H]``, by role."""
    hidden, index = hidden.double().flatten(0, -2), index.reshape(-1, index.shape[-1])
    assert len(hidden) == len(index)
    found = {}
    for e in range(experts):
        tokens = (index == e).any(1).nonzero()[:, 0]
        found |= {f"{name}[{e}].{role}": Rows(tokens, rows) for role, rows in compute(hidden[tokens], e).items()}
    return found


def _packed(name: str, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: Any = None) -> dict[str, Rows]:
    """Experts in one tensor for each projection, ``[E, O, I]`` or transposed."""
    exact = copy.deepcopy(module).double()
    transposed = getattr(module, "is_transposed", False)
    has_gate = hasattr(module, "gate_up_proj")
    first = "gate_up_proj" if has_gate else "up_proj"

    def product(x: torch.Tensor, projection: str, e: int) -> torch.Tensor:
        weight = getattr(exact, projection)[e]
        bias = getattr(exact, f"{projection}_bias", None)
        y = x @ (weight if transposed else weight.T)
        return (y if bias is None else y + bias[e]).detach()

    def compute(x: torch.Tensor, e: int) -> dict[str, torch.Tensor]:
        y = product(x, first, e)
        if not has_gate:
            return {"up": y, "down": product(exact.act_fn(y), "down_proj", e)}
        interleaved = not getattr(module, "is_concatenated", True)
        gate, up = (y[:, 0::2], y[:, 1::2]) if interleaved else y.chunk(2, -1)
        inner = exact._apply_gate(y) if hasattr(exact, "_apply_gate") else exact.act_fn(gate) * up
        return {"gate": gate, "up": up, "down": product(inner, "down_proj", e)}

    return _routed(name, hidden, index, len(module.down_proj), compute)


def _flat(name: str, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: Any) -> dict[str, Rows]:
    """DBRX: the experts one below the other, ``[E * F, H]``; the down matrix lies as the others do."""
    size = module.ffn_hidden_size

    def compute(x: torch.Tensor, e: int) -> dict[str, torch.Tensor]:
        w1, v1, w2 = (
            getattr(module.mlp, key).detach().double()[e * size : (e + 1) * size] for key in ("w1", "v1", "w2")
        )
        gate, up = x @ w1.T, x @ v1.T
        return {"gate": gate, "up": up, "down": (module.mlp.activation_fn(gate) * up) @ w2}

    return _routed(name, hidden, index, module.num_experts, compute)


def _dense(name: str, module: Any, hidden: torch.Tensor) -> dict[str, Rows]:
    """Llama 4: every expert computes every token; the row of a token that was sent elsewhere is zero."""
    rows = hidden.double().view(len(module.gate_up_proj), -1, hidden.shape[-1])
    found = {}
    for e, x in enumerate(rows):
        tokens = (x != 0).any(1).nonzero()[:, 0]
        gate, up = (x[tokens] @ module.gate_up_proj[e].detach().double()).chunk(2, -1)
        down = (up * module.act_fn(gate)) @ module.down_proj[e].detach().double()
        found |= {f"{name}[{e}].{role}": Rows(tokens, y) for role, y in (("gate", gate), ("up", up), ("down", down))}
    return found


def _shared(name: str, module: Any, hidden: torch.Tensor, gammas: torch.Tensor) -> dict[str, Rows]:
    """Inkling's shared experts: every token, weighted before the down matrix."""
    x = hidden.double().flatten(0, -2)
    every, gammas = torch.arange(len(x)), gammas.double().reshape(len(x), -1)
    found = {}
    for e in range(len(module.down_proj)):
        gate, up = x @ module.gate_proj[e].detach().double().T, x @ module.up_proj[e].detach().double().T
        inner = module.act_fn(gate) * up * gammas[:, e : e + 1]
        down = inner @ module.down_proj[e].detach().double().T
        found |= {f"{name}[{e}].{role}": Rows(every, y) for role, y in (("gate", gate), ("up", up), ("down", down))}
    return found


def _parallel(name: str, module: Any, given: torch.Tensor, sizes: list[int], tokens: torch.Tensor) -> dict[str, Rows]:
    """One projection of JetMoe: rows come sorted by expert."""
    parent, _, projection = name.rpartition(".")
    found = {}
    for e, (x, its) in enumerate(zip(given.double().split(sizes), tokens.split(sizes), strict=True)):
        y = x @ module.weight[e].detach().double().T
        if projection == "output_linear":
            found[f"{parent}[{e}].down"] = Rows(its, y)
        elif parent.endswith("mlp"):
            gate, up = y.chunk(2, -1)
            found |= {f"{parent}[{e}].gate": Rows(its, gate), f"{parent}[{e}].up": Rows(its, up)}
        else:
            found[f"{parent}[{e}].up"] = Rows(its, y)
    return found


def _router(name: str, module: Any, hidden: torch.Tensor, *_: Any) -> dict[str, Rows]:
    """The logits, with the bias of the linear if it has one (one for the choice alone has another name)."""
    y = hidden.double().flatten(0, -2) @ module.weight.detach().double().T
    bias = module._parameters.get("bias")
    return {name: Rows(torch.arange(len(y)), y if bias is None else y + bias.detach().double())}


def _classifier(name: str, module: Any, hidden: torch.Tensor) -> dict[str, Rows]:
    return _router(f"{name}.classifier", module.classifier, hidden)


def implementations(model: nn.Module) -> tuple[str, ...]:
    """The ways of running its experts that the model offers, the plainest first."""
    described = any(hasattr(module, "is_concatenated") for module in model.modules())
    return ("eager", "batched_mm", "grouped_mm") if described else ("eager",)


def run_by(implementation: str, *models: nn.Module) -> None:
    """Choose one of :func:`implementations` for models that have several."""
    for model in models:
        if len(implementations(model)) > 1:
            model.set_experts_implementation(implementation)


def expert_weights(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """The weight ``[C, W]`` and, if there is one, the bias ``[C]`` behind every expert site: views to write into."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        read = _reader(module)
        own: Any = module
        if read is _flat:
            size = own.ffn_hidden_size
            for e in range(own.num_experts):
                w1, v1, w2 = (getattr(own.mlp, key).detach()[e * size : (e + 1) * size] for key in ("w1", "v1", "w2"))
                found |= {f"{name}[{e}].gate": [w1], f"{name}[{e}].up": [v1], f"{name}[{e}].down": [w2.T]}
        elif read is _parallel:
            parent, _, projection = name.rpartition(".")
            for e, weight in enumerate(own.weight.detach()):
                if projection == "output_linear":
                    found[f"{parent}[{e}].down"] = [weight]
                elif parent.endswith("mlp"):
                    gate, up = weight.chunk(2)
                    found |= {f"{parent}[{e}].gate": [gate], f"{parent}[{e}].up": [up]}
                else:
                    found[f"{parent}[{e}].up"] = [weight]
        elif read in (_packed, _dense, _shared):
            transposed = read is _dense or getattr(own, "is_transposed", False)
            interleaved = not getattr(own, "is_concatenated", True)
            for key, parameter in own.named_parameters(recurse=False):
                for e, part in enumerate(parameter.detach()[: len(own.down_proj)]):
                    rows = part.T if transposed and part.dim() == 2 else part
                    role = key.removesuffix("_bias").removesuffix("_proj")
                    halves = (rows[0::2], rows[1::2]) if interleaved else rows.chunk(2)
                    parts = zip(("gate", "up"), halves, strict=True) if role == "gate_up" else [(role, rows)]
                    for each, view in parts:
                        found.setdefault(f"{name}[{e}].{each}", []).append(view)
    return found

"""What every site of a model gives, by plain hooks and by hand, one sequence at a time: the truth for its statistics.

Forwards of two lengths show which dimension of an output runs over tokens; what the parts of a fused projection are is
written down here, family by family, as their modelling code splits it. Nothing is shared with the taps.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from experts_reference import expert_rows, expert_weights
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LENGTHS, IN_BLOCKS = (11, 13, 17), (2, 3, 4)
"""Of two sequences whose outputs show where tokens lie, and of what a model reads beside these; in blocks, of a model
that reads whole ones. No tiny model has another dimension that grows so."""
_PRODUCTS = (F.linear, F.conv1d, torch.conv1d, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
_PRODUCTS += (torch.Tensor.__rmatmul__, torch.bmm, torch.einsum, F.conv2d)

Batch = dict[str, torch.Tensor]
Calls = dict[str, list[torch.Tensor]]


DECODER = "decoder_"
"""What the inputs of a decoder beside an encoder begin with; the others are of the source."""


def inputs_of(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """A batch as the model takes it, without a cache."""
    taken = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {name: value for name, value in batch.items() if not name.endswith("count_mask")}
    return {**given, "use_cache": False} if "use_cache" in taken else given


def texts_of(model: nn.Module) -> tuple[str, ...]:
    """What the names of the inputs begin with, for each text that a model reads: first for the one that it writes."""
    return (DECODER, "") if "decoder_input_ids" in inspect.signature(model.forward).parameters else ("",)


def block_of(model: nn.Module) -> int:
    """The number of tokens of which a model reads a multiple: it pads others, as its outputs would show."""
    config: Any = getattr(model, "config", None)
    found = {"led": "attention_window", "longformer": "attention_window", "pegasus_x": "block_size"}
    name = found.get(getattr(config, "model_type", ""))
    size = 1 if name is None else getattr(config, name)
    return size if isinstance(size, int) else max(size)


class Probe(NamedTuple):
    """What there is for a short sequence, for one whose last token is another, and for a longer one."""

    short: Any
    changed: Any
    longer: Any


@dataclass
class Reference:
    """Rows of sites, sequence after sequence.

    Attributes:
        rows: by site, float64 ``[R, C]``; None where an output has no row for each token.
        unchecked: why nothing here knows what a site gives, by name.
    """

    model: nn.Module
    space: Any
    rows: dict[str, list[torch.Tensor] | None] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._has_experts = any(site.expert is not None or site.kind == "router" for site in self.space)
        block = block_of(self.model)
        self._lengths = LENGTHS if block == 1 else tuple(number * block for number in IN_BLOCKS)
        self._probes = {text: self._probe(text) for text in texts_of(self.model)}

    def again(self) -> Reference:
        """One of the same model that has no rows yet."""
        other = copy.copy(self)
        other.rows, other.unchecked = {}, {}
        return other

    def add(self, sequence: Batch) -> None:
        """Run one sequence ``[1, L]``, and keep the rows of the tokens that its ``count_mask`` marks."""
        calls = self._calls(sequence)
        experts = {}
        if self._has_experts:
            given = inputs_of(self.model, sequence)
            experts = expert_rows(self.model, given.pop("input_ids"), given.pop("attention_mask"), **given)
        for site in self.space:
            if site.scales is None:
                self._keep(site.name, self._of_site(site, calls, experts, sequence))
        self.unchecked |= {s.name: "of what it scales" for s in self.space if s.scales in self.unchecked}

    def of(self, site: Any) -> torch.Tensor | None:
        """All rows of a site as ``[R, C]``; several of the channels that a value scales are rows of one channel."""
        rows = self.rows.get(site.scales or site.name)
        if rows is None:
            return None
        found = torch.cat(rows)
        return found if site.scales is None else found.unflatten(1, (site.width, -1)).transpose(1, 2).flatten(0, 1)

    def _keep(self, name: str, rows: torch.Tensor | str | None) -> None:
        if isinstance(rows, str):
            self.unchecked[name] = rows
        elif rows is None:
            self.rows[name] = None
        elif (kept := self.rows.setdefault(name, [])) is not None:
            kept.append(rows)

    def _of_site(self, site: Any, calls: Calls, experts: dict[str, Any], sequence: Batch) -> Any:
        if site.name in experts:
            text = "" if "decoder." not in site.name else next(iter(self._probes))
            return experts[site.name].of(sequence[f"{text}count_mask"]).values
        if site.expert is not None:
            return "an expert"
        path, bracket, role = site.name.partition("[")
        found = calls.get(path, [])
        probes = {text: [held.get(path, []) for held in probe] for text, probe in self._probes.items()}
        numbers = {len(found), *(len(outputs) for each in probes.values() for outputs in each)}
        if numbers == {0}:
            return None
        if len(numbers) > 1:
            return "called another number of times"
        width, columns = site.width, None
        if bracket:
            parts = fused_parts(self.model, path)
            if parts is None or role.rstrip("]") not in parts:
                return "a fused projection that is not known here"
            columns, width = parts[role.rstrip("]")], sum(len(each) for each in parts.values())
        over: list[tuple[bool, torch.Tensor]] = []
        for call, output in enumerate(found):
            tried = {text: Probe(*(held[call] for held in probe)) for text, probe in probes.items()}
            kept = (
                self._counted(output, probe, sequence[f"{text}count_mask"][0], width) for text, probe in tried.items()
            )
            rows = next((each for each in kept if each is not None), None)
            moved = any(not torch.equal(probe.short, probe.changed) for probe in tried.values())
            if rows is not None:
                more = self._lengths[1] - self._lengths[0]
                by_one = any(sum(probe.longer.shape) - sum(probe.short.shape) == more for probe in tried.values())
                over.append((moved or by_one, rows if columns is None else rows[:, columns]))
            elif moved or any(probe.short.shape != probe.longer.shape for probe in tried.values()):
                return None
        of_tokens = [rows for sure, rows in over if sure]  # beside which there may be calls over distances
        return torch.cat(of_tokens or [rows for _, rows in over]) if over else None

    def _counted(self, output: torch.Tensor, probe: Probe, counted: torch.Tensor, width: int) -> Any:
        rows = _by_token(output, *probe, self._lengths, len(counted), width)
        return None if rows is None else rows[counted].flatten(0, 1)

    def _probe(self, text: str) -> Probe:
        """What grows with a text, and what its last token changes, beside another that stays as it is."""
        generator = torch.Generator().manual_seed(0)
        short, longer, other_length = self._lengths
        ids = torch.randint(10, 200, (1, longer), generator=generator)
        beside: Batch = {}
        for other in {*texts_of(self.model)} - {text}:
            beside |= _whole(torch.randint(10, 200, (1, other_length), generator=generator), other)
        changed = ids[:, :short].clone()
        changed[0, -1] = 9
        given = (ids[:, :short], changed, ids)
        return Probe(*(self._calls({**beside, **_whole(each, text)}) for each in given))

    def _calls(self, batch: Batch) -> Calls:
        """Every output of a module with parameters, or else of a product with a parameter of no called module."""
        found: Calls = {}
        in_tuples: Calls = {}
        handles = []
        for name, module in self.model.named_modules():
            sizes = {parameter.shape for parameter in module.parameters(recurse=False)}
            if sizes and name:

                def keep(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                    if isinstance(output, torch.Tensor):
                        found.setdefault(name, []).append(output.detach().double())
                    elif isinstance(output, tuple) and isinstance(output[0], torch.Tensor):
                        in_tuples.setdefault(name, []).append(output[0].detach().double())

                handles.append(module.register_forward_hook(keep))
        products = _Products(self.model)
        with torch.no_grad(), products:
            self.model(**inputs_of(self.model, batch))
        for handle in handles:
            handle.remove()
        return {**in_tuples, **products.found, **found}


class _Products(TorchFunctionMode):
    """Keeps the outputs of products with parameters, by the name of the parameter and of the module that holds it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters = dict(model.named_parameters())
        self._names = {parameter.data_ptr(): name for name, parameter in self._parameters.items()}
        self.found: Calls = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in _PRODUCTS and isinstance(result, torch.Tensor):
            for each in (*args, *(kwargs or {}).values()):
                if isinstance(each, torch.Tensor) and (name := self._names.get(each.data_ptr())) and each.dim() > 1:
                    self._keep(name, result.detach().double(), function)
                    break
        return result

    def _keep(self, name: str, product: torch.Tensor, function: Any) -> None:
        bias = self._parameters.get(f"{name.removesuffix('weight')}bias") if name.endswith(".weight") else None
        if bias is not None and function not in (F.linear, F.conv1d, torch.conv1d, F.conv2d):  # added afterwards
            product = product + bias.detach().double().view(-1, *[1] * (product.shape[-1] != len(bias)))
        for key in (name, name.rpartition(".")[0]):
            self.found.setdefault(key, []).append(product)


def _by_token(
    output: torch.Tensor,
    one: torch.Tensor,
    changed: torch.Tensor,
    other: torch.Tensor,
    lengths: tuple[int, ...],
    length: int,
    width: int,
) -> torch.Tensor | None:
    """``[length, rows per token, C]``; None if no dimension runs over tokens.

    Where there are more columns than tokens, the first that a token changes is its own.

    Args:
        output: for the sequence of this ``length``.
        one, changed, other: for sequences of ``lengths``, the first also with another last token.
    """
    if not output.dim() == one.dim() == other.dim():
        return None
    short, more = lengths[0], lengths[1] - lengths[0]
    grown = [dim for dim in range(output.dim()) if other.shape[dim] != one.shape[dim]]
    if len(grown) != 1 or (other.shape[grown[0]] - one.shape[grown[0]]) % more:
        return None
    each = (other.shape[grown[0]] - one.shape[grown[0]]) // more
    tokens, before = output.movedim(grown[0], 0), 0
    if len(tokens) > each * length:
        places = (one != changed).movedim(grown[0], 0).flatten(1).any(1).nonzero()
        before = max(0, int(places[0]) - (short - 1)) if len(places) else 0
    tokens = tokens[before:][: each * length]
    if one.shape == changed.shape and not before:
        change = (one - changed).movedim(grown[0], 0).flatten(1).abs().amax(1)
        most = change > 0.01 * change.amax()
        if each > 1 and most[:-each].any() and not most.view(each, -1)[:, :-1].any():
            tokens = tokens.unflatten(0, (each, length)).transpose(0, 1).flatten(0, 1)  # one stream after the other
        elif ((change > 1e-6 * one.abs().amax()).int().diff() < 0).any():  # by more than experts round
            return None  # in the order of something else, such as of experts
    rest = tokens.shape[1:]
    for start in range(len(rest)):
        if prod(rest[start:]) == width:
            return tokens.reshape(length, -1, width)
    if width in rest:
        return tokens.movedim(1 + rest.index(width), -1).reshape(length, -1, width)
    return None


def _whole(ids: torch.Tensor, text: str) -> Batch:
    return {f"{text}input_ids": ids, f"{text}attention_mask": torch.ones_like(ids)}


def _blocks(**sizes: int) -> dict[str, torch.Tensor]:
    """One part after the other."""
    ends = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
    return {role: torch.arange(ends[i], ends[i + 1]) for i, role in enumerate(sizes)}


def _groups(groups: int, **sizes: int) -> dict[str, torch.Tensor]:
    """The parts within each group."""
    rows = torch.arange(groups * sum(sizes.values())).view(groups, -1)
    return {role: rows[:, places].flatten() for role, places in _blocks(**sizes).items()}


def fused_parts(model: nn.Module, path: str) -> dict[str, torch.Tensor] | None:
    """Which outputs of a fused projection are its queries, keys and so on, in the order that the model uses them."""
    module: Any = model.get_submodule(path)
    parent: Any = model.get_submodule(path.rpartition(".")[0])
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    config = getattr(parent, "config", None) or config
    leaf, kind = path.rpartition(".")[2], type(parent).__name__
    width = module.weight.shape[1] if type(module).__name__ == "Conv1D" else module.weight.shape[0]
    gated = leaf in ("gate_up_proj", "input_linear", "Wi") or (leaf == "fc1" and kind.startswith("Moshi"))
    if gated:  # two halves; the first is activated
        return _blocks(gate=width // 2, up=width // 2)
    if leaf == "qkv" and "Vision" in kind:  # [3, heads, head_dim]
        return _blocks(q=width // 3, k=width // 3, v=width // 3)
    if leaf == "kv_proj":
        return _blocks(k=width // 2, v=width // 2)
    if leaf == "in_proj_qkvz":
        keys, values = parent.num_k_heads, parent.head_v_dim * parent.num_v_heads // parent.num_k_heads
        return _groups(keys, q=parent.head_k_dim, k=parent.head_k_dim, v=values, z=values)
    if leaf == "in_proj_ba":
        share = parent.num_v_heads // parent.num_k_heads
        return _groups(parent.num_k_heads, b=share, a=share)
    if leaf == "in_proj_qkv":
        keys = parent.num_k_heads * parent.head_k_dim
        return _blocks(q=keys, k=keys, v=width - 2 * keys)
    if leaf == "in_proj" and kind.startswith("Lfm"):  # chunk(3)
        return _blocks(B=width // 3, C=width // 3, x=width // 3)
    if leaf == "in_proj" and hasattr(parent, "dt_proj"):  # the first Mamba: chunk(2), the second half is the gate
        return _blocks(x=width // 2, z=width // 2)
    if leaf == "x_proj":
        return _blocks(dt=width - 2 * parent.ssm_state_size, B=parent.ssm_state_size, C=parent.ssm_state_size)
    if leaf == "in_proj" and hasattr(parent, "conv_dim"):  # Mamba 2: gate, what the convolution reads, time steps
        inner = parent.intermediate_size
        state = (parent.conv_dim - inner) // 2
        return _blocks(z=inner, x=inner, B=state, C=state, dt=width - 2 * inner - 2 * state)
    if leaf == "kv_b_proj":
        keys, values = parent.qk_nope_head_dim, parent.v_head_dim
        return _groups(width // (keys + values), k=keys, v=values)
    if leaf == "q_proj":  # queries of a head, then the gate of what it gives
        return _groups(width // (2 * parent.head_dim), q=parent.head_dim, attention_gate=parent.head_dim)
    names = ("num_attention_heads", "n_head", "n_heads", "num_heads")
    found = (getattr(config, name, None) for name in names)
    heads = next((value for value in found if isinstance(value, int)), 1)
    if kind.startswith("CodeGen"):  # four parts, each of queries, values and keys
        return _groups(4, q=width // 12, v=width // 12, k=width // 12)
    if kind.startswith("Falcon") and not kind.startswith(("FalconH1", "FalconMamba")):
        size = config.hidden_size // heads
        if config.new_decoder_architecture:
            groups = config.num_kv_heads
            return _groups(groups, q=heads // groups * size, k=size, v=size)
        if config.multi_query:
            return _blocks(q=heads * size, k=size, v=size)
        return _groups(heads, q=size, k=size, v=size)
    by_head = ("GPTNeoX", "Bloom", "Persimmon", "Fuyu", "MiniMaxLightning")
    if kind.startswith(by_head) or (kind.startswith("GPTBigCode") and not parent.multi_query):
        return _groups(heads, **dict.fromkeys("qkv", width // heads // 3))
    contiguous = ("GPT2", "Phi3", "Phi4", "Dbrx", "Mpt", "Attention", "GPTBigCode", "ModernBert", "DecisionTransformer")
    if kind.startswith(contiguous):
        queries = heads * (getattr(parent, "head_dim", None) or width // 3 // heads)
        return _blocks(q=queries, k=(width - queries) // 2, v=(width - queries) // 2)
    return None


def weights_of(model: nn.Module) -> Callable[[Any], list[torch.Tensor] | None]:
    """A function of a site: views of the parameters behind it, channels first, to be written into by hand."""
    experts = expert_weights(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def views(site: Any) -> list[torch.Tensor] | None:
        if site.name in experts:
            return experts[site.name]
        if site.expert is not None:
            return None
        path, _, role = site.name.partition("[")
        if path in parameters:  # by itself: the dimension of its channels is the one of this size
            bias = parameters.get(path.replace("weight", "bias")) if path.endswith("weight") else None
            alone = [_first(parameters[path].detach(), site.width, path.endswith("mm_input_projection_weight"))]
            return alone if bias is None else [*alone, _first(bias.detach(), site.width)]
        module: Any = model.get_submodule(path)
        last = (isinstance(module, nn.Embedding) and site.width == module.weight.shape[1]) or type(
            module
        ).__name__ == "Conv1D"
        held = dict(module.named_parameters(recurse=False))
        own = [held[key].detach() for key in ("weight", "bias") if key in held]  # other parameters are other sites
        own = [each.T if last and each.dim() == 2 else each for each in own]
        if not role:
            return own
        parts = fused_parts(model, path)
        return None if parts is None else [_Rows(each, parts[role.rstrip("]")]) for each in own]  # type: ignore[misc]

    return views


class _Rows:
    """Rows of a tensor that lie apart, to be read and written as if they were a tensor."""

    def __init__(self, tensor: torch.Tensor, places: torch.Tensor) -> None:
        self.tensor, self.places = tensor, places

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        return self.tensor[self.places[rows]]

    def __setitem__(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        self.tensor[self.places[rows]] = values


def _first(parameter: torch.Tensor, width: int, last: bool = False) -> torch.Tensor:
    dims = [dim for dim, size in enumerate(parameter.shape) if size == width]
    return parameter.movedim(dims[-1 if last else 0], 0) if dims else parameter.flatten()

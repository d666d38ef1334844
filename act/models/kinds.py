"""The kind of every module: what it is in a transformer, whatever it is called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from act.models.adapters import leaf, named_modules, plain
from act.models.embeddings import input_embedding, lm_head
from act.models.quantised import width_of

_KINDS = {
    "q": ("q_proj", "query", "query_proj", "q_lin"),
    "k": ("k_proj", "key", "key_proj", "k_lin"),
    "v": ("v_proj", "value", "value_proj", "v_lin", "v_proj_current", "v_proj_delayed"),
    "o": ("o_proj", "out_proj", "out_lin"),
    "qkv": ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "W_pack"),
    "gate": ("gate_proj", "w1", "wi_0"),
    "up": ("up_proj", "w3", "fc1", "c_fc", "dense_h_to_4h", "wi", "wi_1", "ffn"),
    "gate_up": ("gate_up_proj",),
    "down": ("down_proj", "w2", "fc2", "dense_4h_to_h", "ffn_output"),
    "router": ("gate", "wg"),
    "position": ("wpe", "embed_positions", "position_embedding", "position_embeddings", "positions_embed"),
}
_KIND_OF_NAME = {name: kind for kind, names in _KINDS.items() for name in names}
# Some families call several linears the same; the modules around these tell them apart.
_KIND_OF_NAME |= {"attn.c_proj": "o", "mlp.c_proj": "down"}
_KIND_OF_NAME |= {"attention.dense": "o", "attention.output.dense": "o", "self_attn.dense": "o"}
_KIND_OF_NAME |= {"intermediate.dense": "up", "output.dense": "down"}
_KIND_OF_NAME |= {"DenseReluDense.wo": "down", "mlp.wo": "down", "ffn.lin1": "up", "ffn.lin2": "down"}
_KIND_OF_NAME |= {"attn.Wo": "o", "mlp.Wo": "down"}
_KIND_OF_NAME |= {"feed_forward.key": "up", "feed_forward.value": "down"}  # of RWKV
_ATTENTION = re.compile(r"(?:W_?|w_?|project_|linear_)?(q|k|v|o|query|key|value|out|attention_out)(?:_(?:proj|lin))?")
"""How linears of attention are called, beside queries that are called so, too."""
_SHORT = {"query": "q", "key": "k", "value": "v", "out": "o", "attention_out": "o", "proj": "o", "in_proj_qkv": "qkv"}
_SHORT |= {"q_b_proj": "q", "q_gate_proj": "q"}  # of latent attention
_SHORT |= {f"{end}proj{start}": kind for kind in "zab" for end, start in ((f"{kind}_", ""), ("in_", f"_{kind}"))}
_ATTENTION_GATES = ("gate_proj", "g_proj", "g_b_proj", "output_gate")
_EMBED_NAMES, _HEAD_NAMES = ("embed_tokens", "wte", "embed_in"), ("lm_head", "embed_out")


def kind_of_name(name: str) -> str:
    """The kind of a linear by its path: by its last parts, or else the last part itself."""
    parts = ["attention" if part.lower().endswith("attention") else part for part in name.split(".")]
    known = next((kind for n in (3, 2, 1) if (kind := _KIND_OF_NAME.get(".".join(parts[-n:])))), None)
    if known is None and any("router" in part.lower() for part in parts[-2:]):
        return "router"
    return known or leaf(name)


def kind_of_parameter(name: str) -> str:
    """The kind of the module of a parameter, as far as its name tells.

    >>> from act.models.kinds import kind_of_parameter
    >>> [kind_of_parameter(f"model.{name}.weight") for name in ("layers.3.mlp.up_proj", "norm", "embed_tokens")]
    ['up', 'norm', 'embed']
    """
    module, _, last = name.rpartition(".")
    path = module if last in ("weight", "bias") else name
    kind = kind_of_name(path)
    if kind in _HEAD_NAMES:
        return "head"
    if kind in _EMBED_NAMES:
        return "embed"
    return "norm" if "norm" in kind.lower() or kind.startswith("ln_") else kind


def is_router(module: nn.Module) -> bool:
    """Whether a module that is no linear holds the weight ``[E, H]`` by which tokens are routed."""
    named = type(module).__name__.lower()
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.dim() == 2 and ("router" in named or named.endswith("gate"))


class Kinds:
    """The kind of each module: the embedding and the head are those that the model gives, whatever they are called."""

    def __init__(self, model: nn.Module) -> None:
        found = (input_embedding(model), lm_head(model))
        self._embedding, self._head = (module and plain(module) for module in found)
        rows: Any = getattr(self._embedding, "weight", None)
        self._vocabulary = None if rows is None else len(rows)
        self._by_structure = _by_structure(model)

    def __call__(self, name: str, module: nn.Module) -> str:
        """The kind of a module that has channels, by its path."""
        leaf = name.rpartition(".")[2]
        if module is self._head:
            return "head"
        if isinstance(module, nn.Embedding):
            known = _KIND_OF_NAME.get(leaf)
            of_tokens = module.num_embeddings == self._vocabulary and not known  # its columns, too, belong to tokens
            named = self._embedding is None and leaf in _EMBED_NAMES
            return "embed" if module is self._embedding or of_tokens or named else known or leaf
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return "conv"
        if width_of(module):
            return self._by_structure.get(name) or kind_of_name(name)
        if not isinstance(module, nn.Linear) and module.weight.dim() == 1:  # type: ignore[operator]
            return "norm"
        if not isinstance(module, nn.Linear) and is_router(module):
            return "router"
        if leaf in _HEAD_NAMES and self._vocabulary in (None, len(module.weight)):  # type: ignore[arg-type]
            return "head"  # of a model that does not say which module gives its logits, or has several
        return self._by_structure.get(name) or kind_of_name(name)


def _by_structure(model: nn.Module) -> dict[str, str]:
    """The kinds of linears that only those around them tell, by path: of MLPs and of attention."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in named_modules(model):
        if leaf(name).startswith(("lora_", "ia3_")):
            continue
        if isinstance(module, nn.Linear):
            sizes[name] = module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D":  # of GPT-2, stored transposed
            weight: Any = module.weight
            sizes[name] = (weight.shape[0], weight.shape[1])
    return {**_of_mlps(sizes), **_of_attention(sizes)}


def _of_attention(linears: Iterable[str]) -> dict[str, str]:
    """Queries, keys, values and outputs beside each other, and the gates of these outputs."""
    beside: dict[str, dict[str, str]] = {}
    for name in linears:
        around, _, last = name.removesuffix(".linear").rpartition(".")
        named = _ATTENTION.fullmatch(last)
        kind = "attention_gate" if last in _ATTENTION_GATES else _SHORT.get(named[1] if named else last)
        beside.setdefault(around, {})[name] = kind or (named[1] if named else kind_of_name(name))
    attention = (kinds for kinds in beside.values() if {"q", "qkv"} & {*kinds.values()})
    return {name: kind for kinds in attention for name, kind in kinds.items()}


def _of_mlps(linears: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """One or two linears that widen what they read, and one that reads what these give, by themselves in a module."""
    within: dict[str, list[str]] = {}
    for name in linears:
        around = name
        while around:
            around = around.rpartition(".")[0]
            within.setdefault(around, []).append(name)
    found: dict[str, str] = {}
    for names in within.values():
        *first, last = names
        inner, outer = linears[last]
        widths = [linears[name] for name in first]
        if inner <= outer or all(kind_of_name(name) in _KINDS for name in names):
            continue
        if widths == [(outer, inner)] * 2:
            gate, up = sorted(first, key=lambda name: "gate" not in name.rpartition(".")[2])
            found |= {gate: "gate", up: "up", last: "down"}
        elif widths in ([(outer, inner)], [(outer, 2 * inner)]):
            found |= {first[0]: "up" if widths[0][1] == inner else "gate_up", last: "down"}
    return found

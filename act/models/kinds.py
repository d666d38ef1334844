"""The kind of every module: what it is in a transformer, whatever it is called."""

from __future__ import annotations

from typing import Any

from torch import nn

from act.models.adapters import leaf, plain
from act.models.embeddings import input_embedding, lm_head
from act.models.quantised import width_of

_KINDS = {
    "q": ("q_proj", "query", "query_proj", "q_lin"),
    "k": ("k_proj", "key", "key_proj", "k_lin"),
    "v": ("v_proj", "value", "value_proj", "v_lin"),
    "o": ("o_proj", "out_proj", "out_lin"),
    "qkv": ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "W_pack"),
    "gate": ("gate_proj", "w1", "wi_0"),
    "up": ("up_proj", "w3", "fc1", "c_fc", "dense_h_to_4h", "wi", "wi_1", "ffn"),
    "gate_up": ("gate_up_proj",),
    "down": ("down_proj", "w2", "fc2", "dense_4h_to_h", "ffn_output"),
    "router": ("gate", "wg"),
    "position": ("wpe", "embed_positions", "position_embeddings"),
}
_KIND_OF_NAME = {name: kind for kind, names in _KINDS.items() for name in names}
# Some families call several linears the same; the modules around these tell them apart.
_KIND_OF_NAME |= {"attn.c_proj": "o", "mlp.c_proj": "down"}
_KIND_OF_NAME |= {f"{attention}.dense": "o" for attention in ("attention", "self_attention", "self_attn")}
_KIND_OF_NAME |= {"attention.output.dense": "o", "intermediate.dense": "up", "output.dense": "down"}
_KIND_OF_NAME |= {"DenseReluDense.wo": "down", "mlp.wo": "down", "ffn.lin1": "up", "ffn.lin2": "down"}
_KIND_OF_NAME |= {"attn.Wo": "o", "mlp.Wo": "down"}
_EMBED_NAMES, _HEAD_NAMES = ("embed_tokens", "wte", "embed_in"), ("lm_head", "embed_out")


def kind_of_name(name: str) -> str:
    """The kind of a linear by its path: by its last parts, or else the last part itself."""
    parts = name.split(".")
    known = next((kind for n in (3, 2, 1) if (kind := _KIND_OF_NAME.get(".".join(parts[-n:])))), None)
    if known is None and any("router" in part.lower() for part in parts[-2:]):
        return "router"
    return known or leaf(name)


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
            return kind_of_name(name)
        if not isinstance(module, nn.Linear) and module.weight.dim() == 1:  # type: ignore[operator]
            return "norm"
        if not isinstance(module, nn.Linear) and is_router(module):
            return "router"
        if leaf in _HEAD_NAMES and self._vocabulary in (None, len(module.weight)):  # type: ignore[arg-type]
            return "head"  # of a model that does not say which module gives its logits, or has several
        return kind_of_name(name)

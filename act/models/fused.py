"""Fused projections: one linear whose outputs are several things at once, such as queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

from torch import nn

from act.models.adapters import plain
from act.models.quantised import inputs_of, width_of
from act.models.sites import Columns, Site

_QKV = ("query_key_value", "qkv_proj", "c_attn", "Wqkv", "wqkv", "W_pack", "qkv")
_GATE_UP = {"gate_up_proj": "down_proj", "input_linear": "output_linear", "Wi": "Wo", "fc1": "fc2"}
"""Projections whose first half is the gate -> the linear beside them that reads the product of both halves."""
_IN_BLOCKS = """baichuan dbrx got_ocr2 gpt2 gpt_bigcode modernbert modernbert_decoder mpt openai phi3 phi4_multimodal
qwen qwen2_5_vl qwen2_vl qwen3_omni_moe qwen3_vl sam"""
"""Families that hold all queries, then all keys, then all values."""
_IN_GROUPS = "bloom falcon fuyu gpt_neox gpt_neox_japanese internlm2 minimax persimmon"
"""Families that do so within each key-value head."""
_GATED_QUERIES = "qwen3_5 qwen3_5_moe qwen3_next qwen4_exp"
"""Families in which the queries of each head are followed by the gate of its output."""
_GATED_CONVOLUTIONS = "lfm2 lfm2_moe lfm3"
"""Families whose short convolutions read ``x`` times a gate ``B``, and are themselves gated by ``C``."""
_CODEGEN_PARTS = 4  # CodeGen's rows lie as they were spread over four processors, values before keys

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
HEAD_DIMS = ("head_dim", "head_size")
"""How modules and configurations call the number of heads, and their width."""

Parts = dict[str, Columns]


def parts_of(model: nn.Module, name: str, module: nn.Module) -> Parts | None:
    """What the outputs of a linear are: role -> columns, in the order of the channels; None if one thing, or unknown.

    Roles are ``q k v gate up``, ``attention_gate`` of what attention gives, and ``z b a x B C dt`` of recurrent layers.
    """
    weight: Any = getattr(module, "weight", None)
    around, _, leaf = name.rpartition(".")
    parent = model.get_submodule(around)
    if known := width_of(module):
        width = known
    elif isinstance(module, nn.Linear):
        width = module.out_features
    elif type(module).__name__ == "Conv1D" and weight is not None:
        width = weight.shape[1]
    else:
        return None
    if leaf in _GATE_UP:
        reader = getattr(parent, _GATE_UP[leaf], None)
        halves = reader is not None and 2 * (inputs_of(plain(reader)) or 0) == width
        return _blocks(gate=width // 2, up=width // 2) if halves else None
    family = _family(model, parent)
    if leaf in _QKV:
        return _qkv(family, _sizes(model, parent), width)
    if leaf == "kv_b_proj":
        return _latent(parent, width)
    if leaf == "q_proj" and family in _GATED_QUERIES.split():
        return _gated_queries(_sizes(model, parent), width)
    if leaf == "in_proj" and family in _GATED_CONVOLUTIONS.split() and width % 3 == 0:
        return _blocks(B=width // 3, C=width // 3, x=width // 3)
    if leaf == "kv_proj" and family == "jetmoe":
        return _blocks(k=width // 2, v=width // 2)
    return _linear_attention(leaf, parent, width) or _state_space(leaf, parent, width)


def in_parts(whole: Site, parts: Parts) -> Iterator[Site]:
    """The sites of a module: one for each part, or the whole where it has none."""
    if not parts:
        yield whole
    offset = whole.offset
    for role, columns in parts.items():
        *span, run = columns
        place: Any = {"span": tuple(span), "run": None if run == 1 else run}
        width = len(range(*span)) * run
        yield replace(
            whole,
            name=f"{whole.name}[{role}]",
            kind=role,
            offset=offset,
            width=width,
            parameters=tuple(replace(part, **place) for part in whole.parameters),
            tied_to=whole.tied_to and f"{whole.tied_to}[{role}]",
            columns=columns,
        )
        offset += width


def joined(sites: Iterable[Site]) -> Iterator[tuple[Site, tuple[Site, ...]]]:
    """The modules behind sites in order, each as the site of all its channels, with the sites that share these."""
    for shared, group in groupby(sites, key=lambda site: site.columns and site.module):
        if shared is None:
            yield from ((site, (site,)) for site in group)
            continue
        parts = tuple(group)
        width = sum(part.width for part in parts)
        yield replace(parts[0], name=shared, width=width, columns=None, parameters=()), parts


def _family(model: nn.Module, module: nn.Module) -> str:
    """The family that a module's code is of: a package of transformers, or else what the configuration says."""
    package = type(module).__module__.split(".")
    if package[:2] == ["transformers", "models"]:
        return package[2]
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def _sizes(model: nn.Module, attention: nn.Module) -> tuple[int, int | None]:
    """The number of query heads (0: unknown), and their width if the module tells."""
    heads = [*sizes_named(attention, *HEADS), *sizes_named(config_of(model, attention), *HEADS), 0]
    return heads[0], next(sizes_named(attention, *HEAD_DIMS), None)


def config_of(model: nn.Module, module: nn.Module) -> Any:
    """The configuration of the language model that a module belongs to; None if there is none."""
    config: Any = getattr(module, "config", None) or getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def sizes_named(place: object, *names: str) -> Iterator[int]:
    """The sizes of these names that a module or configuration has."""
    return (size for name in names if isinstance(size := getattr(place, name, None), int) and size > 0)


def _qkv(family: str, sizes: tuple[int, int | None], width: int) -> Parts | None:
    heads, given = sizes
    if not heads or family not in f"{_IN_BLOCKS} {_IN_GROUPS} codegen".split():
        return None
    head_dim = given or width // (3 * heads)
    groups, rest = divmod(width - heads * head_dim, 2 * head_dim)
    if rest or groups < 1 or heads % groups:
        return None
    if family == "codegen":
        run = width // (3 * _CODEGEN_PARTS)
        return {role: (start * run, width, 3 * run, run) for role, start in (("q", 0), ("k", 2), ("v", 1))}
    in_groups = family in _IN_GROUPS.split() or (family == "gpt_bigcode" and groups == heads)
    if not in_groups or groups == 1:
        return _blocks(q=heads * head_dim, k=groups * head_dim, v=groups * head_dim)
    return _in_groups(groups, q=heads // groups * head_dim, k=head_dim, v=head_dim)


def _latent(parent: Any, width: int) -> Parts | None:
    """The keys (all of them but what turns) and values that latent attention computes from what they share."""
    heads, keys, values = (getattr(parent, name, None) or 0 for name in ("num_heads", "qk_nope_head_dim", "v_head_dim"))
    return _in_groups(heads, k=keys, v=values) if heads * keys * values and heads * (keys + values) == width else None


def _gated_queries(sizes: tuple[int, int | None], width: int) -> Parts | None:
    heads, head_dim = sizes
    if not heads or not head_dim or width != 2 * heads * head_dim:
        return None
    return _in_groups(heads, q=head_dim, attention_gate=head_dim)


def _linear_attention(leaf: str, parent: Any, width: int) -> Parts | None:
    """The projections of gated delta nets, as their sizes tell."""
    names = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
    key_heads, value_heads, key_dim, value_dim = (getattr(parent, name, None) or 0 for name in names)
    if not key_heads or not value_heads:
        return None
    keys, values, share = key_heads * key_dim, value_heads * value_dim, value_heads // key_heads
    if leaf == "in_proj_qkv" and width == 2 * keys + values:
        return _blocks(q=keys, k=keys, v=values)
    if leaf == "in_proj_qkvz" and width == 2 * (keys + values):
        return _in_groups(key_heads, q=key_dim, k=key_dim, v=share * value_dim, z=share * value_dim)
    if leaf == "in_proj_ba" and width == 2 * value_heads:
        return _in_groups(key_heads, b=share, a=share)
    return None


def _state_space(leaf: str, parent: Any, width: int) -> Parts | None:
    """The projections of Mamba mixers, as their sizes tell."""
    names = ("intermediate_size", "conv_dim", "num_heads", "time_step_rank", "ssm_state_size")
    inner, convolved, heads, rank, size = (getattr(parent, name, None) or 0 for name in names)
    if leaf == "in_proj" and rank and width == 2 * inner:
        return _blocks(x=inner, z=inner)
    if leaf == "x_proj" and rank and width == rank + 2 * size:
        return _blocks(dt=rank, B=size, C=size)
    state, odd = divmod(convolved - inner, 2)
    if leaf != "in_proj" or not heads or state <= 0 or odd or width != inner + convolved + heads:
        return None
    return _blocks(z=inner, x=inner, B=state, C=state, dt=heads)


def _blocks(**widths: int) -> Parts:
    """One role after the other."""
    found, start = {}, 0
    for role, width in widths.items():
        found[role] = (start, start + width, 1, 1)
        start += width
    return found


def _in_groups(groups: int, **widths: int) -> Parts:
    """One role after the other within each of several equal groups."""
    step, found, start = sum(widths.values()), {}, 0
    for role, width in widths.items():
        found[role] = (start, groups * step, step, width)
        start += width
    return found

"""Parameters that no module applies as a whole: raw matrices, and vectors that scale or shift what a site gives.

What a parameter scales is told by its name and by sizes: a vector has one value for each channel of a site, or one for
several channels in a row, such as those of a head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch

from act.models.adapters import leaf
from act.models.sites import ParameterSlice, Site

_MATRICES = {"fn": 0, "hc_fn": 0, "in_proj_weight": 0, "index_kpool_compress_gate": 0}
_MATRICES |= {"rel_logits_proj.proj": 1, "mm_input_projection_weight": 1}
"""Matrices that are multiplied without a module of their own, by the end of their names, with the dimension of their
outputs."""
_BIASES = {"in_proj_weight": "in_proj_bias"}


class _Rule(NamedTuple):
    """Which sites a parameter may scale, by the end of its name."""

    parameter: str
    sites: str
    """Kinds or last names, best first."""
    dim: int | None = None
    """The dimension with one value for each channel or head; None: the only one longer than 1."""
    every: bool = False
    """Whether it has a value for every channel, those of a head in a row: ``[heads, values]``."""


_OF_A_STATE = "dt_proj in_proj_a a_proj f_proj f_b_proj dt a norm"
_RULES = (
    _Rule("A_log|A|dt_bias", _OF_A_STATE, 0),
    _Rule("D", "conv norm x"),
    _Rule("sinks|softmax_scaling.scale|softmax_scaling.bias", "q q_b_proj wq_b"),
    _Rule("relative_attention_bias|relative_attention_bias.weight", "q project_q", -1),
    _Rule("qk_norm.temp", "k"),
    _Rule(r"(q|query)_?\w*(norm|ln|clip)\w*.(weight|bias|scale)", "q query", 0, every=True),
    _Rule(r"(k|key)_?\w*(norm|ln)\w*.(weight|bias|scale)", "k key", 0, every=True),
    _Rule("rel_l2_clip.scale", "r_proj", 0, every=True),
    _Rule("gate_bias", "gate attention_gate"),
    _Rule("dense_bias", "o"),
    _Rule("e_score_correction_bias|expert_bias|per_expert_scale", "router"),
    _Rule("router_states_scale", "down_proj"),
    _Rule("time_decay|time_first", "key"),
    _Rule(r"attention.time_mix_\w+", "ln1"),
    _Rule(r"feed_forward.time_mix_\w+", "ln2"),
    _Rule("recurrent_param", "conv"),
    _Rule("lambda_1|layer_scale_?1|ls1|gamma_1", "o"),
    _Rule("lambda_2|layer_scale_?2|ls2|gamma_2", "down"),
    _Rule("base", "fn"),
    _Rule("hc_base", "hc_fn"),
    _Rule("position_bias", "gate_proj", -1),
    _Rule("index_kpool_compress_ape", "index_kpool_compress_gate", -1),
    _Rule("k_sconv.static_weight", "k", -1),
    _Rule("v_sconv.static_weight", "v", -1),
    _Rule("pos_embed|position_embeddings?", "conv", -1),
)
_REASONS = (
    (r"lambda_[qk]\d", "its values together make one factor for a whole layer"),
    (r"\w*hc.scale|hc_scale", "one factor for each way of mixing the residual streams, none for a channel"),
    (r"\w+_input.query", "its values together choose among the layers before, none is of a channel"),
    (r"z_\w_init", "the state that a recurrence starts from, whatever the text"),
)


def is_table_of_biases(name: str) -> bool:
    """Whether an embedding is no input: it gives what is added to the attention between two positions."""
    return name.rpartition(".")[2] == "relative_attention_bias"


def of_parameters(
    left: Iterable[str], parameters: Mapping[str, torch.Tensor], sites: Sequence[Site]
) -> tuple[list[Site], dict[str, str]]:
    """Sites of parameters by themselves, named as these, and why other parameters have none.

    Args:
        left: names of the parameters that no other site covers.
        parameters: all parameters of the model; meta tensors are fine.
        sites: the sites of its modules.

    Returns:
        The sites, whose channels follow those of ``sites``; reasons, by the name of the parameter.
    """
    left = list(left)
    found, reasons = list(sites), {}
    for name in left:
        if (dim := _output_dim(name)) is not None and parameters[name].dim() == 2:
            own = leaf(name)
            bias = f"{name.removesuffix(own)}{_BIASES.get(own)}"
            parts = [ParameterSlice(name, dim), *([ParameterSlice(bias, 0)] if bias in parameters else [])]
            found.append(_site(name, parts, parameters[name].shape[dim], found))
    applied = {part.name for site in found[len(sites) :] for part in site.parameters}
    places = _Places(found, parameters)
    for name in left:
        if name in applied:
            continue
        target = places.scaled_by(name)
        if target is None:
            reasons[name] = _reason(name, parameters[name])
        else:
            dim, site = target
            width = parameters[name].shape[dim]
            found.append(_site(name, [ParameterSlice(name, dim)], width, found, scales=site.name))
    return found[len(sites) :], reasons


def _site(
    name: str, parts: Sequence[ParameterSlice], width: int, before: Sequence[Site], scales: str | None = None
) -> Site:
    kind = leaf(name.removesuffix(".weight"))
    offset = before[-1].offset + before[-1].width
    return Site(name, kind, layer_of(name), offset, width, tuple(parts), scales=scales)


def layer_of(name: str) -> int | None:
    """The index of the decoder layer in a path: its first number."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(match.group(1)) if match else None


class _Places:
    """Looks for what a parameter scales, from the module that holds it outwards."""

    def __init__(self, sites: Sequence[Site], parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = parameters
        self._by_scope: dict[str, list[Site]] = {}
        for site in sites:
            if site.expert is None:
                for scope in (site.name, *_around(site.name)):
                    self._by_scope.setdefault(scope, []).append(site)

    def scaled_by(self, name: str) -> tuple[int, Site] | None:
        """The dimension of a parameter that runs over channels or heads, and the site that these are of."""
        shape = self._parameters[name].shape
        rule = next((rule for rule in _RULES if _ends_with(name, rule.parameter)), None)
        if rule is None or shape.numel() == 1:
            return None
        dim = _long_dim(shape) if rule.dim is None or shape[rule.dim] == 1 else rule.dim % len(shape)
        site = None if dim is None else self._named(name, rule.sites.split(), shape[dim])
        if site is None or dim is None or (rule.every and site.width != shape.numel()):
            return None
        return dim, site

    def _named(self, name: str, wanted: Sequence[str], values: int) -> Site | None:
        for number, scope in enumerate(_around(name)):
            near = self._by_scope.get(scope, ())
            fitting = [site for site in near if site.width == values]
            inside = near if number == 0 else ()  # the module that holds the parameter
            fitting += [site for site in near if site.width % values == 0 and self._has_heads(site, inside)]
            for word in wanted:
                for site in fitting:
                    if word in (site.kind, re.split(r"[.\[\]]", site.name.rstrip("]"))[-1]):
                        return site
        return None

    def _has_heads(self, site: Site, near: Iterable[Site]) -> bool:
        """Whether the channels of a site are those of all heads: a norm is as wide as what the output projection reads.

        Others are of one head, or belong to several things.
        """
        if site.kind not in ("norm", "conv"):
            return True
        outputs = (one for one in near if one.kind == "o" and one.parameters)
        return any(prod(self._parameters[one.inputs.name].shape) == site.width * one.width for one in outputs)


def _around(name: str) -> Iterator[str]:
    """The paths of the modules around a parameter, inner first."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _long_dim(shape: torch.Size) -> int | None:
    """The only dimension that is longer than 1."""
    long = [dim for dim, size in enumerate(shape) if size > 1]
    return long[0] if len(long) == 1 else None


def _ends_with(name: str, pattern: str) -> bool:
    return re.search(rf"(?:^|\.)(?:{pattern})$", name) is not None


def _output_dim(name: str) -> int | None:
    return next((dim for ending, dim in _MATRICES.items() if _ends_with(name, ending)), None)


def _reason(name: str, parameter: torch.Tensor) -> str:
    if parameter.numel() == 1:
        return "one number for a whole layer, with no channel of its own"
    known = next((reason for pattern, reason in _REASONS if _ends_with(name, pattern)), None)
    if known:
        return known
    if _long_dim(parameter.shape) is None:
        return "it is of no linear, norm, convolution or embedding, and what is computed with it is not known"
    if any(_ends_with(name, rule.parameter) for rule in _RULES):
        return "no site near it has a channel for each of its values"
    return "what it scales or shifts is not known"

"""The predicted work and memory of a run, by the model's configuration alone; :mod:`act.profiling.cluster` has times.

A forward takes, in floating-point operations::

    tokens · (2 · active weights + 4 · layers · heads · head size · half the length) + counted tokens · 2 · LM head
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from act.core.errors import ActError
from act.models.blocks import Experts
from act.models.channels import ChannelSpace
from act.models.views import LanguageView, language_view
from act.profiles.moments import blocks_of
from act.profiling.accelerators import ACCELERATORS
from act.profiling.stability import GROUPS, SAMPLE
from act.taps.loss import LOGITS_AT_ONCE
from act.taps.steps import ROWS_AT_ONCE
from act_kernels import STATISTICS

RANK_VECTORS = 6  # of one float64 for each channel that a ranking, by any unit, or a report needs at once, at most
STABLE_VECTORS = 2 * GROUPS // 2 + 16  # of channels looked at: float32 sums of all groups, and what a check needs
MATCH_VECTORS = 5  # more, by score match: which channels these are, and have a score
HEADER_OBJECTS = 16  # what Python makes of a header, in its bytes
EMBEDDINGS = "embed", "position"


@dataclass(frozen=True)
class Shape:
    """The figures of a model that decide its costs.

    Attributes:
        parameters: number of parameters.
        active: number of weights that one token of text is multiplied with, without LM head and embedding.
        head: number of weights of the LM head.
        attention: ``layers · heads · head size``; None: the configuration has no heads, and attention is not counted.
        channels: number of channels in the channel space.
        widest: number of channels of the widest site, without the LM head, times the experts that a token meets.
        stream: number of channels of the residual stream.
        layers: number of decoder layers.
        itemsize: bytes per weight.
    """

    parameters: int
    active: int
    head: int
    attention: int | None
    channels: int
    widest: int
    stream: int
    layers: int
    itemsize: int

    @classmethod
    def of(cls, model: nn.Module, space: ChannelSpace) -> Shape:
        """The shape of a model, which may be on the meta device."""
        model = language_view(model)
        config: Any = model.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        find: Any = getattr(model, "get_output_embeddings", lambda: None)
        output = find()
        head = 0 if output is None else output.weight.numel()
        active, routed = 0.0, _routed(space)
        beside = tuple(f"{name}." for name in model.beside) if isinstance(model, LanguageView) else ()
        for name, parameter in model.named_parameters():
            if (
                name.startswith(beside)
                or parameter.dim() < 2
                or id(parameter) in embeddings
                or (output and parameter is output.weight)
            ):
                continue
            active += parameter.numel() * (_chosen(name, config) / routed[name] if name in routed else 1.0)
        chosen = max((_chosen(name, config) for name in list(routed)[:1]), default=1)
        body = [site.width * (1 if site.expert is None else chosen) for site in space if site.kind != "head"]
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            active=round(active),
            head=head,
            attention=_attention(config),
            channels=len(space),
            widest=max(body),
            stream=config.hidden_size,
            layers=config.num_hidden_layers,
            itemsize=next(model.parameters()).element_size(),
        )

    def until_last(self, space: ChannelSpace, left_out: Collection[str]) -> Shape:
        """The shape of what runs up to the end of the last layer with a site to measure.

        Sites outside the layers that are no embeddings are taken to be behind them all.
        """
        wanted = [site for site in space if site.name not in left_out]
        body = [site for site in space if site.kind not in ("head", *EMBEDDINGS)]
        head = self.head if any(site.kind == "head" for site in wanted) else 0
        if any(site.layer is None and site.kind not in EMBEDDINGS for site in wanted):
            return replace(self, head=head)
        ends = [number for number, site in enumerate(body) if site.name not in left_out]
        last = body[ends[-1]].layer if ends else None
        more = itertools.takewhile(lambda site: site.layer == last, body[ends[-1] :] if ends else ())
        run = (ends[-1] if ends else 0) + len(list(more))
        share = sum(site.values or 0 for site in body[:run]) / max(1, sum(site.values or 0 for site in body))
        attention = None if self.attention is None else round(share * self.attention)
        layers = round(share * self.layers)
        return replace(self, active=round(share * self.active), attention=attention, head=head, layers=layers)

    def flops(self, tokens: float, counted: float, length: float) -> float:
        """Floating-point operations of a forward over rows of ``length`` tokens, of which ``counted`` are counted."""
        return tokens * (2 * self.active + 4 * (self.attention or 0) * length / 2) + counted * 2 * self.head

    def work(self, tokens: float, counted: float, length: float, pair: bool = False, swap: bool = False) -> float:
        """Floating-point operations of a run: :meth:`flops` of one model or two, and the products of swapped outputs.

        The donor's modules are applied to the target's inputs, while its attention is not.
        """
        products = replace(self, attention=0).flops(tokens, counted, length) if swap else 0.0
        return (2 if pair else 1) * self.flops(tokens, counted, length) + products

    def memory(self, token_budget: int, pair: bool = False, swap: bool = False) -> dict[str, int]:
        """Bytes on a device, by part; the activations are those of a batch of ``token_budget`` tokens.

        ``swap``: with swapped outputs, of which there is one at a time.
        """
        models = 2 if pair else 1
        arena = self.arena(pair, swap)
        return {
            "weights": models * self.parameters * self.itemsize,
            "moments": arena,
            "moments before the batch": arena,
            "activations": token_budget
            * self.itemsize
            * (models * (4 * self.widest + 12 * self.stream) + swap * self.widest),
        }

    def attributing(self, token_budget: int, length: float = 256, recompute: bool = True) -> dict[str, int]:
        """Bytes on the device of the target of an attribution run, by part; the donor waits in the memory of the host.

        A batch is ``token_budget`` tokens in sequences of ``length``: what enters every layer is kept, or, without
        ``recompute``, all that layers compute; one layer at a time has its activations, their gradients, and three
        float32 matrices of its widest site.
        """
        arena, step = self.arena(), max(self.head, self.widest * self.stream)
        layer = self.itemsize * (8 * self.widest + 16 * self.stream) + 3 * 4 * self.widest
        return {
            "weights": self.parameters * self.itemsize,
            "moments": arena,
            "moments before the batch": arena,
            "rows of documents": math.ceil(token_budget / max(1.0, length)) * self.channels * 4,
            **self._kept_for_gradients(token_budget, recompute),
            "one layer, with gradients": token_budget * layer,
            "a step to the donor": step * self.itemsize + 3 * 4 * ROWS_AT_ONCE * self.stream,
            "logits": LOGITS_AT_ONCE * (self.itemsize + 3 * 4) if self.head else 0,
        }

    def attributed_token(self, recompute: bool = True) -> float:
        """Bytes on the device of the target that each token of a batch adds in an attribution run, at least."""
        few, many = (sum(self.attributing(tokens, math.inf, recompute).values()) for tokens in (1, 2))
        return many - few

    def _kept_for_gradients(self, token_budget: int, recompute: bool) -> dict[str, int]:
        if recompute:
            return {"inputs of the layers": token_budget * self.layers * self.stream * self.itemsize}
        layer = 4 * self.widest + 12 * self.stream
        return {"activations of all layers": token_budget * self.layers * layer * self.itemsize}

    def afterwards(self, space: ChannelSpace, pair: bool = False, swap: bool = False) -> dict[str, int]:
        """Bytes of what a run leaves and of what reads it: the ``profile`` file of one ability; the memory of ``rank``
        and ``report``, with the pages of that file; what ``--until-stable`` needs beside the moments during the run, by
        the default top set and overlap; with ``swap`` by score match, which needs most.
        """
        arena, vector = self.arena(pair, swap), 8 * self.channels
        header = len(json.dumps(space.to_json()))
        looked_at = STABLE_VECTORS * min(self.channels, SAMPLE)
        if swap:
            logits = sum(site.width for site in space if site.kind == "head")
            looked_at += MATCH_VECTORS * min(self.channels, SAMPLE) + STABLE_VECTORS * (len(space.sites) + 3 * logits)
        return {
            "profile": arena + header,
            "rank": 2 * arena + RANK_VECTORS * vector + HEADER_OBJECTS * header,
            "until-stable": 2 * vector + 8 * looked_at,
        }

    def arena(self, pair: bool = False, swap: bool = False) -> int:
        """Bytes of the moments of one ability."""
        return max(1, len(blocks_of(pair, swap))) * len(STATISTICS) * self.channels * 8


def _attention(config: Any) -> int | None:
    """``layers · heads · head size`` over the layers that have attention; None if there are none or they differ."""
    try:
        heads, given = (getattr(config, name, None) for name in ("num_attention_heads", "head_dim"))
    except RuntimeError:  # as transformers 5 says that each layer has a number of its own
        return None
    if not heads:
        return None
    kinds = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    layers = sum(kind not in LAYERS_WITHOUT_ATTENTION for kind in kinds)
    size: int = given or config.hidden_size // heads
    return layers * int(heads) * size


def _routed(space: ChannelSpace) -> dict[str, int]:
    """Parameters of experts that only some tokens are sent to, each with the number of experts."""
    layers = [block for block in space.blocks if isinstance(block, Experts) and "shared" not in block.name]
    sites = [(space.site(name), block.count) for block in layers for e in range(block.count) for name in block.sites(e)]
    return {part.key: count for site, count in sites for part in site.parameters}


def _chosen(name: str, config: Any) -> int:
    """How many experts a token is sent to."""
    for part in (config, getattr(config, "ffn_config", None)):
        for key in _CHOSEN:
            if isinstance(found := getattr(part, key, None), int) and found > 0:
                return found
    raise ActError(
        f"{name} belongs to experts, but the configuration does not say how many a token is sent to "
        f"({', '.join(_CHOSEN)})"
    )


LAYERS_WITHOUT_ATTENTION = ("linear_attention", "mamba", "conv", "moe", "mlp")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_top_k", "moe_k")


@dataclass(frozen=True)
class Fit:
    """Whether a run fits in the memory of a device, and if not, the ways out.

    Attributes:
        needs, has: bytes on each device.
        ways: what could be done, each as the end of a sentence; none if it fits.
    """

    needs: int
    has: int
    ways: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.needs <= self.has

    @classmethod
    def of(
        cls,
        parts: Mapping[str, int],
        has: int,
        token_budget: int,
        itemsize: int,
        gpus_a_model: int = 1,
        on_cpu: bool = False,
    ) -> Fit:
        """The fit of the :meth:`Shape.memory` of a run.

        Args:
            parts: bytes by part.
            has: bytes that a device has for them.
            token_budget: tokens per batch, of which all parts but weights, moments and steps are in proportion.
            itemsize: bytes per weight.
            gpus_a_model: devices over which the weights are spread.
            on_cpu: whether the device is this machine, of which there is one: then GPUs are named that hold the run.
        """
        fixed = sum(size for part, size in parts.items() if part in _FIXED)
        weights = math.ceil(parts["weights"] / gpus_a_model)
        rest = sum(parts.values()) - parts["weights"]
        needs = weights + rest
        if needs <= has:
            return cls(needs, has)
        ways = []
        a_token = (rest - fixed) / token_budget
        tokens = int((has - weights - fixed) / a_token) // 128 * 128 if a_token else 0
        if tokens >= 128:
            ways.append(f"in batches of {tokens:,} tokens (--token-budget {tokens})")
        if itemsize > 2 and (needs - fixed) / 2 + fixed <= has:
            ways.append("in half the width (--dtype bfloat16)")
        room = has - rest
        if on_cpu:
            ways += _gpus_that_hold(parts["weights"], rest)
        elif room > 0:
            count = math.ceil(parts["weights"] / room)
            ways.append(
                f"with the weights spread over {count} such devices (--device-map auto, --gpus-a-model {count})"
            )
        offload = "disk" if on_cpu else "the CPU or disk"
        ways.append(f"with what does not fit on {offload}, more slowly (--device-map auto)")
        return cls(needs, has, tuple(ways))


def _gpus_that_hold(weights: int, rest: int) -> list[str]:
    """Ways out by name: the smallest GPU that holds a run, or several of those that most people rent."""
    by_size = sorted(ACCELERATORS.items(), key=lambda item: item[1].memory)
    ways = [f"on one {one.title} (--gpu {name})" for name, one in by_size if one.usable >= weights + rest][:1]
    if (room := ACCELERATORS["h100"].usable - rest) > 0 and (count := math.ceil(weights / room)) > 1:
        ways.append(
            f"with the weights spread over {count} {ACCELERATORS['h100'].title} (--device-map auto; to plan it, "
            f"--gpu h100 --gpus-a-model {count})"
        )
    return ways


_FIXED = ("moments", "moments before the batch", "a step to the donor", "logits")


def attribution_forwards(recompute: bool = True) -> int:
    """As many forwards as an attribution costs: one, one more that computes layers again, gradients, and changes."""
    return 3 + recompute


def unmoved(space: ChannelSpace) -> dict[str, str]:
    """The reason for each parameter that no site covers, or not as a whole, by name."""
    return {} if space.coverage is None else dict(space.coverage.reasons)

"""The predicted cost of a run: work, memory and time, from the model's configuration and known rates.

For a run on ``n`` GPUs that each hold the weights and read a share of the corpus::

    forward   = tokens · (2 · active weights + 4 · layers · heads · head size · half the length) / rate / n
              + counted tokens · 2 · LM head / rate / n
    tokenise  = tokens / (tokens per second and core · cores)        during the forward
    read      = tokens · bytes per token / bandwidth of the storage  during the forward
    load      = weights / bandwidth of the storage to one machine
    reduce    = ceil(log2 n) · (arena / network bandwidth + 2 · arena / memory bandwidth)
    wall time = load + max(forward, tokenise, read) + reduce
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from torch import nn

from act.core.errors import ActError
from act.models.blocks import Experts
from act.models.channels import ChannelSpace
from act.models.views import LanguageView, language_view
from act.profiles.moments import blocks_of
from act.profiling.stability import GROUPS, SAMPLE
from act.taps.loss import LOGITS_AT_ONCE
from act.taps.steps import ROWS_AT_ONCE
from act_kernels import STATISTICS

RANK_VECTORS = 6  # of one float64 for each channel that a ranking, by any unit, or a report needs at once, at most
STABLE_VECTORS = 2 * GROUPS // 2 + 16  # of channels looked at: float32 sums of all groups, and what a check needs
HEADER_OBJECTS = 16  # what Python makes of a header, in its bytes
EMBEDDINGS = "embed", "position"


class ClusterTimes(TypedDict):
    """Seconds by part; ``forward``, ``tokenise`` and ``read`` overlap, and the ``bottleneck`` is the longest part."""

    load: float
    forward: float
    tokenise: float
    read: float
    reduce: float
    wall: float
    gpu_hours: float
    bottleneck: str


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
        its default criterion.
        """
        arena, vector = self.arena(pair, swap), 8 * self.channels
        header = len(json.dumps(space.to_json()))
        return {
            "profile": arena + header,
            "rank": 2 * arena + RANK_VECTORS * vector + HEADER_OBJECTS * header,
            "until-stable": 2 * vector + STABLE_VECTORS * 8 * min(self.channels, SAMPLE),
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
class Cluster:
    """The rates of a GPU, its machine and the network. These are assumptions, not measurements: replace them.

    Attributes:
        flops: floating-point operations per second of one GPU during a forward.
        storage: bytes per second that the storage of the corpus delivers to all machines together.
        load: bytes per second at which one machine loads weights.
        network: bytes per second between two machines.
        memory: bytes per second of the memory of a GPU.
        tokenise: tokens per second of one core.
        cores: cores per GPU.
        bytes_a_token: bytes per token of the corpus on disk.
    """

    flops: float = 400e12
    storage: float = 5e9
    load: float = 2e9
    network: float = 25e9
    memory: float = 2e12
    tokenise: float = 5e5
    cores: int = 8
    bytes_a_token: float = 4.0

    def seconds(
        self,
        shape: Shape,
        tokens: float,
        counted: float | None = None,
        *,
        gpus: int = 1,
        length: float = 1024,
        pair: bool = False,
        swap: bool = False,
        gpus_a_model: int = 1,
    ) -> ClusterTimes:
        """Seconds by part, by the formulas in the docstring of this module.

        Args:
            shape: the figures of the model.
            tokens: number of tokens, without padding.
            counted: how many of them count; None: all.
            gpus: number of GPUs.
            length: tokens per row.
            pair: whether two such models run.
            swap: whether their outputs are swapped.
            gpus_a_model: GPUs over which one copy of the weights is spread; they work one after the other.
        """
        models, copies = (2 if pair else 1), max(1, gpus // gpus_a_model)
        work = shape.work(tokens, tokens if counted is None else counted, length, pair, swap)
        arena = shape.arena(pair, swap)
        steps = math.ceil(math.log2(copies)) if copies > 1 else 0
        forward = work / self.flops / copies
        tokenise = tokens / (self.tokenise * self.cores * gpus)
        read = tokens * self.bytes_a_token / self.storage
        load = models * shape.parameters * shape.itemsize / self.load
        reduce = steps * (arena / self.network + 2 * arena / self.memory)
        parts = {"load": load, "forward": forward, "tokenise": tokenise, "read": read, "reduce": reduce}
        wall = load + max(forward, tokenise, read) + reduce
        return {
            "load": rounded(load),
            "forward": rounded(forward),
            "tokenise": rounded(tokenise),
            "read": rounded(read),
            "reduce": rounded(reduce),
            "wall": rounded(wall),
            "gpu_hours": rounded(wall * gpus / 3600),
            "bottleneck": max(parts, key=lambda name: parts[name]),
        }


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def attribution_forwards(recompute: bool = True) -> int:
    """As many forwards as an attribution costs: one, one more that computes layers again, gradients, and changes."""
    return 3 + recompute


def unmoved(space: ChannelSpace) -> dict[str, str]:
    """The reason for each parameter that no site covers, or not as a whole, by name."""
    return {} if space.coverage is None else dict(space.coverage.reasons)


def assumptions(cluster: Cluster) -> dict[str, float]:
    """The rates of a cluster as plain data."""
    return asdict(cluster)

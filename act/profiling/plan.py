"""The predicted cost of a run: work, memory and time, from the model's configuration and a short measurement.

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

import copy
import itertools
import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from act.core.errors import ActError, brief
from act.data.batching import LOOK_AHEAD, Sequence
from act.data.corpus import Corpus
from act.data.prefixes import grouped
from act.data.stream import nothing_counted
from act.models.architecture import built
from act.models.blocks import Experts
from act.models.calls import has_decoder, without_cache
from act.models.channels import ChannelSpace
from act.models.limits import CPU_BUDGET, trained_positions
from act.models.prefix import why_unshared
from act.models.views import LanguageView, language_view
from act.profiles.moments import Moments, blocks_of
from act.profiling.dtype_speed import float32_speed
from act.profiling.stability import GROUPS, SAMPLE
from act.taps.loss import LOGITS_AT_ONCE
from act.taps.patches import Samples
from act.taps.steps import ROWS_AT_ONCE
from act.taps.tapped import taps
from act_kernels import STATISTICS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

RANK_VECTORS = 6  # of one float64 for each channel that a ranking, by any unit, or a report needs at once, at most
STABLE_VECTORS = 2 * GROUPS // 2 + 16  # of channels looked at: float32 sums of all groups, and what a check needs
HEADER_OBJECTS = 16  # what Python makes of a header, in its bytes
MEASURED_TOKENS = 1024, 256  # tokens of a measured batch, and of each of its rows
EMBEDDINGS = "embed", "position"
ATTRIBUTION_FORWARDS = 4  # as many as an attribution costs: forward, forward again, gradients, changes
WHOLE_BYTES = 1 << 30  # models up to this size are measured whole, others with one and two layers


class TextPlan(TypedDict):
    """Figures of corpora, scaled up if only a sample was read.

    ``computed`` are the tokens without those that a text before them began with alike, where these are shared.
    ``longest`` and ``mean_length`` are lengths of sequences. ``attended_length`` is the length of the sequence that
    contains an average token.
    """

    records: int
    bad_records: int
    sequences: int
    tokens: int
    computed: int
    counted: int
    images: int
    sampled: bool
    longest: int
    mean_length: float
    attended_length: float


class Measurement(TypedDict):
    """The speed of a profiled forward; ``paths``: how each site is read; ``unshared``: why the model computes for each
    text what several begin with, if it does; ``float32_speed``: how many times as fast products of matrices are in
    float32, on a CPU.
    """

    seconds_a_token: float
    tokens_per_second: float
    layers_measured: list[int]
    paths: dict[str, str]
    unshared: str | None
    float32_speed: float | None


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

    def attributing(self, token_budget: int, length: float = 256) -> dict[str, int]:
        """Bytes on the device of the target of an attribution run, by part; the donor waits in the memory of the host.

        A batch is ``token_budget`` tokens in sequences of ``length``: what enters every layer is kept; one layer at a
        time has its activations, their gradients, and three float32 matrices of its widest site.
        """
        arena, step = self.arena(), max(self.head, self.widest * self.stream)
        layer = self.itemsize * (8 * self.widest + 16 * self.stream) + 3 * 4 * self.widest
        return {
            "weights": self.parameters * self.itemsize,
            "moments": arena,
            "moments before the batch": arena,
            "rows of documents": math.ceil(token_budget / max(1.0, length)) * self.channels * 4,
            "inputs of the layers": token_budget * self.layers * self.stream * self.itemsize,
            "one layer, with gradients": token_budget * layer,
            "a step to the donor": step * self.itemsize + 3 * 4 * ROWS_AT_ONCE * self.stream,
            "logits": LOGITS_AT_ONCE * (self.itemsize + 3 * 4) if self.head else 0,
        }

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
            "load": _rounded(load),
            "forward": _rounded(forward),
            "tokenise": _rounded(tokenise),
            "read": _rounded(read),
            "reduce": _rounded(reduce),
            "wall": _rounded(wall),
            "gpu_hours": _rounded(wall * gpus / 3600),
            "bottleneck": max(parts, key=lambda name: parts[name]),
        }


def _rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def unmoved(space: ChannelSpace) -> dict[str, str]:
    """The reason for each parameter that no site covers, or not as a whole, by name."""
    return {} if space.coverage is None else dict(space.coverage.reasons)


def tokens_of(corpora: Mapping[str, Corpus], sample: int = 2000, token_budget: int = CPU_BUDGET) -> TextPlan:
    """Count the records, tokens (with the context that pieces of a text repeat) and counted tokens of corpora.

    Args:
        corpora: the corpora, fitted to the model.
        sample: how many evenly spaced records of each corpus to read; 0: all.
        token_budget: tokens per batch.

    Raises:
        ActError: a sample is wanted of a stream of unknown size; nothing counts in a corpus.
    """
    counts = ("records", "bad_records", "sequences", "tokens", "computed", "counted", "images")
    result = dict.fromkeys(counts, 0)
    longest, squares, sampled = 0, 0.0, False
    for corpus in corpora.values():
        size = corpus.source.count() if sample else None
        if sample and size is None:
            raise ActError(
                f"the size of {corpus.name} is unknown, so a sample cannot be scaled up; read all of it (--sample 0)"
            )
        step = max(1, (size or 0) // sample) if sample else 1
        found, squared = dict.fromkeys(result, 0), 0
        window: list[Sequence] = []
        for entry, encoded in corpus.numbered(shard=(0, step)):
            found["records"] += 1
            if isinstance(encoded, ActError):
                found["bad_records"] += 1
                continue
            for piece in corpus.pieces_of(encoded, entry.number):
                found["sequences"] += 1
                found["images"] += piece.images
                found["tokens"] += len(piece)
                found["counted"] += int(piece.count_mask.sum())
                squared += len(piece) ** 2
                longest = max(longest, len(piece))
                if not piece.beside:  # texts with images share nothing
                    window.append(piece)
            if found["records"] % LOOK_AHEAD == 0:
                found["computed"] -= _spared(window, token_budget)
                window = []
        found["computed"] += found["tokens"] - _spared(window, token_budget)
        if not found["counted"]:
            raise ActError(nothing_counted(corpus.name))
        scale = (size or 0) / max(found["records"], 1) if step > 1 else 1
        sampled |= step > 1
        squares += squared * scale
        for key, value in found.items():
            result[key] += round(value * scale)
    return {
        "records": result["records"],
        "bad_records": result["bad_records"],
        "sequences": result["sequences"],
        "tokens": result["tokens"],
        "computed": result["computed"],
        "counted": result["counted"],
        "images": result["images"],
        "sampled": sampled,
        "longest": longest,
        "mean_length": result["tokens"] / max(result["sequences"], 1),
        "attended_length": squares / max(result["tokens"], 1),
    }


def _spared(window: list[Sequence], token_budget: int) -> int:
    """How many tokens need not be computed, because the sequences of a window begin alike."""
    return sum(group.spared for group in grouped(window, token_budget))


def measure(
    config: PretrainedConfig,
    device: torch.device,
    seconds: float = 3.0,
    exclude: tuple[str, ...] = (),
    fused: bool = True,
    *,
    include: tuple[str, ...] = (),
    images: Samples = (),
    trust_remote_code: bool = False,
) -> Measurement:
    """Measure the speed of a profiled forward with random weights, and how each site is read.

    A model larger than :data:`WHOLE_BYTES` is built with one and with two layers; the difference is the time of each
    layer that runs. These measure all kinds of modules of which the whole model has some to measure.

    Args:
        config: the configuration of the model.
        device: where to measure.
        seconds: how long to measure.
        include, exclude: the sites that are measured and those that are not (see :meth:`ChannelSpace.without`).
        fused: collect statistics inside fused kernels.
        images: inputs with images, for a corpus that has some; they show how sites are read, and are not timed.
        trust_remote_code: whether Python code that the model brings along may run.

    Raises:
        ActError: the model, or two layers of it, do not fit on the device; the model does not run.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = text.num_hidden_layers
    with torch.device("meta"):
        whole = built(config, trust_remote_code=trust_remote_code)
    space = ChannelSpace.from_model(whole)
    left_out = space.left_out(include, exclude)
    running = Shape.of(whole, space).until_last(space, left_out).layers
    kinds = {site.kind for site in space} - {site.kind for site in space if site.name not in left_out}
    size = sum(parameter.numel() * parameter.element_size() for parameter in whole.parameters())
    depths = [layers] if size <= WHOLE_BYTES or layers <= 2 else [1, 2]
    found = []
    for depth in depths:
        what = f"a model of this configuration{'' if depth == layers else f' with {depth} of its {layers} layers'}"
        blamed = "correct the configuration, or " if depth == layers else ""
        advice = f"{blamed}leave the measurement out (--seconds 0)"
        try:
            with torch.device(device):
                model = built(_shallow(config, depth), trust_remote_code=trust_remote_code)
        except Exception as error:  # the model's code raises anything
            _require_memory(error, depth, device)
            raise ActError(f"{what} cannot be built on {device} ({brief(error)}); {advice}") from error
        inputs = _inputs(model, device)
        try:
            unshared = why_unshared(model)
            some = (include, exclude) if depth == layers else ((), _kinds_in(model, kinds))
            found.append(_measured(model, inputs, device, seconds / len(depths), *some, fused, images))
        except ActError:
            raise
        except Exception as error:
            _require_memory(error, depth, device)
            if (own := _fault(model, inputs)) is not None:
                raise ActError(f"{what} does not run on {device} ({brief(own)}); {advice}") from error
            raise ActError(
                f"{what} runs on {device}, but not while it is measured ({brief(error)}); leave the measurement out "
                "(--seconds 0), and try --no-fused"
            ) from error
        del model
    paths = found[-1][1]
    a_token = found[0][0]
    if len(found) == 2:
        a_layer = max(0.0, found[1][0] - a_token)
        a_token = max(a_token - a_layer, a_token / 100) + running * a_layer
    return {
        "seconds_a_token": a_token,
        "tokens_per_second": 1 / a_token,
        "layers_measured": depths,
        "paths": paths,
        "unshared": unshared,
        "float32_speed": _float32_speed(whole, seconds) if device.type == "cpu" else None,
    }


def _kinds_in(model: nn.Module, kinds: Collection[str]) -> tuple[str, ...]:
    """Those of some kinds that a model has; none if it has no others."""
    known = {site.kind for site in ChannelSpace.from_model(model) if site.scales is None}
    return tuple(known.intersection(kinds)) if known.difference(kinds) else ()


def _float32_speed(model: nn.Module, seconds: float) -> float:
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    matrices = linears or [parameter for parameter in model.parameters() if parameter.dim() == 2]
    outputs, inputs = max(matrices, key=torch.Tensor.numel).shape
    return _rounded(float32_speed(matrices[0].dtype, inputs, outputs, min(1.0, seconds)))


def _shallow(config: Any, depth: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    text.num_hidden_layers = depth
    for name in ("num_decoder_layers", "decoder_layers"):  # beside an encoder
        if isinstance(vars(text).get(name), int):
            setattr(text, name, depth)
    if "layer_types" in vars(text) and text.layer_types:  # otherwise it is computed from the number of layers
        text.layer_types = text.layer_types[:depth]
    if types := vars(text).get("mlp_layer_types"):  # dense layers come first: the second is one of experts
        text.mlp_layer_types = [types[0], types[-1]][:depth]
    if (dense := getattr(text, "first_k_dense_replace", None)) and dense > 1:
        text.first_k_dense_replace = 1
    return config


def _require_memory(error: BaseException, depth: int, device: torch.device) -> None:
    """Raise :class:`ActError` if memory ran out, which PyTorch's CPU allocator says in a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        raise ActError(
            f"{depth} layers of the model do not fit on {device}; leave the measurement out (--seconds 0)"
        ) from error


def _inputs(model: nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of random tokens."""
    tokens, length = MEASURED_TOKENS
    generator = torch.Generator().manual_seed(0)
    length = min(length, trained_positions(getattr(model, "config", None)) or length)
    find: Any = model.get_input_embeddings
    ids = torch.randint(0, find().weight.shape[0], (tokens // length, length), generator=generator).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**inputs, "decoder_input_ids": ids} if has_decoder(model) else inputs


def _fault(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Exception | None:
    """What the model raises by itself; None if it runs."""
    try:
        with torch.inference_mode():
            model(**inputs, **without_cache(model))
    except Exception as error:  # the model's code raises anything
        return error
    return None


def _measured(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    device: torch.device,
    seconds: float,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    fused: bool,
    images: Samples,
) -> tuple[float, dict[str, str]]:
    space = ChannelSpace.from_model(model)
    images = [{name: x.to(device) for name, x in one.items()} for one in images]
    watched = taps(model, Moments(space, device=device), fused=fused, include=include, exclude=exclude, images=images)
    mask = torch.ones(inputs["input_ids"].shape, dtype=torch.bool)
    masks = (mask, mask) if "decoder_input_ids" in inputs else (mask,)
    times: list[float] = []
    with torch.inference_mode(), watched as tapped:
        if images:
            tapped.forward(images[-1], images[-1]["attention_mask"].bool().cpu())
        tapped.forward(inputs, *masks)
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            tapped.forward(inputs, *masks)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        paths = {site.name: tapped.paths.get(site.name, "not measured") for site in space}
    return sorted(times)[len(times) // 2] / sum(each.numel() for each in masks), paths


def path_of(name: str, paths: Mapping[str, str]) -> str:
    """How a site is read; a layer that was not measured is read like the last measured one."""
    if name in paths or not paths:
        return paths.get(name, "unknown")
    for number in ("1", "0"):
        parts = [number if part.isdigit() else part for part in name.split(".")]
        if ".".join(parts) in paths:
            return paths[".".join(parts)]
    return "unknown"


def assumptions(cluster: Cluster) -> dict[str, float]:
    """The rates of a cluster as plain data."""
    return asdict(cluster)

"""What a run will cost, before it: work, memory and time, from the model's configuration and a short measurement.

The model of a run on ``n`` GPUs, each reading its share of the corpus (weights on every GPU)::

    forward   = tokens · (2 · active weights + 4 · layers · heads · head size · half the length) / rate / n
              + counted tokens · 2 · LM head / rate / n
    tokenise  = tokens / (tokens a second and core · cores)         beside the forward
    read      = tokens · bytes a token / bandwidth of the storage   beside the forward
    load      = weights / bandwidth of the storage to one machine
    reduce    = ceil(log2 n) · (arena / network bandwidth + 2 · arena / memory bandwidth)
    wall time = load + max(forward, tokenise, read) + reduce
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from act.core.errors import ActError, brief
from act.data.corpus import Corpus
from act.data.stream import nothing_counted
from act.models.channels import ChannelSpace
from act.models.limits import trained_positions
from act.profiles.moments import Moments
from act.taps.taps import taps
from act_kernels import PAIR, STATISTICS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MEASURED_TOKENS = 1024, 256  # of a measured batch, and of a row
WHOLE_BYTES = 1 << 30  # models up to this size are measured whole, others one and two layers deep


class TextPlan(TypedDict):
    """Figures of corpora, scaled up if only a sample was read.

    ``longest`` and ``mean_length`` are of the sequences; ``attended_length`` is that of the sequence in which an
    average token is.
    """

    records: int
    bad_records: int
    sequences: int
    tokens: int
    counted: int
    sampled: bool
    longest: int
    mean_length: float
    attended_length: float


class Measurement(TypedDict):
    """A profiled forward, timed; ``paths``: how each site is read."""

    seconds_a_token: float
    tokens_per_second: float
    layers_measured: list[int]
    paths: dict[str, str]


class ClusterTimes(TypedDict):
    """Seconds by part, of which ``forward``, ``tokenise`` and ``read`` overlap; the ``bottleneck`` is the longest."""

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
    """What the costs of a model depend on.

    Attributes:
        parameters: numbers in the model.
        active: weights that one token is multiplied with, without LM head and embedding.
        head: weights of the LM head.
        attention: ``layers · heads · head size``; None: the configuration has no heads, and attention is not counted.
        channels: of the channel space.
        widest: channels of the widest site of the body; ``stream``: of the residual stream.
        layers: decoder layers.
        itemsize: bytes of a weight.
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
        """Of a model, which may be on the meta device."""
        config: Any = model.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        find: Any = getattr(model, "get_output_embeddings", lambda: None)
        output = find()
        head = 0 if output is None else output.weight.numel()
        active = 0.0
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or id(parameter) in embeddings or (output and parameter is output.weight):
                continue
            active += parameter.numel() * _share(name, parameter, config)
        body = [site.width for site in space if site.kind != "head"]
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

    def flops(self, tokens: float, counted: float, length: float, head: bool = True) -> float:
        """Multiplications and additions of a forward over rows of that length."""
        body = tokens * (2 * self.active + 4 * (self.attention or 0) * length / 2)
        return body + (counted * 2 * self.head if head else 0)

    def memory(self, token_budget: int, pair: bool = False) -> dict[str, int]:
        """Bytes on a device, by part; activations for a batch of ``token_budget`` tokens."""
        models = 2 if pair else 1
        arena = self.arena(pair)
        return {
            "weights": models * self.parameters * self.itemsize,
            "moments": arena,
            "moments before the batch": arena,
            "activations": models * token_budget * self.itemsize * (4 * self.widest + 12 * self.stream),
        }

    def arena(self, pair: bool = False) -> int:
        """Bytes of the moments."""
        return (len(PAIR) if pair else 1) * len(STATISTICS) * self.channels * 8


def _attention(config: Any) -> int | None:
    """``layers · heads · head size``, of the layers that have attention."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return None
    kinds = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    layers = sum(kind not in LAYERS_WITHOUT_ATTENTION for kind in kinds)
    return layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)


def _share(name: str, parameter: torch.Tensor, config: Any) -> float:
    """The share of a weight that a token meets: one, or for routed experts how many of them it is sent to."""
    if "experts" not in name.split("."):
        return 1.0
    chosen = next((getattr(config, key) for key in _CHOSEN if getattr(config, key, None)), None)
    of = (
        parameter.shape[0]
        if parameter.dim() == 3
        else next((getattr(config, key) for key in _EXPERTS if getattr(config, key, None)), None)
    )
    if not chosen or not of:
        raise ActError(
            f"{name} belongs to experts, but the configuration does not say how many of how many a token takes"
        )
    return chosen / of


LAYERS_WITHOUT_ATTENTION = ("linear_attention", "mamba", "conv", "moe", "mlp")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Cluster:
    """What a GPU, its machine and the network give. Inputs, not measurements: put in your own.

    Attributes:
        flops: delivered to the forward by one GPU, a second.
        storage: bytes a second that the corpus' storage gives all machines together.
        load: bytes a second at which one machine loads weights.
        network: bytes a second between two machines.
        memory: bytes a second of a GPU's memory.
        tokenise: tokens a second of one core; ``cores``: for each GPU.
        bytes_a_token: of the corpus on disk.
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
        gpus_a_model: int = 1,
    ) -> ClusterTimes:
        """Seconds by part, by the formulas of the module.

        Args:
            gpus_a_model: GPUs over which one copy of the weights is spread, one after the other.
        """
        models, copies = (2 if pair else 1), max(1, gpus // gpus_a_model)
        work = models * shape.flops(tokens, tokens if counted is None else counted, length)
        arena = shape.arena(pair)
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
    """To four significant digits."""
    return float(f"{value:.4g}")


def unmoved(model: nn.Module, space: ChannelSpace) -> dict[str, str]:
    """Every parameter that no site covers, with the reason."""
    parameters = dict(model.named_parameters())
    return {name: _reason(name, parameters[name]) for name in space.uncovered}


def _reason(name: str, parameter: torch.Tensor) -> str:
    if parameter.dim() == 3 and "experts" in name.split("."):
        return "experts packed in one tensor are not modules, so no output of theirs is read"
    if parameter.dim() == 3:
        return "a tensor of three dimensions has no one dimension of outputs"
    if parameter.dim() < 2:
        return "a vector that belongs to no linear, norm or embedding module"
    return "its module is no linear, norm or embedding"


def tokens_of(corpora: Mapping[str, Corpus], sample: int = 2000) -> TextPlan:
    """Records, tokens (including context that pieces of a text repeat) and counted tokens of corpora.

    Args:
        corpora: fitted to the model.
        sample: how many evenly spaced records of each to read; 0: all.

    Raises:
        ActError: a sample of a stream whose size is unknown; a corpus in which nothing counts.
    """
    result = dict.fromkeys(("records", "bad_records", "sequences", "tokens", "counted"), 0)
    longest, squares, sampled = 0, 0.0, False
    for corpus in corpora.values():
        size = corpus.source.count() if sample else None
        if sample and size is None:
            raise ActError(f"the size of {corpus.name} is not known, so a sample says nothing; count all (--sample 0)")
        step = max(1, (size or 0) // sample) if sample else 1
        found, squared = dict.fromkeys(result, 0), 0
        for entry, encoded in corpus.numbered(shard=(0, step)):
            found["records"] += 1
            if isinstance(encoded, ActError):
                found["bad_records"] += 1
                continue
            for piece in corpus.pieces_of(encoded, entry.number):
                found["sequences"] += 1
                found["tokens"] += len(piece)
                found["counted"] += int(piece.count_mask.sum())
                squared += len(piece) ** 2
                longest = max(longest, len(piece))
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
        "counted": result["counted"],
        "sampled": sampled,
        "longest": longest,
        "mean_length": result["tokens"] / max(result["sequences"], 1),
        "attended_length": squares / max(result["tokens"], 1),
    }


def measure(
    config: PretrainedConfig,
    device: torch.device,
    seconds: float = 3.0,
    exclude: tuple[str, ...] = (),
    fused: bool = True,
) -> Measurement:
    """Tokens per second of a profiled forward on a device, and how each site is read, with random weights.

    A model above :data:`WHOLE_BYTES` is built one and two layers deep; the difference is the time of a layer.

    Raises:
        ActError: not even two layers fit, or the model does not run.
    """
    from transformers import AutoModelForCausalLM

    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = text.num_hidden_layers
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    size = sum(parameter.numel() * parameter.element_size() for parameter in whole.parameters())
    depths = [layers] if size <= WHOLE_BYTES or layers <= 2 else [1, 2]
    found = []
    for depth in depths:
        try:
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(_shallow(config, depth)).eval()
            found.append(_measured(model, device, seconds / len(depths), exclude, fused))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ActError(
                f"{depth} layers of the model do not fit on {device}; leave the measurement out (--seconds 0)"
            ) from error
        except ActError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:  # of the model's own code
            short = brief(error)
            raise ActError(
                f"a model of this configuration does not run on {device} ({short}); "
                "correct the configuration, or leave the measurement out (--seconds 0)"
            ) from error
        del model
    paths = found[-1][1]
    a_token = found[0][0] if len(found) == 1 else found[0][0] + (layers - 1) * max(0.0, found[1][0] - found[0][0])
    return {"seconds_a_token": a_token, "tokens_per_second": 1 / a_token, "layers_measured": depths, "paths": paths}


def _shallow(config: Any, depth: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    text.num_hidden_layers = depth
    if "layer_types" in vars(text) and text.layer_types:  # elsewhere computed from the number of layers
        text.layer_types = text.layer_types[:depth]
    return config


def _measured(
    model: nn.Module, device: torch.device, seconds: float, exclude: tuple[str, ...], fused: bool
) -> tuple[float, dict[str, str]]:
    tokens, length = MEASURED_TOKENS
    space = ChannelSpace.from_model(model)
    generator = torch.Generator().manual_seed(0)
    length = min(length, trained_positions(getattr(model, "config", None)) or length)
    find: Any = model.get_input_embeddings
    ids = torch.randint(0, find().weight.shape[0], (tokens // length, length), generator=generator)
    inputs = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    mask = torch.ones_like(ids, dtype=torch.bool)
    times: list[float] = []
    with torch.inference_mode(), taps(model, Moments(space, device=device), fused=fused, exclude=exclude) as tapped:
        tapped.forward(inputs, mask)
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            tapped.forward(inputs, mask)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        paths = {site.name: tapped.paths.get(site.name, "not measured") for site in space}
    return sorted(times)[len(times) // 2] / ids.numel(), paths


def path_of(name: str, paths: Mapping[str, str]) -> str:
    """How a site is read, from a model of fewer layers: as the same site of the last one measured."""
    if name in paths or not paths:
        return paths.get(name, "unknown")
    for number in ("1", "0"):
        parts = [number if part.isdigit() else part for part in name.split(".")]
        if ".".join(parts) in paths:
            return paths[".".join(parts)]
    return "unknown"


def assumptions(cluster: Cluster) -> dict[str, float]:
    """The inputs of the model as plain data."""
    return asdict(cluster)

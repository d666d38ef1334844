"""The speed of a profiled forward, and how each site is read: a short measurement with random weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from act.core.errors import ActError, brief
from act.models.architecture import built
from act.models.calls import has_decoder, without_cache
from act.models.channels import ChannelSpace
from act.models.limits import trained_positions
from act.models.prefix import why_unshared
from act.profiles.moments import Moments
from act.profiling.cluster import rounded
from act.profiling.dtype_speed import float32_speed
from act.profiling.plan import Shape
from act.taps.patches import Samples
from act.taps.tapped import taps

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MEASURED_TOKENS = 1024, 256  # tokens of a measured batch, and of each of its rows
TRIED_TOKENS = 64, 32  # the same of one that only shows how sites are read
DRAWN = 1 << 20  # random weights of a parameter that are drawn; the others repeat them
WHOLE_BYTES = 1 << 30  # models up to this size are measured whole, others with one and two layers


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
        seconds: how long to measure; 0: only how sites are read is of use.
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
    depths = [layers] if size <= WHOLE_BYTES or layers <= 2 else [1, 2] if seconds else [2]
    found = []
    for depth in depths:
        what = f"a model of this configuration{'' if depth == layers else f' with {depth} of its {layers} layers'}"
        blamed = "correct the configuration, or " if depth == layers else ""
        advice = f"{blamed}leave the measurement out (--seconds 0)"
        try:
            with torch.device(device), _FewDraws():  # type: ignore[no-untyped-call]
                model = built(_shallow(config, depth), trust_remote_code=trust_remote_code)
        except Exception as error:  # the model's code raises anything
            _require_memory(error, depth, device)
            raise ActError(f"{what} cannot be built on {device} ({brief(error)}); {advice}") from error
        inputs = _inputs(model, device, MEASURED_TOKENS if seconds else TRIED_TOKENS)
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
        "float32_speed": _float32_speed(whole, seconds) if seconds and device.type == "cpu" else None,
    }


def _kinds_in(model: nn.Module, kinds: Collection[str]) -> tuple[str, ...]:
    """Those of some kinds that a model has; none if it has no others."""
    known = {site.kind for site in ChannelSpace.from_model(model) if site.scales is None}
    return tuple(known.intersection(kinds)) if known.difference(kinds) else ()


def _float32_speed(model: nn.Module, seconds: float) -> float:
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    matrices = linears or [parameter for parameter in model.parameters() if parameter.dim() == 2]
    outputs, inputs = max(matrices, key=torch.Tensor.numel).shape
    return rounded(float32_speed(matrices[0].dtype, inputs, outputs, min(1.0, seconds)))


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


class _FewDraws(TorchDispatchMode):
    """Fills a large tensor with copies of its first :data:`DRAWN` random values, as fast as memory is written."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
        if not drawn or args[0].numel() <= DRAWN or not args[0].is_contiguous():
            return func(*args, **(kwargs or {}))
        values, *distribution = args
        flat = values.view(-1)
        func(flat[:DRAWN], *distribution, **(kwargs or {}))
        for part in flat[DRAWN:].split(DRAWN):
            part.copy_(flat[: len(part)])
        return values


def _inputs(model: nn.Module, device: torch.device, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """A batch of random tokens: so many, in rows of so many."""
    tokens, length = shape
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

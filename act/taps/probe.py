"""A short forward that records which tensors flow between the parts of a model, and in which shapes."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from act.core.errors import brief
from act.models.calls import has_decoder, without_cache
from act.models.embeddings import input_embedding
from act.models.layout import Tokens
from act.models.modes import evaluating
from act.models.placement import input_device
from act.models.rotary import RotaryFunction, RotaryPairs, rotary_functions, rotary_pairs
from act.models.views import original
from act.taps.unchanged import version
from act_kernels.backends import BackendError

ADDITIONS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)
PROBE_IDS = 8
"""How many token ids a probe uses; none that the configuration gives a meaning, such as padding or an image."""
MOST_HEADS = 1024
"""Larger numbers in a configuration are widths, windows or ids, over which no dimension before the channels runs."""
_TOKEN = re.compile(r"token_(id|ids|index)$")
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)


@dataclass
class Call:
    """Input and output of a module in the probe."""

    input: torch.Tensor
    output: torch.Tensor


@dataclass
class Recording:
    """What the probe saw, by module name.

    Attributes:
        ids: the token ids ``[batch, length]``. Neither number divides a size in the model's configuration, so that
            every dimension of an output shows what it runs over.
        masked: whether the model needed an attention mask.
    """

    ids: torch.Tensor
    masked: bool
    source: torch.Tensor | None = None
    """What the encoder beside a decoder reads, ``[batch, source]``; its length is another such number."""
    encoder: str = ""
    """The name of that encoder, with a dot behind it."""
    blocks: Mapping[Tokens, int] = field(default_factory=dict)
    """Texts that the model pads, until their length is a multiple of this."""
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    """Whatever a site returned, call by call."""
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    """The last input of each site that takes one tensor."""
    sites: dict[str, Call] = field(default_factory=dict)
    """The last call of each site that takes one tensor and returns one."""
    holders: dict[str, Call] = field(default_factory=dict)
    """The same for the modules that sites are children of."""
    sums: dict[str, str] = field(default_factory=dict)
    """Site -> the site that reads its output, or the sum of its output and another tensor, as it was computed."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often each was called: modules that run more than once per forward are not fused with their neighbours."""
    rotated: set[str] = field(default_factory=set)
    """Linears whose output goes into a rotary embedding as it is."""
    pairs: dict[str, tuple[RotaryPairs, int]] = field(default_factory=dict)
    """Holder of sites -> which dimensions its heads turn together, and how many; absent if it turns none."""
    changed: set[str] = field(default_factory=set)
    """Sites whose output the model changed in place before the module around them had ended."""
    changing: set[str] = field(default_factory=set)
    """Sites and holders that change their own input in place."""

    def also(self, other: Recording) -> None:
        """Keep of the sums only those in another recording, too, of inputs that reach more of the model."""
        self.sums = {name: norm for name, norm in self.sums.items() if other.sums.get(name) == norm}
        self.counts |= other.counts


@dataclass
class _Sum:
    """A sum that a site's output went into, and its values when it was computed."""

    origin: str
    result: torch.Tensor
    values: torch.Tensor
    version: int

    def is_as_computed(self) -> bool:
        """Whether the model has not changed it in place."""
        return version(self.result) == self.version and _same_values(self.result, self.values)


class TracedOutput(torch.Tensor):
    """A site's output that notes which sum it goes into; the result of any operation is a plain tensor."""

    origin: str
    made: int
    """Its version when the site gave it; it grows when the model changes it in place."""
    added: dict[int, _Sum]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_idle_dropout(func, args, kwargs or {}):
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if func in ADDITIONS and len(args) == 2 and not kwargs:
                for one, other in (args, args[::-1]):
                    if isinstance(one, TracedOutput) and isinstance(other, torch.Tensor) and one.shape == other.shape:
                        one.added[id(result)] = _Sum(one.origin, result, result.clone(), version(result))
            return result


def probe(model: nn.Module, sites: set[str], lengths: Mapping[Tokens, int] | None = None) -> Recording | str:
    """Run the model in eval mode on a few tokens and record its sites and the modules around them.

    Args:
        model: the model.
        sites: names of the modules to record.
        lengths: of texts that shall have one of their own.

    Returns:
        The recording, or the reason why the model does not run with ``input_ids`` (and ``attention_mask``) alone.
    """
    ids, source, reason = *probe_ids(model, lengths or {}), ""
    for masked in (False, True):
        recorder = _Recorder(Recording(ids, masked, source, _encoder(model)), sites)
        try:
            with recorder.hooked(model):
                run(model, ids, source, masked)
            return recorder.recording
        except BackendError:
            raise
        except Exception as error:  # a model that needs other inputs may raise anything
            reason = reason or f"{type(error).__name__}: {brief(error)}"
    return reason


def probe_with(model: nn.Module, sites: set[str], inputs: Mapping[str, torch.Tensor]) -> Recording:
    """Run the model in eval mode on inputs with images, and record its sites and the modules around them."""
    recorder = _Recorder(Recording(inputs["input_ids"], masked=True), sites)
    with recorder.hooked(model):
        run_with(model, inputs)
    return recorder.recording


def run_with(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Run the model in eval mode on inputs with images."""
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        model(**inputs, **without_cache(model))


def run(model: nn.Module, ids: torch.Tensor, source: torch.Tensor | None, masked: bool) -> None:
    """Run the model in eval mode on token ids ``[batch, length]``, which a decoder reads beside those of a ``source``.

    ``masked``: give it an attention mask too.
    """
    inputs = {"input_ids": ids} if source is None else {"input_ids": source, "decoder_input_ids": ids}
    if masked:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        model(**inputs, **without_cache(model))


def _encoder(model: nn.Module) -> str:
    """The name of the encoder beside a decoder, with a dot behind it; empty for other models."""
    find: Any = getattr(model, "get_encoder", None)
    encoder = find() if find and has_decoder(model) else None
    return next((f"{name}." for name, module in model.named_modules() if module is encoder and name), "")


def probe_ids(model: nn.Module, lengths: Mapping[Tokens, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids ``[batch, length]``, and ``[batch, source]`` for a model that has a decoder beside its encoder.

    The sizes, but for given ``lengths``, are different primes that divide no size in the model's configuration.
    """
    special = {value for name, value in _numbers_of(model) if _TOKEN.search(name)}
    free = [prime for prime in _PRIMES if all(size % prime for size in sizes_in(model).union(lengths.values()))]
    batch, length, source = (*free, *_PRIMES[-3:])[:3]
    length, source = lengths.get("length", length), lengths.get("source", source)
    rows: Any = getattr(input_embedding(model), "weight", None)
    usable = [number for number in range(1, PROBE_IDS + len(special) + 1) if number not in special]
    usable = [number for number in usable if rows is None or number < len(rows)][:PROBE_IDS] or [0]
    known = torch.tensor(usable, device=input_device(model))

    def text(length: int) -> torch.Tensor:
        place = torch.arange(batch * length, device=known.device).view(batch, length)
        return known[(place + place // length) % len(usable)]

    return text(length), text(source) if has_decoder(model) else None


def sizes_in(model: nn.Module) -> set[int]:
    """The numbers in a model's configuration that a dimension before the channels may run over."""
    numbers = ((name, value) for name, value in _numbers_of(model) if 0 < value <= MOST_HEADS)
    return {value for name, value in numbers if not _TOKEN.search(name) and "layer" not in name}


def other_text(ids: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Another text than that of a probe: another last token in its ``first`` row, and others in all of its second."""
    changed, known = ids.clone(), ids.unique()
    # steps of several sizes: what picks some of the tokens does not pick the same ones a place later
    steps = 1 + torch.arange(ids.shape[1], device=ids.device) % max(1, len(known) - 1)
    for row, tokens in ((first, slice(-1, None)), (1, slice(None))):
        changed[row, tokens] = known[(torch.searchsorted(known, ids[row, tokens]) + steps[tokens]) % len(known)]
    return changed


def _numbers_of(model: nn.Module) -> list[tuple[str, int]]:
    config: Any = getattr(original(model), "config", None)
    return list(_numbers(config.to_dict() if hasattr(config, "to_dict") else {}))


def _numbers(data: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every integer in nested plain data, with the key it stands under."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _numbers(value, str(key))
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _numbers(value, name)
    elif isinstance(data, int) and not isinstance(data, bool):
        yield name, abs(data)


class _Recorder:
    """The hooks that fill a :class:`Recording`."""

    def __init__(self, recording: Recording, sites: set[str]) -> None:
        self.recording = recording
        self._sites = sites
        self._holders = {name.rpartition(".")[0] for name in sites} - sites
        self._running: list[str] = []
        self._versions: list[list[int]] = []  # of the inputs of the modules that run, outer first
        self._added: dict[int, _Sum] = {}
        self._made: dict[int, tuple[str, torch.Tensor, int]] = {}  # by the address of their memory

    @contextlib.contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Record what a model does during the block."""
        with contextlib.ExitStack() as stack:
            for name, module in model.named_modules():
                for handle in self.hooks_on(name, module):
                    stack.callback(handle.remove)
            for namespace, name in rotary_functions(model):
                stack.callback(RotaryFunction.add(namespace, name, self.note_rotary))
                stack.callback(RotaryFunction.watch(namespace, name, self.note_turned))
            yield

    def hooks_on(self, name: str, module: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Hook a module, if it is a site or holds one."""
        if name in self._sites or name in self._holders:
            yield module.register_forward_pre_hook(self._before)
            yield module.register_forward_hook(partial(self._after, name), with_kwargs=True)
            after = self._after_site(name) if name in self._sites else self._after_holder(name)
            yield module.register_forward_hook(after, with_kwargs=True)
        if name in self._holders:
            yield module.register_forward_pre_hook(lambda *_: self._running.append(name))

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._versions.append([version(x) for x in args if isinstance(x, torch.Tensor)])

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._versions.pop() != [version(x) for x in args if isinstance(x, torch.Tensor)]:
            self.recording.changing.add(name)

    def note_rotary(self, q: torch.Tensor, k: torch.Tensor, *_: Any) -> None:
        for x in (q, k):
            if made := self._made.get(x.untyped_storage().data_ptr()):
                self.recording.rotated.add(made[0])

    def note_turned(self, function: Callable[..., Any], q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor) -> None:
        starts_early = q.storage_offset() == 0  # a later part of each head is not what pairs are counted from
        if self._running and starts_early:
            self.recording.pairs[self._running[-1]] = rotary_pairs(function, q.shape[-1], cos.shape[-1])

    def _after_site(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            recording, copied = self.recording, _copied(output)
            recording.outputs.setdefault(name, []).append(copied)
            if not _one_tensor(args, kwargs):
                return None
            given = args[0]
            recording.inputs[name] = given.as_subclass(torch.Tensor)
            if not isinstance(output, torch.Tensor):
                return None
            recording.counts[name] += 1
            if isinstance(given, TracedOutput):
                if version(given) == given.made and _same_values(given, self._made_by(given.origin)):
                    recording.sums.setdefault(given.origin, name)
            elif (total := self._added.get(id(given))) and total.is_as_computed():
                recording.sums.setdefault(total.origin, name)
            plain = output.as_subclass(torch.Tensor)
            recording.sites[name] = Call(recording.inputs[name], copied)
            self._made[output.untyped_storage().data_ptr()] = name, output, version(output)
            traced = plain.as_subclass(TracedOutput)
            traced.origin, traced.made, traced.added = name, version(plain), self._added
            return traced

        return hook

    def _after_holder(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._running.pop()
            recording = self.recording
            for site, made, before in self._made.values():
                ended = site.rpartition(".")[0] == name
                if ended and (version(made) != before or not _same_values(made, self._made_by(site))):
                    recording.changed.add(site)
            if _one_tensor(args, kwargs) and isinstance(output, torch.Tensor):
                recording.counts[name] += 1
                given, made = (x.as_subclass(torch.Tensor) for x in (args[0], output))
                recording.holders[name] = Call(given, made.clone())

        return hook

    def _made_by(self, site: str) -> torch.Tensor:
        return self.recording.sites[site].output


def _one_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.as_subclass(torch.Tensor), other)


def _copied(output: Any) -> Any:
    """A copy of what a module returned, which the model cannot change: tensors, and tuples and lists of them."""
    if isinstance(output, torch.Tensor):
        return output.detach().as_subclass(torch.Tensor).clone()
    if type(output) in (tuple, list):
        return tuple(_copied(item) for item in output)
    return None


def is_idle_dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is a dropout that drops nothing."""
    if func is not torch.nn.functional.dropout:
        return False
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    return not given.get("training", True) or given.get("p") == 0

"""Heads and neurons, verified by ablation: the rows of a unit change the columns that read it, and no others.

An attention module or MLP is called once more, with the arguments that it had in the probe but the same ones in every
row of a batch. Its projections give values made up here, so that no product is computed, and it ends before its last
linear. In each row but the first, some units have other values, and what changes reads them; about ``log2(units)``
rows tell all units apart (:func:`codes`).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, islice
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from act.core.errors import brief
from act.models.blocks import Attention, Block, Mlp
from act.models.channels import ChannelSpace
from act.models.modes import evaluating
from act.taps.layouts import Beside

ROUNDING = 16
"""Columns that differ by less than so many units of rounding, relative to the largest value, have not changed."""


class _Reached(Exception):
    """The last linear of a block was about to run."""

    def __init__(self, given: torch.Tensor) -> None:
        self.given = given


@dataclass
class Calls:
    """The last call of each module around a block, and what the linears in it gave in each call."""

    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    given: dict[str, list[Any]] = field(default_factory=dict)
    beside: Mapping[str, Beside] = field(default_factory=dict)
    """The calls that are not over tokens, by module."""

    @functools.cached_property
    def outputs(self) -> dict[str, torch.Tensor]:
        """What each linear gave in the last of its calls over tokens."""
        over = {
            name: [output for call, output in enumerate(calls) if call not in self.beside.get(name, ())]
            for name, calls in self.given.items()
        }
        return {name: calls[-1] for name, calls in over.items() if calls and isinstance(calls[-1], torch.Tensor)}

    def over_tokens(self, beside: Mapping[str, Beside]) -> Calls:
        """The same, knowing which calls are not over tokens."""
        return replace(self, beside=beside)

    @classmethod
    @contextlib.contextmanager
    def noted(cls, model: nn.Module, space: ChannelSpace) -> Iterator[Calls]:
        """Note the calls of a model while the block runs."""
        calls = cls()
        blocks = list(_called(space))
        around = {_around(space, block) for block in blocks}
        made = {name for block in blocks for name in (*block.rows(), *block.inputs())}
        with contextlib.ExitStack() as stack:
            for name in around:
                hook = partial(calls._note_arguments, name)
                stack.callback(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True).remove)
            for name in {space.site(site).module for site in made}:
                hook = partial(calls._note_output, name)
                stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
            yield calls

    def _note_arguments(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        copied = tree_map_only(torch.Tensor, lambda x: x.detach().as_subclass(torch.Tensor).clone(), (args, kwargs))
        self.arguments[name] = copied

    def _note_output(self, name: str, _: nn.Module, args: Any, output: Any) -> None:
        plain = output.detach().as_subclass(torch.Tensor) if isinstance(output, torch.Tensor) else None
        self.given.setdefault(name, []).append(plain)


def verified(
    model: nn.Module, space: ChannelSpace, calls: Calls, ids: torch.Tensor, source: torch.Tensor | None = None
) -> ChannelSpace:
    """A channel space without the blocks that the model does not have, and with the reasons.

    The neurons of single experts are as the probe of their holder has shown them.

    Args:
        model: the model.
        space: its channel space.
        calls: what :meth:`Calls.noted` saw in a probe.
        ids: the token ids ``[batch, length]`` of that probe.
        source: those that an encoder reads beside a decoder, ``[batch, source]``.
    """
    reasons: dict[str, str] = {}
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        for block in _called(space):
            text = ids if source is None or not _of_source(space, block) else source
            if reason := _Ablation(model, space, block, calls, text).fault():
                (reader,) = block.inputs()
                reasons[reader] = reason
    return _without(space, reasons)


def unverified(space: ChannelSpace, reason: str) -> ChannelSpace:
    """A channel space without the blocks that only a probe could have verified."""
    return _without(space, {name: reason for block in _called(space) for name in block.inputs()})


@functools.lru_cache(maxsize=16)
def codes(units: int) -> torch.Tensor:
    """Which units each trial changes, bool ``[trials, units]``: for any two units, one trial changes the first only.

    >>> from act.taps.verified import codes
    >>> codes(3).int()
    tensor([[1, 1, 0],
            [1, 0, 1],
            [0, 1, 1]], dtype=torch.int32)
    """
    trials = next(n for n in range(1, 64) if math.comb(n, (n + 1) // 2) >= units)
    code = torch.zeros(units, trials, dtype=torch.bool)
    chosen = list(islice(combinations(range(trials), (trials + 1) // 2), units))
    return code.scatter_(1, torch.tensor(chosen), True).T


def _without(space: ChannelSpace, reasons: dict[str, str]) -> ChannelSpace:
    blocks: list[Block] = []
    for block in space.blocks:
        if not reasons.keys() & block.inputs().keys():
            blocks.append(block)
        elif isinstance(block, Attention):
            blocks += block.turned()
    return replace(space, blocks=tuple(blocks), refused=reasons)


def _called(space: ChannelSpace) -> Iterator[Attention | Mlp]:
    """The blocks whose projections are modules that are called."""
    for block in space.blocks:
        if isinstance(block, (Attention, Mlp)) and all(space.site(name).expert is None for name in block.rows()):
            yield block


def _of_source(space: ChannelSpace, block: Attention | Mlp) -> bool:
    """Whether a block is of the encoder beside a decoder."""
    return all(layout.tokens == "source" for name in block.rows() for layout in space.site(name).layouts)


def _around(space: ChannelSpace, block: Attention | Mlp) -> str:
    """The innermost module that holds all linears of a block."""
    paths = [space.site(name).module.split(".")[:-1] for name in (*block.rows(), *block.inputs())]
    common = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    while any(path[: len(common)] != common for path in paths):
        common.pop()
    return ".".join(common)


class _Ablation:
    """One block, run with values made up here: usual ones in the first row, and one trial in each row after it."""

    def __init__(self, model: nn.Module, space: ChannelSpace, block: Attention | Mlp, calls: Calls, ids: torch.Tensor):
        self._calls = calls
        self._unit = "neuron" if isinstance(block, Mlp) else "head"
        self._around = _around(space, block)
        self._module = model.get_submodule(self._around)
        ((reader, self._columns),) = block.inputs().items()
        self._reader_name = space.site(reader).module
        self._reader = model.get_submodule(self._reader_name)
        self._tables = {space.site(name): rows for name, rows in block.rows().items()}
        self._projections = {site.module: model.get_submodule(site.module) for site in self._tables}
        self._probed = (ids.shape[0], ids.shape[1])
        self._code = codes(len(self._columns))
        rows = 1 + len(self._tables) * len(self._code)
        # tokens do not meet in an MLP, so each can be a row of its own
        self._batch, self._length = (-(-rows // ids.shape[1]), 1) if self._unit == "neuron" else (rows, ids.shape[1])

    def fault(self) -> str | None:
        """Why the block is none, or None."""
        unit, around = self._unit, self._around
        if around not in self._calls.arguments or not self._projections.keys() <= self._calls.outputs.keys():
            return f"a probe of the model did not run {around}, so nothing shows what its {unit}s are"
        try:
            read = self._read()
        except Exception as error:  # whatever a module raises that was called in another way than it is meant to be
            return f"{around} cannot be run by itself ({brief(error)}), so nothing shows what its {unit}s are"
        sites, trials = len(self._tables), len(self._code)
        change = (read[1 : 1 + sites * trials] - read[:1]).abs().amax(1).view(sites, trials, -1).cpu()
        rounding = ROUNDING * torch.finfo(read.dtype).eps * read.abs().amax().cpu()
        own = torch.empty(trials, self._columns.numel(), dtype=torch.bool)
        own[:, self._columns.flatten()] = self._code.repeat_interleave(self._columns.shape[1], dim=1)
        others = ((change > rounding) & ~own).flatten(1).any(1)
        all_own = ((change > 0) & own).any(1).all(1)
        for site, changes_others, changes_own in zip(self._tables, others.tolist(), all_own.tolist(), strict=True):
            if changes_others:
                return f"in {around}, rows of {site.name} that would be one {unit}'s change what others give"
            if not changes_own:
                return f"in {around}, rows of {site.name} that would be a {unit}'s do not change all that it gives"
        return None

    def _read(self) -> torch.Tensor:
        """What the last linear reads, ``[rows, tokens, columns]``."""
        with contextlib.ExitStack() as stack:
            for name, values in self._values().items():
                stack.enter_context(_giving(self._projections[name], values, name in self._calls.beside))
            before: list[tuple[torch.Tensor, torch.Tensor]] = []
            for norm in self._norms():
                stack.callback(norm.register_forward_hook(partial(_note, before)).remove)
            stack.callback(self._reader.register_forward_pre_hook(partial(_stop, before)).remove)
            args, kwargs = tree_map_only(torch.Tensor, self._for_every_row, self._calls.arguments[self._around])
            try:
                self._module.forward(*args, **kwargs)
            except _Reached as reached:
                read = reached.given
                known = self._calls.outputs
                like = known.get(self._reader_name, known[next(iter(self._projections))])
                read = read.transpose(0, 1) if self._tokens_first(like) else read
                return read.reshape(-1, self._length, self._columns.numel())
        raise ValueError("its last linear is not called")

    def _norms(self) -> Iterator[nn.Module]:
        """The norms of all columns within the module: one before the last linear scales all units alike."""
        for module in self._module.modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.shape == (self._columns.numel(),):
                yield module

    def _values(self) -> dict[str, torch.Tensor]:
        """What each projection gives."""
        generator = torch.Generator().manual_seed(0)
        result = {}
        for module in self._projections:
            like = self._calls.outputs[module]
            width, length, tokens = like.shape[-1], self._length, self._probed[1]
            if self._unit == "head" and like.dim() == 3 and self._probed[0] in like.shape[:2]:
                length = tokens = like.shape[1 - self._tokens_first(like)]  # where attention reads another text
            usual, other = torch.randn(2, length, width, generator=generator)
            if self._unit == "neuron":  # positive, which no activation drops, and apart in any type
                usual = 0.25 + usual.abs().clamp(max=1)
                other = usual + 0.5
            for site, rows in self._tables.items():
                if self._unit == "head" and site.module == module and rows.shape[1] > 1:
                    outputs = site.outputs(rows)  # of the same values in another order, a norm of all heads is the same
                    other[:, outputs.roll(1, 1)] = usual[:, outputs]
            changed = torch.zeros(self._batch * tokens // length, width, dtype=torch.bool)
            for number, (site, rows) in enumerate(self._tables.items()):
                if site.module == module:
                    first = 1 + number * len(self._code)
                    outputs = site.outputs(rows)
                    changed[first : first + len(self._code), outputs.flatten()] = self._code.repeat_interleave(
                        outputs.shape[1], dim=1
                    )
            values = torch.where(changed[:, None], other, usual).view(self._batch, tokens, width)
            if like.dim() == 2:
                values = values.flatten(0, 1)
            elif self._tokens_first(like):
                values = values.transpose(0, 1).contiguous()
            result[module] = values.to(like)
        return result

    def _tokens_first(self, given: torch.Tensor) -> bool:
        """Whether a tensor is ``[tokens, batch, …]``."""
        return given.dim() > 1 and given.shape[1] == self._probed[0] != len(given)

    def _for_every_row(self, given: torch.Tensor) -> torch.Tensor:
        """An argument with what it has for the first row of the probe, and in an MLP for the first token, in each."""
        batch, length = self._probed
        one = slice(None, 1 if self._length == 1 else length)
        if self._tokens_first(given):
            some = one if len(given) == length else slice(None)
            return given[some, :1].expand(len(given), self._batch, *given.shape[2:])
        if given.shape[:2] == (batch, length):
            return given[:1, one].expand(self._batch, length, *given.shape[2:])
        if given.dim() == 0 or len(given) % batch:
            return given
        if len(given) > batch:  # rows and tokens, or rows and heads, in one dimension
            return self._for_every_row(given.unflatten(0, (batch, -1))).flatten(0, 1)
        return given[:1].expand(self._batch, *given.shape[1:])


@contextlib.contextmanager
def _giving(module: nn.Module, output: torch.Tensor, has_others: bool) -> Iterator[None]:
    """Let a module give this output during the block, without computing anything.

    ``has_others``: it is also called over other rows, such as relative positions, and computes what it gives for them.
    """
    own, computed = vars(module).get("forward"), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if has_others and args[0].shape[:-1] != output.shape[:-1]:
            return computed(*args, **kwargs)
        return output.clone()

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _note(before: list[tuple[torch.Tensor, torch.Tensor]], _: nn.Module, args: Any, output: torch.Tensor) -> None:
    before.append((output, args[0]))


def _stop(before: list[tuple[torch.Tensor, torch.Tensor]], _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    """End the forward with what the last linear is given, or what a norm was that gave it that."""
    given = args[0]
    raise _Reached(next((taken for made, taken in before if made.data_ptr() == given.data_ptr()), given))

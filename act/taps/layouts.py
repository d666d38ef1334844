"""The layout of every site's output, learnt once from a probe, whose batch and length no number of the model shares.

Sizes show what a dimension runs over. Where one dimension runs over several things, its order shows in which rows
another text changes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from act.models.layout import Axis, Layout, sizes_of
from act.models.sites import Site
from act.taps.probe import Recording, other_text, probe, run
from act_kernels.ops import FLOAT_DTYPES

LONGER = 4
"""Times the source of a probe, in another one."""
ROUNDING = 0.02
"""Standard deviations by which another number of rows may change a row, where an op rounds by it."""

OF_SOURCE = 2
"""The row in which the last token of a source is another: in row 0 all of a decoder would change with it."""


@dataclass(frozen=True)
class Unread(Exception):
    """Why the output of a site cannot be read as one row of channels for each token."""

    reason: str


Beside = Mapping[int, Layout]
"""Calls of a site in one forward that are not over tokens, such as over relative positions, with what they return."""


def learn(
    model: nn.Module, sites: Mapping[str, Site], recording: Recording
) -> tuple[dict[str, tuple[Layout, ...] | Unread], dict[str, Beside]]:
    """The layouts of every site that the probe reached, or why it has none; and its calls that are not over tokens."""
    modules = dict(model.named_modules())
    calls = {
        name: [_tried(sites[name], modules[name], recording, output) for output in outputs]
        for name, outputs in recording.outputs.items()
    }
    unsure = {name: each for name, each in calls.items() if not all(map(_is_sure, each)) and any(map(_may_be, each))}
    changes = _changes(model, recording, unsure) if unsure else {}
    learnt: dict[str, tuple[Layout, ...] | Unread] = {}
    beside: dict[str, Beside] = {}
    for name, each in calls.items():
        try:
            over, others = _settled(each, changes[name], recording) if name in unsure else (_known(each), {})
            learnt[name] = _joined(over)
            beside |= {name: others} if others else {}
        except Unread as unread:
            learnt[name] = unread
    alike: dict[str, list[str]] = {}
    for name in sites:
        alike.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    return {name: layouts for names in alike.values() for name, layouts in _shared(names, learnt).items()}, beside


def growing(
    model: nn.Module, learnt: Mapping[str, tuple[Layout, ...] | Unread], beside: Mapping[str, Beside], seen: Recording
) -> dict[str, Unread]:
    """Sites to which a longer source gives more rows otherwise than by token, such as LongT5's one for each block."""
    if seen.source is None:
        return {}
    read = {name: layouts for name, layouts in learnt.items() if not isinstance(layouts, Unread)}
    if all(
        axis and all(isinstance(x, str) for x in axis) for each in read.values() for one in each for axis in one.dims
    ):
        return {}  # every dimension is of texts or of tokens
    longer = probe(model, set(read), {"source": LONGER * seen.source.shape[1]})
    if isinstance(longer, str):
        return {}  # it takes no longer one
    sizes = sizes_of(longer.ids, longer.source)
    found = {}
    for name, outputs in longer.outputs.items():
        calls = (output for call, output in enumerate(outputs) if call not in beside.get(name, {}))
        if any(all(one.lead_of(one.tensor_in(output)) != one.lead(sizes) for one in read[name]) for output in calls):
            found[name] = Unread("a longer text gives it more rows otherwise than by token")
    return found


def _shared(
    names: list[str], learnt: Mapping[str, tuple[Layout, ...] | Unread]
) -> dict[str, tuple[Layout, ...] | Unread]:
    """The layouts of sites that are called the same but for numbers, of which the probe may not have reached all.

    Where it has not, they may be experts, and flat rows those of the tokens that were routed there by chance.
    """
    reached = [learnt[name] for name in names if name in learnt]
    routed = len(reached) < len(names) or any(isinstance(layouts, Unread) for layouts in reached)
    if not reached:
        return dict.fromkeys(names, Unread("no probe reached it"))
    why = next((layouts for layouts in reached if isinstance(layouts, Unread)), Unread("tokens may be routed past it"))
    found = {}
    for name in names:
        layouts = learnt.get(name, reached[0])
        flat = not isinstance(layouts, Unread) and any(len(dim) > 1 for layout in layouts for dim in layout.dims)
        found[name] = why if routed and flat else layouts
    return found


def _tried(site: Site, module: nn.Module, recording: Recording, output: Any) -> set[Layout] | Unread:
    """The candidates for one call, or why there are none."""
    try:
        return _candidates(site, module, recording, output)
    except Unread as unread:
        return unread


def _known(calls: list[set[Layout] | Unread]) -> list[Layout]:
    """The layouts of calls that sizes alone tell.

    Raises:
        Unread: of the first call.
    """
    for call in calls:
        if isinstance(call, Unread):
            raise call
    return [layout for call in calls if not isinstance(call, Unread) for layout in call]


def _may_be(candidates: set[Layout] | Unread) -> bool:
    """Whether a call may have a row for each token."""
    return not isinstance(candidates, Unread)


def _is_sure(candidates: set[Layout] | Unread) -> bool:
    """Whether sizes alone tell the layout."""
    if isinstance(candidates, Unread):
        return False
    (one, *others) = candidates
    return not others and one.columns is None and all(len(dim) < 2 for dim in one.dims) and "batch" in one.axes


def _joined(calls: list[Layout]) -> tuple[Layout, ...] | Unread:
    """The layouts of all calls of one site, as long as the sizes of an output tell them apart in every batch."""
    layouts = tuple(dict.fromkeys(calls))
    texts = [layout.tokens for layout in calls]
    shapes = [_of_one_text(layout) for layout in layouts]
    both = sorted(texts) == ["length", "source"] and shapes == [shapes[0]] * 2
    if not both and not all(_apart(one, other) for one, other in itertools.combinations(layouts, 2)):
        return Unread(f"it runs several times with outputs laid out as {' and '.join(map(str, layouts))}")
    return layouts + tuple(shared for layout in layouts if (shared := layout.shared()))


def _apart(one: Layout, other: Layout) -> bool:
    """Whether no batch has outputs of the same sizes in both layouts: they differ in fixed numbers, such as heads."""
    if one.tokens != other.tokens or (one.columns is None) != (other.columns is None):
        return False
    if len(one.dims) != len(other.dims):
        return True
    named = [[[axis for axis in dim if isinstance(axis, str)] for dim in layout.dims] for layout in (one, other)]
    fixed = [[prod(axis for axis in dim if isinstance(axis, int)) for dim in layout.dims] for layout in (one, other)]
    return named[0] == named[1] and (fixed[0] != fixed[1] or one.columns != other.columns)


def _of_one_text(layout: Layout) -> tuple[Any, ...]:
    return tuple("length" if axis == "source" else isinstance(axis, int) or axis for axis in layout.axes)


def _candidates(site: Site, module: nn.Module, recording: Recording, output: Any) -> set[Layout]:
    """Every layout that the sizes of an output allow.

    Raises:
        Unread: there is none.
    """
    item = None
    if isinstance(output, tuple):
        item = _item(module, recording.inputs.get(site.name), output)
        output = output[item]
    if not isinstance(output, torch.Tensor):
        raise Unread("it returns no tensor")
    if output.dtype not in FLOAT_DTYPES:
        raise Unread(f"it gives {output.dtype}; float32, bfloat16 and float16 can be measured")
    batch, length = recording.ids.shape
    if isinstance(module, nn.Conv1d) or output.shape == (batch, site.width, length):
        return _columns(site, recording, output)
    groups = _groups(site, module, recording, output)
    lead = output.shape[: -1 if groups == 1 else -2]
    dims = [_factors(size, recording) for size in lead]
    axes = [axis for dim in dims for axis in dim]
    if axes.count("length") + axes.count("source") != 1 or axes.count("batch") > 1:
        batch, length = recording.ids.shape
        more = "" if recording.source is None else f" and {batch} x {recording.source.shape[1]} of the source"
        tokens = f"{batch} x {length} tokens{more}"
        raise Unread(f"its output is {list(output.shape)} for {tokens}, not a row for each token")
    orders = itertools.product(*(itertools.permutations(dim) for dim in dims))
    return {Layout(order, groups, item) for order in orders}


def _columns(site: Site, recording: Recording, output: torch.Tensor) -> set[Layout]:
    """The layouts that the output of a convolution over tokens may have: the model cuts off one end.

    Raises:
        Unread: it has another shape.
    """
    batch, length = recording.ids.shape
    if output.dim() != 3 or output.shape[:2] != (batch, site.width) or output.shape[2] < length:
        raise Unread(f"its output is {list(output.shape)} for {batch} x {length} tokens, not a column for each token")
    more = output.shape[2] - length
    dims: tuple[tuple[Axis, ...], ...] = (("batch",), ("length",))
    return {Layout(dims, columns=ends) for ends in ((0, more), (more, 0))}


def _factors(size: int, recording: Recording) -> tuple[Axis, ...]:
    """What a dimension of this size runs over."""
    found: list[Axis] = []
    sizes = sizes_of(recording.ids, recording.source)
    names: tuple[tuple[Axis, int], ...] = (("batch", sizes.batch), ("length", sizes.length), ("source", sizes.source))
    for name, number in names:
        if size and number and size % number == 0:
            found.append(name)
            size //= number
    return (*found, size) if size != 1 else tuple(found)


def _item(module: nn.Module, given: torch.Tensor | None, output: tuple[Any, ...]) -> int:
    """Which item of what a module returns is its channels: routers return their logits beside other things.

    Raises:
        Unread: several may be.
    """
    tensors = {place: item for place, item in enumerate(output) if isinstance(item, torch.Tensor)}
    if len(tensors) == 1:
        return next(iter(tensors))
    for place, item in tensors.items():
        if _is_product(module, given, item):
            return place
    raise Unread(f"it returns {len(output)} values, none of which is known to be its channels")


def _is_product(module: nn.Module, given: torch.Tensor | None, item: torch.Tensor) -> bool:
    """Whether a tensor is the product of a linear for what it was given, or holds rows of an embedding."""
    if isinstance(module, nn.Embedding):
        rows = item.reshape(-1, item.shape[-1])
        return rows.shape[-1] == module.embedding_dim and bool((module.weight == rows[-1]).all(-1).any())
    if not isinstance(module, nn.Linear) or given is None:
        return False
    expected = linear(given, module.weight, module.bias).flatten(0, -2)
    rows = item.flatten(0, -2)
    return rows.shape == expected.shape and torch.allclose(rows, expected, rtol=1e-2, atol=1e-4)


def _groups(site: Site, module: nn.Module, recording: Recording, output: torch.Tensor) -> int:
    """How many groups the channels of an output come in.

    Raises:
        Unread: its last dimensions are not the channels.
    """
    if output.dim() and output.shape[-1] == site.width:
        return 1
    in_two = output.dim() > 1 and output.shape[-2] * output.shape[-1] == site.width
    if in_two and site.name in recording.sites and _rows_in_order(module, recording.sites[site.name].input):
        return output.shape[-2]
    raise Unread(f"its output is {list(output.shape)}, not {site.width} channels wide")


def _rows_in_order(module: nn.Module, given: torch.Tensor) -> bool:
    """Whether channel ``i`` of the flattened last two dimensions is made by row ``i`` of the weight of a linear."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or weight is None:
        return False
    with torch.no_grad():
        before = module.forward(given).flatten(-2)
        for row in {1, len(weight) // 2, len(weight) - 2}:
            changed = weight.detach().clone()
            changed[row] += 1
            after = torch.func.functional_call(module, {"weight": changed}, (given,)).flatten(-2)
            differs = (after != before).flatten(0, -2).any(0).nonzero().flatten().tolist()
            if differs != [row]:
                return False
    return True


def _changes(
    model: nn.Module,
    recording: Recording,
    candidates: Mapping[str, list[set[Layout] | Unread]],
) -> dict[str, list[torch.Tensor | None]]:
    """How much another text changes each row of each output, call by call (see :func:`_change`)."""
    texts = other_text(recording.ids), None if recording.source is None else other_text(recording.source, OF_SOURCE)
    found: dict[str, list[torch.Tensor | None]] = {name: [] for name in candidates}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            call = len(found[name])
            if call < len(recording.outputs[name]):
                known, before, after = candidates[name][call], recording.outputs[name][call], output
                if not isinstance(known, Unread):
                    layout = next(iter(known))  # all of one call read the same tensor
                    before, after = layout.tensor_in(before), layout.tensor_in(after)
                    if layout.columns is not None:
                        before, after = before.transpose(-1, -2), after.transpose(-1, -2)
                found[name].append(_change(before, after) if isinstance(before, torch.Tensor) else None)
            else:
                found[name].append(None)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in candidates]
    try:
        run(model, *texts, recording.masked)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor | None:
    """The largest change in each row, in standard deviations of its channel over all rows; None: other shapes."""
    if before.shape != after.shape:
        return None
    wide = before.double()
    if not wide.numel():
        return wide.sum(-1)
    spread = wide.reshape(-1, wide.shape[-1]).std(0, correction=0).clamp(min=torch.finfo(torch.float64).tiny)
    return ((after.double() - wide).abs() / spread).amax(-1)


def _settled(
    calls: list[set[Layout] | Unread], changes: list[torch.Tensor | None], recording: Recording
) -> tuple[list[Layout], Beside]:
    """The one layout of each call that agrees with the rows that another text changed; and the calls beside these.

    A call is beside others that depend on the text if it is not over tokens itself.

    Raises:
        Unread: of some call, nothing shows what its rows are; or none is over tokens.
    """
    if len(calls) != len(changes):
        raise Unread("it runs more often for one text than for another")
    over: dict[int, Layout] = {}
    beside: dict[int, Layout] = {}
    whys: list[Unread] = []
    for call, (candidates, change) in enumerate(zip(calls, changes, strict=True)):
        if isinstance(candidates, Unread):
            beside[call] = _of_no_tokens(candidates, change, recording)
            whys.append(candidates)
            continue
        fitting = set() if change is None else {one for one in candidates if _agrees(one, change, recording)}
        if len(fitting) == 1:
            (over[call],) = fitting
            continue
        whys.append(Unread(_why_none(fitting, change)))
        if change is None or change.any():
            raise whys[-1]
        beside[call] = next(iter(candidates))
    if any("batch" in layout.axes for layout in over.values()):
        beside |= {call: layout for call, layout in over.items() if "batch" not in layout.axes}  # such as of positions
    elif whys:
        raise whys[0]
    return [layout for call, layout in over.items() if call not in beside], beside


def _why_none(fitting: set[Layout], change: torch.Tensor | None) -> str:
    if change is not None and not change.any():
        return f"no text changes its {change.numel()} rows, which are of positions or distances and not of tokens"
    if not fitting:
        return "which row belongs to which token depends on the text"
    return f"its rows may be laid out as {' or '.join(sorted(map(str, fitting)))}"


def _of_no_tokens(why: Unread, change: torch.Tensor | None, recording: Recording) -> Layout:
    """The layout of a call that is not over tokens: no text changes it, or it has one row for each text.

    Raises:
        Unread: it may be over some of the tokens.
    """
    batch = len(recording.ids)
    if change is None or (change.any() and tuple(change.shape) not in ((batch,), (batch, 1))):
        raise why
    return Layout(tuple(_factors(size, recording) for size in change.shape))


def _agrees(layout: Layout, change: torch.Tensor, recording: Recording) -> bool:
    """Whether a layout puts the changed rows where tokens changed, and perhaps at the tokens that see these."""
    sizes = sizes_of(recording.ids, recording.source)
    if layout.groups > 1:
        change = change.amax(-1)
    if "batch" not in layout.axes:
        return not change.any()
    one_channel = change[..., None] if layout.columns is None else change[..., None, :]
    by_token = layout.rows(one_channel, sizes).view(sizes.batch, sizes.of(layout.tokens), -1).amax(-1)
    own = OF_SOURCE if layout.tokens == "source" else 0
    expected = torch.zeros_like(by_token, dtype=torch.bool)
    expected[own, -1] = expected[1] = True
    for moved in (by_token > least for least in (0, ROUNDING)):
        if layout.columns == (0, 0) and bool((moved[own].int().diff() >= 0).all()):
            expected[own] |= moved[own]  # nothing is cut off; tokens near the changed one may see it
        seeing = {own, OF_SOURCE} if sizes.source else {own}
        whole = torch.tensor([row in seeing and bool(moved[row].all()) for row in range(sizes.batch)])
        if torch.equal(moved, expected | whole.to(moved.device)[:, None]):
            return True
    return False

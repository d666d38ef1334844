"""Which outputs have a row for each patch of each image, learnt from a probe with images.

A tower may pad, merge, reorder or window its patches, which no shape shows. But all patches count, so their order does
not matter: a site can be read if what it gives for two images in a batch are the rows that it gives for each alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isqrt, prod
from typing import Any

import torch
from torch import nn

from act.models.calls import without_cache
from act.models.layout import OF_PATCHES, Layout
from act.models.modes import evaluating
from act.models.sites import Site
from act.taps.layouts import Unread

ROUNDING = 0.02
"""Standard deviations by which a mean may differ where an op rounds by the number of rows."""

Inputs = Mapping[str, torch.Tensor]
Samples = Sequence[Inputs]


def learn_patches(
    model: nn.Module, sites: Mapping[str, Site], samples: Samples
) -> dict[str, tuple[Layout, ...] | Unread]:
    """The layouts of those sites that images reach, or why they have none.

    Args:
        model: the model.
        sites: by name, those that no text reached.
        samples: the inputs for one image, for another, and for both in a batch.
    """
    one, other, both = (_outputs(model, sites, inputs) for inputs in samples)
    found: dict[str, tuple[Layout, ...] | Unread] = {}
    for name in both:
        calls = [one.get(name, []), other.get(name, []), both[name]]
        found[name] = _learnt(sites[name].width, calls, samples)
    return found


def number_of_images(inputs: Inputs) -> int:
    """How many images a model is given, if it is given them one by one."""
    pixels = inputs.get("pixel_values")
    return len(pixels) if pixels is not None and pixels.dim() == 4 else 1


def counted(rows: int, inputs: Inputs) -> torch.Tensor | None:
    """Which rows are of a patch with at least one pixel that is no padding, bool ``[rows]``; None: all.

    Raises:
        Unread: there is padding, and the patches do not show where.
    """
    mask = inputs.get("pixel_attention_mask")
    if mask is None or bool(mask.all()):
        return None
    mask = mask.bool()
    if mask.numel() == rows:
        return mask.flatten()
    if mask.dim() == 2 and rows == int(mask.sum()):  # a value for each patch, and padding is left out
        return None
    if mask.dim() >= 3:
        real = mask.flatten(0, -3)
        real = real[real.flatten(1).any(1)]  # images that are nothing but padding are left out by the model
        each, rest = divmod(rows, len(real))
        size = isqrt(real[0].numel() // each) if each else 0
        if not rest and size and prod(length // size for length in real.shape[1:]) == each:
            return real.unfold(1, size, size).unfold(2, size, size).flatten(3).any(-1).flatten()
    raise Unread(f"it has {rows} rows for images with padding, and which of them are padding is not known")


def _outputs(model: nn.Module, names: Iterable[str], inputs: Inputs) -> dict[str, list[Any]]:
    """What each module gave, call by call."""
    found: dict[str, list[Any]] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.setdefault(name, []).append(_detached(output))
        )
        for name in names
    ]
    try:
        with evaluating(model), torch.inference_mode(False), torch.no_grad():
            model(**inputs, **without_cache(model))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _detached(output: Any) -> Any:
    return output.detach().clone() if isinstance(output, torch.Tensor) else None


def _learnt(width: int, calls: Sequence[list[Any]], samples: Samples) -> tuple[Layout, ...] | Unread:
    if not all(isinstance(output, torch.Tensor) for outputs in calls for output in outputs):
        return Unread("it returns no tensor")
    if not all(calls):
        return Unread("only some images reach it")
    shapes = {tuple(output.shape) for outputs in calls for output in outputs}
    reason = f"it gives {' and '.join(map(str, map(list, sorted(shapes)[:2])))}, not {width} channels for each patch"
    for layout in OF_PATCHES:
        dim = -1 if layout.columns is None else 1
        if any(len(shape) < 2 or shape[dim] != width for shape in shapes):
            continue
        if 1 in layout.axes and not all(shape[0] == 1 for shape in shapes):
            continue
        try:
            one, other, both = (_rows(layout, outputs, inputs) for outputs, inputs in zip(calls, samples, strict=True))
        except Unread as unread:
            reason = unread.reason
            continue
        if len(one) < 2:
            return Unread("it has a row for each image, not for each patch")
        if _same(torch.cat([one, other]), both):
            return (layout,)
        reason = "what it gives for an image depends on the images beside it, such as by their padding"
    return Unread(reason)


def _rows(layout: Layout, outputs: list[torch.Tensor], inputs: Inputs) -> torch.Tensor:
    """The rows of all calls that count."""
    found = []
    for output in outputs:
        rows = layout.patches(output, number_of_images(inputs))
        mask = counted(len(rows), inputs)
        found.append(rows if mask is None else rows[mask])
    return torch.cat(found)


def _same(apart: torch.Tensor, together: torch.Tensor) -> bool:
    """Whether both are the same rows in any order, as far as their moments tell."""
    if len(apart) != len(together):
        return False
    rounding = 16 * torch.finfo(apart.dtype).eps
    apart, together = apart.double(), together.double()
    spread = apart.std(0, correction=0)
    allowed = ROUNDING * spread + rounding * apart.square().mean(0).sqrt()
    changes = (apart.mean(0) - together.mean(0)).abs(), (spread - together.std(0, correction=0)).abs()
    return all(bool((change <= allowed).all()) for change in changes)

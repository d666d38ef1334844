"""Which outputs have a row for each patch of each image, learnt from a probe with images.

A tower may pad, merge, reorder or window its patches, which no shape shows. But all patches count, so their order does
not matter: a site can be read if what it gives for two images together are the rows that it gives for each alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt, prod
from typing import Any

import torch
from torch import nn

from act.core.errors import ActError, brief
from act.models.calls import without_cache
from act.models.layout import OF_PATCHES, Layout
from act.models.modes import evaluating
from act.models.sites import Site
from act.taps.layouts import Unread
from act.taps.patch_products import Products, is_matrix

ROUNDING = 0.02
"""Standard deviations by which a mean may differ where an op rounds by the number of rows."""

_MASKS = ("attention_mask", "cross_attention_mask", "pixel_attention_mask")
Inputs = Mapping[str, torch.Tensor]
Samples = Sequence[Inputs]


def learn_patches(
    model: nn.Module, sites: Mapping[str, Site], samples: Samples
) -> dict[str, tuple[Layout, ...] | Unread]:
    """The layouts of those sites that images reach, or why they have none.

    Args:
        model: the model.
        sites: by name, those that no text reached.
        samples: the inputs for one image, for another, and for both.

    Raises:
        ActError: the model does not run on what its processor gives.
    """
    one, other, both = (_summed(model, sites, inputs) for inputs in samples)
    return {name: _learnt([seen.get(name, {}) for seen in (one, other, both)]) for name in both}


def number_of_images(inputs: Inputs) -> int:
    """How many images a model is given, if it is given them one by one."""
    pixels = inputs.get("pixel_values")
    return len(pixels) if pixels is not None and pixels.dim() == 4 else 1


def counted(rows: int, inputs: Inputs) -> torch.Tensor | None:
    """Which rows are of a patch with at least one pixel that is no padding, bool ``[rows]``; None: all.

    Raises:
        Unread: there is padding, and the patches do not show where.
    """
    unknown = (name for name, x in inputs.items() if name.endswith("_mask") and name not in _MASKS and not x.all())
    if name := next(unknown, None):
        raise Unread(f"{name} marks some of its rows as padding, and which of them is not known")
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


@dataclass
class _Rows:
    """The rows that a site gave for some images: their number, and sums over them in float64, ``[C]``."""

    number: int
    total: torch.Tensor
    squares: torch.Tensor
    rounding: float

    @classmethod
    def of(cls, rows: torch.Tensor) -> _Rows:
        wide = rows.double()
        return cls(len(rows), wide.sum(0), wide.square().sum(0), 16 * torch.finfo(rows.dtype).eps)

    def __add__(self, other: _Rows) -> _Rows:
        more = (self.number + other.number, self.total + other.total, self.squares + other.squares)
        return _Rows(*more, max(self.rounding, other.rounding))

    def same(self, other: _Rows) -> bool:
        """Whether both are the same rows in any order, as far as these sums tell."""
        if self.number != other.number:
            return False
        mine, theirs = self._deviation(), other._deviation()
        allowed = ROUNDING * mine + self.rounding * (self.squares / self.number).sqrt()
        changes = (self.total - other.total).abs() / self.number, (mine - theirs).abs()
        return all(bool((change <= allowed).all()) for change in changes)

    def _deviation(self) -> torch.Tensor:
        mean = self.total / self.number
        return (self.squares / self.number - mean.square()).clamp(min=0).sqrt()


Seen = dict[Layout, "_Rows | Unread"]


def _summed(model: nn.Module, sites: Mapping[str, Site], inputs: Inputs) -> dict[str, Seen]:
    """What each site gave, by what its layout may be; outputs are not kept, for a tower makes gigabytes of them."""
    found: dict[str, Seen] = {}

    def note(name: str, module: nn.Module | None, args: Any, output: Any) -> None:
        seen = found.setdefault(name, {})
        for layout in OF_PATCHES:
            if layout.columns is None and isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                continue
            try:
                rows = _Rows.of(_rows(layout, sites[name].width, output, inputs))
            except Unread as unread:
                seen[layout] = unread
            else:
                before = seen.get(layout)
                seen[layout] = before if isinstance(before, Unread) else rows if before is None else before + rows

    products = Products(model, [name for name, site in sites.items() if is_matrix(site)])
    modules = [name for name, site in sites.items() if not is_matrix(site)]
    handles = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in modules]
    try:
        with evaluating(model), torch.inference_mode(False), torch.no_grad(), products:
            model(**inputs, **without_cache(model))
    except Exception as error:  # the code of a model raises anything
        raise ActError(
            f"{type(model).__name__} does not run on the images that its processor makes ({brief(error)}); give the "
            "processor of this model"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    for name, product, _ in products.found:
        note(name, None, (), product)
    return found


def _rows(layout: Layout, width: int, output: Any, inputs: Inputs) -> torch.Tensor:
    """The rows of an output that count, ``[R, C]``.

    Raises:
        Unread: it has not this layout.
    """
    if not isinstance(output, torch.Tensor):
        raise Unread("it returns no tensor")
    fits = output.dim() > 1 and output.shape[-1 if layout.columns is None else 1] == width
    if not fits or (1 in layout.axes and not (output.dim() > 2 and len(output) == 1)):
        raise Unread(f"its output is {list(output.shape)} for images, not {width} channels for each patch")
    rows = layout.patches(output.detach(), number_of_images(inputs))
    mask = counted(len(rows), inputs)
    return rows if mask is None else rows[mask.to(rows.device)]


def _learnt(seen: Sequence[Seen]) -> tuple[Layout, ...] | Unread:
    """The layout in which what a site gives for two images together is what it gives for each."""
    reasons: list[Unread] = []
    for layout in OF_PATCHES:
        one, other, both = (each.get(layout, Unread("only some images reach it")) for each in seen)
        if isinstance(both, Unread) or isinstance(one, Unread) or isinstance(other, Unread):
            reasons += [each for each in (both, one, other) if isinstance(each, Unread)][:1]
        elif one.number < 2:
            return Unread("it has a row for each image, not for each patch")
        elif (one + other).same(both):
            return (layout,)
        else:
            reasons.insert(0, Unread("what it gives for an image depends on those beside it, such as by padding"))
    return reasons[0]

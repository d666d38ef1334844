"""Taps: they feed the output of every site to the kernels while the model runs, and leave the model as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from act.channels import ChannelSpace, Site
from act.errors import ActError
from act.moments import Moments
from act_kernels import column_moments

Reader = Callable[[Site, torch.Tensor, torch.Tensor], None]
"""Called with a site, its output as rows ``[R, C]``, and the bool mask ``[R]`` of the rows that count."""


@contextlib.contextmanager
def taps(model: nn.Module, moments: Moments) -> Iterator[Taps]:
    """Accumulate every site of ``model`` into ``moments`` during the block.

    Call ``start(count_mask)`` on the yielded :class:`Taps` before each forward. Outputs are only read, so the model
    computes what it would compute without taps; hooks are removed when the block ends, also by an exception.
    """

    def read(site: Site, rows: torch.Tensor, mask: torch.Tensor) -> None:
        column_moments(rows, moments.block(site.name), mask)

    tapped = Taps(model, moments.space, read)
    try:
        yield tapped
    finally:
        tapped.remove()


class Taps:
    """Forward hooks on every site of a model, in the order in which the model computes them."""

    def __init__(self, model: nn.Module, space: ChannelSpace, read: Reader) -> None:
        if hasattr(model, "_orig_mod"):
            raise ActError(
                "the model was compiled by torch.compile, which ignores hooks; pass the model from before compiling"
            )
        self._count_mask: torch.Tensor | None = None
        self._read = read
        self._masks: dict[tuple[torch.device, int], torch.Tensor] = {}
        modules = dict(model.named_modules())
        self._handles = [modules[site.name].register_forward_hook(self._hook(site)) for site in space]

    def remove(self) -> None:
        """Take all hooks away; calling it again does nothing."""
        while self._handles:
            self._handles.pop().remove()

    def start(self, count_mask: torch.Tensor) -> None:
        """Announce the next forward: bool ``[batch, length]``, True where a token counts."""
        self._count_mask = count_mask
        self._masks.clear()

    def _hook(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            if self._count_mask is None:
                raise RuntimeError("call start(count_mask) before the forward")
            rows, heads = as_rows(output.detach(), self._count_mask.shape, site)
            self._read(site, rows, self._mask(rows.device, heads))

        return hook

    def _mask(self, device: torch.device, heads: int) -> torch.Tensor:
        key = (device, heads)
        if key not in self._masks:
            assert self._count_mask is not None
            self._masks[key] = self._count_mask.to(device).reshape(-1).repeat_interleave(heads)
        return self._masks[key]


def as_rows(output: torch.Tensor, tokens: torch.Size, site: Site) -> tuple[torch.Tensor, int]:
    """The output of a site as ``[batch * length * heads, C]`` rows, tokens first, and the rows per token.

    Takes ``[batch, length, C]``; ``[batch * length, C]``; ``[batch, length, heads, C]`` and, from norms that run after
    the heads were moved forward, ``[batch, heads, length, C]``; and one row of positions ``[1, length, C]``.

    Raises:
        ActError: any other shape.
    """
    batch, length = tokens
    lead = output.shape[:-1]
    if lead == (batch, length) or lead == (batch * length,):
        return output.reshape(-1, output.shape[-1]), 1
    if lead in ((length,), (1, length)):
        return output.expand(batch, length, -1).reshape(-1, output.shape[-1]), 1
    if len(lead) == 3 and lead[0] == batch:
        if lead[1] == length and not (lead[2] == length and _heads_lead(output)):
            return output.reshape(-1, output.shape[-1]), lead[2]
        if lead[2] == length:
            return output.transpose(1, 2).reshape(-1, output.shape[-1]), lead[1]
    raise ActError(
        f"site {site.name} gave an output of shape {list(output.shape)} for {batch} x {length} tokens; expected "
        "[batch, length, channels], or with a dimension of heads; leave this module out or report the architecture"
    )


def _heads_lead(output: torch.Tensor) -> bool:
    # With as many heads as tokens the shape is ambiguous; heads moved forward keep their memory next to each other.
    return output.stride(1) < output.stride(2)

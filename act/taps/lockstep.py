"""Pair runs: donor and target advance together, site by site, on the same tokens.

Each model runs in a greenlet. The first to reach a site waits there with its output; the other computes its own, feeds
both to ``pair_moments`` and goes on. No activation outlives its site, whatever the number of tokens or layers.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from act.core.errors import ActError
from act.models.channels import ChannelSpace
from act.models.placement import input_device
from act.models.sites import Site
from act.profiles.moments import Moments
from act.taps.sink import ReaderSink
from act.taps.tapped import Taps
from act_kernels import pair_moments

if TYPE_CHECKING:
    from greenlet import greenlet


class Lockstep:
    """Both models with their taps; use as ``with lockstep(...) as run: run.forward(batch, count_mask)``."""

    def __init__(
        self,
        donor: nn.Module,
        target: nn.Module,
        moments: Moments,
        *,
        fused: bool = True,
        exclude: Iterable[str] = (),
    ) -> None:
        shared = {module for module in donor.modules() if any(True for _ in module.parameters(recurse=False))}
        both = next((name for name, module in target.named_modules() if module in shared), None)
        if both is not None:
            raise ActError(
                f"donor and target are one model, or share the module {both!r}, whose tokens would count twice; "
                "load the donor and the target as two models, or profile one model with act.profile"
            )
        for one, other in zip(donor.parameters(), target.parameters(), strict=False):
            if one.dtype != other.dtype:
                raise ActError(f"the donor is {one.dtype}, the target {other.dtype}; load both in one type (--dtype)")
        self._models = {"donor": donor, "target": target}
        self._devices = {side: input_device(model) for side, model in self._models.items()}
        self.moments = moments
        self._greenlets: dict[str, greenlet] = {}
        self._waiting: tuple[str, Site, torch.Tensor] | None = None
        self._taps: dict[str, Taps] = {}
        try:
            for side, model in self._models.items():
                sink = ReaderSink(partial(self._meet, side))
                self._taps[side] = Taps(model, moments.space, sink, fused=fused, exclude=exclude)
        except BaseException:
            self.remove()
            raise

    @property
    def space(self) -> ChannelSpace:
        """The channel space, with what a probe of the donor has shown."""
        return self._taps["donor"].space

    @property
    def unread(self) -> dict[str, str]:
        """Why sites that should be measured are not, by name."""
        return self._taps["donor"].unread

    @property
    def paths(self) -> dict[str, str]:
        """The op by which each site was last read: in a pair run, fused kernels compute but do not measure."""
        return dict.fromkeys(self._taps["donor"].paths, "pair_moments")

    def remove(self) -> None:
        """Take all hooks away."""
        for taps in self._taps.values():
            taps.remove()

    def forward(self, inputs: Mapping[str, torch.Tensor], count_mask: torch.Tensor) -> None:
        """One forward of both models on the same ``inputs``; counted rows are added to the moments.

        Raises:
            ActError: the models do not reach the same sites in the same order.
        """
        from greenlet import GreenletExit, getcurrent, greenlet  # optional: runs of single models do not need it

        self._waiting = None
        parent = getcurrent()
        for side, taps in self._taps.items():
            there = {name: tensor.to(self._devices[side]) for name, tensor in inputs.items()}
            self._greenlets[side] = greenlet(partial(taps.forward, there, count_mask), parent)
            self._greenlets[side].gr_context = contextvars.copy_context()
        try:
            # The model that finishes first returns here; the other may still have to finish its forward.
            for side in ("donor", "target"):
                while not self._greenlets[side].dead:
                    self._greenlets[side].switch()
                    if self._waiting and any(run.dead for run in self._greenlets.values()):
                        raise ActError(f"only one model reached site {self._waiting[1].name}: their forwards differ")
        finally:
            for run in self._greenlets.values():
                if not run.dead:
                    run.throw(GreenletExit)
            self._greenlets.clear()
            self._waiting = None

    def _meet(self, side: str, site: Site, rows: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Wait at a site for the other model; the second to arrive feeds both outputs to the kernel."""
        if self._waiting is None:
            self._waiting = (side, site, rows)
            self._greenlets["target" if side == "donor" else "donor"].switch()
            return
        _, expected, waiting_rows = self._waiting
        if expected.name != site.name:
            raise ActError(f"donor and target disagree on the order of sites: {expected.name} against {site.name}")
        self._waiting = None
        donor, target = (rows, waiting_rows) if side == "donor" else (waiting_rows, rows)
        if donor.shape != target.shape:
            raise ActError(
                f"site {site.name} gave {list(donor.shape)} in the donor and {list(target.shape)} in the target"
            )
        mask = None if mask is None else mask.to(donor.device)
        pair_moments(donor, target.to(donor.device), self.moments.block(site.name), mask)


@contextlib.contextmanager
def lockstep(
    donor: nn.Module, target: nn.Module, moments: Moments, *, fused: bool = True, exclude: Iterable[str] = ()
) -> Iterator[Lockstep]:
    """A :class:`Lockstep` over the block; both models are restored when it ends, even by an exception."""
    run = Lockstep(donor, target, moments, fused=fused, exclude=exclude)
    try:
        yield run
    finally:
        run.remove()

"""Pair runs: donor and target advance together, site by site, on the same tokens.

Each model runs in a greenlet. The first to reach a site waits there with its output; the other computes its own, feeds
both to ``pair_moments`` and goes on. No activation outlives its site, whatever the number of tokens or layers. Where
outputs are swapped, the target brings along what the donor's module gives on its own input.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from act.core.errors import ActError, option
from act.models.channels import ChannelSpace
from act.models.placement import input_device
from act.models.prefix import Prefix
from act.models.sites import Site
from act.models.views import language_view
from act.profiles.moments import Moments
from act.profiles.statistics import DIFFERENCE, DONOR, PRODUCT, SWAP, TARGET
from act.taps.holders import Bank
from act.taps.routed import RoutedRows
from act.taps.sink import ReaderSink
from act.taps.swap import Swap
from act.taps.tapped import TapOptions, Taps
from act_kernels import PAIR, pair_moments, segment_moments

if TYPE_CHECKING:
    from greenlet import greenlet
    from typing_extensions import Unpack


T = TypeVar("T")


class Lockstep:
    """Both models with their taps; use as ``with lockstep(...) as run: run.forward(batch, count_mask)``.

    Outputs are swapped if the ``moments`` have blocks for that.
    """

    def __init__(
        self,
        donor: nn.Module,
        target: nn.Module,
        moments: Moments,
        **options: Unpack[TapOptions],
    ) -> None:
        shared = {module for module in donor.modules() if any(True for _ in module.parameters(recurse=False))}
        both = next((name for name, module in target.named_modules() if module in shared), None)
        if both is not None:
            raise ActError(
                f"donor and target are one model, or share the module {both!r}, whose tokens would count twice; "
                "load the donor and the target as two models, or profile one model with act.profile"
            )
        others = dict(target.named_parameters())
        for name, one in donor.named_parameters():
            other = others.get(name, one)
            if one.dtype != other.dtype:
                asked = option("--dtype", "dtype")
                raise ActError(f"the donor is {one.dtype}, the target {other.dtype}; load both in one type ({asked})")
        swap = Swap(language_view(donor), language_view(target)) if moments.swap else None
        self._models = {"donor": donor, "target": target}
        self._devices = {side: input_device(model) for side, model in self._models.items()}
        self.moments = moments
        self._greenlets: dict[str, greenlet] = {}
        self._waiting: tuple[str, str, Any] | None = None
        self._modes = 0  # of torch functions, that are none of a model's
        self._taps: dict[str, Taps] = {}
        try:
            for side, model in self._models.items():
                sink = ReaderSink(partial(self._meet, side), partial(self._meet_bank, side))
                images = options.get("images", ())
                shown = [{name: x.to(self._devices[side]) for name, x in inputs.items()} for inputs in images]
                its_options: TapOptions = {**options, "images": shown}
                self._taps[side] = Taps(
                    model, moments.space, sink, swap=swap if side == "target" else None, **its_options
                )
                if swap is not None and side == "donor":
                    swap.norms = self._taps[side].norms
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
    def unswapped(self) -> dict[str, str]:
        """Why measured sites have no swapped output, by name, as far as that is known."""
        return dict(self._taps["target"].unswapped)

    @property
    def paths(self) -> dict[str, str]:
        """The op by which each site was last read: in a pair run, fused kernels compute but do not measure."""
        read = self._taps["donor"].paths
        return {name: path if path == "segment_moments" else "pair_moments" for name, path in read.items()}

    def remove(self) -> None:
        """Take all hooks away."""
        for taps in self._taps.values():
            taps.remove()

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        count_mask: torch.Tensor,
        source_mask: torch.Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        """One forward of both models on the same ``inputs``; counted rows are added to the moments.

        ``prefix``, of the donor and the target, stands before every row (see :mod:`act.models.prefix`).

        Raises:
            ActError: the models do not reach the same sites in the same order.
        """
        from greenlet import GreenletExit, getcurrent, greenlet  # optional: runs of single models do not need it

        self._waiting = None
        self._modes = torch._C._len_torch_function_stack()
        parent = getcurrent()
        for number, (side, taps) in enumerate(self._taps.items()):
            there = {name: tensor.to(self._devices[side]) for name, tensor in inputs.items()}
            its_prefix = None if prefix is None else prefix.of(number)
            forward = partial(taps.forward, there, count_mask, source_mask, its_prefix)
            self._greenlets[side] = greenlet(forward, parent)
            self._greenlets[side].gr_context = contextvars.copy_context()
        try:
            with _no_questions_to_an_absent_gpu():
                # The model that finishes first returns here; the other may still have to finish its forward.
                for side in ("donor", "target"):
                    while not self._greenlets[side].dead:
                        self._greenlets[side].switch()
                        if self._waiting and any(run.dead for run in self._greenlets.values()):
                            raise ActError(f"only one model reached site {self._waiting[1]}: their forwards differ")
        finally:
            for run in self._greenlets.values():
                if not run.dead:
                    run.throw(GreenletExit)
            self._greenlets.clear()
            self._waiting = None

    def _meet(
        self, side: str, site: Site, rows: torch.Tensor, mask: torch.Tensor | None, swapped: torch.Tensor | None
    ) -> None:
        """Feed the outputs of both models to the kernel, as the second of them arrives."""
        both = self._both(side, site.name, (rows, swapped))
        if both is None:
            return
        (donor, _), (target, swapped) = both
        for other, where in ((target, "in the target"), (swapped, "in the donor on the input of the target")):
            if other is not None and donor.shape != other.shape:
                raise ActError(
                    f"site {site.name} gave {list(donor.shape)} in the donor and {list(other.shape)} {where}"
                )
        mask = None if mask is None else mask.to(donor.device)
        block, target = self.moments.block(site.name), target.to(donor.device)
        if swapped is None:
            pair_moments(donor, target, block[: len(PAIR)], mask)
        else:
            pair_moments(donor, target, block, mask, swapped.to(donor.device))

    def _meet_bank(self, side: str, bank: Bank, given: RoutedRows, mask: torch.Tensor | None) -> None:
        """The same for experts: each side has moments of its own, and the difference those of tokens that met both.

        The target's own tokens are those of the swap.
        """
        both = self._both(side, bank.name, (given, mask))
        if both is None:
            return
        moments = self.moments.segments(bank.sites)
        (donor, donor_mask), (target, target_mask) = both
        target = target.to(donor.rows.device)
        for block, one, its_mask in ((moments[DONOR], donor, donor_mask), (moments[TARGET], target, target_mask)):
            segment_moments(one.rows, block, one.offsets, None if its_mask is None else its_mask.to(one.rows.device))
        mine, theirs, offsets = donor.where_both(target)
        difference = donor.rows[mine].float() - target.rows[theirs].float()
        counted = None if donor_mask is None else donor_mask.to(donor.rows.device)[mine]
        segment_moments(difference, moments[DIFFERENCE], offsets, counted)
        if target.swapped is not None:
            swap = target.swapped.float() - target.rows.float()
            its_mask = None if target_mask is None else target_mask.to(swap.device)
            segment_moments(swap, moments[SWAP], target.offsets, its_mask)
            segment_moments(swap[theirs] * difference, moments[PRODUCT], offsets, counted)

    def _both(self, side: str, name: str, given: T) -> tuple[T, T] | None:
        """What donor and target gave at a place; None for the first to arrive, which waits for the other there."""
        if self._waiting is None:
            self._waiting = (side, name, given)
            with _modes_set_aside(self._modes):
                self._greenlets["target" if side == "donor" else "donor"].switch()
            return None
        _, expected, waiting = self._waiting
        if expected != name:
            raise ActError(f"donor and target disagree on the order of sites: {expected} against {name}")
        self._waiting = None
        return (given, waiting) if side == "donor" else (waiting, given)


@contextlib.contextmanager
def _modes_set_aside(kept: int) -> Iterator[None]:
    """Take the modes of torch functions off their stack over the block, but for the first ``kept``.

    Greenlets share that stack, and each must find its own modes on top.
    """
    aside = []
    while torch._C._len_torch_function_stack() > kept:
        aside.append(torch._C._pop_torch_function_stack())
    try:
        yield
    finally:
        for mode in reversed(aside):
            torch._C._push_on_torch_function_stack(mode)


@contextlib.contextmanager
def lockstep(
    donor: nn.Module, target: nn.Module, moments: Moments, **options: Unpack[TapOptions]
) -> Iterator[Lockstep]:
    """A :class:`Lockstep` over the block; both models are restored when it ends, even by an exception."""
    run = Lockstep(donor, target, moments, **options)
    try:
        yield run
    finally:
        run.remove()


@contextlib.contextmanager
def _no_questions_to_an_absent_gpu() -> Iterator[None]:
    """Answer for a CUDA build of PyTorch that nothing is captured where there is no GPU.

    transformers asks while it makes a mask, and PyTorch would raise an error, whose C++ backtrace runs past the stack
    of a greenlet and crashes.
    """
    if torch.cuda.is_available():
        yield
        return
    asked = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing = asked

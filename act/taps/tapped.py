"""Taps: hooks that feed the output of every site to the kernels while the model runs, and are removed afterwards.

Most sites ride along: gated MLPs, rotary embedding, and residual sums with their norms run through fused kernels that
accumulate the statistics while they compute (:mod:`act.taps.fusion` says where; each mechanism has a file of its own).
Other sites are read once, by a hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from act.core.errors import ActError
from act.models.calls import cache_argument, without_cache
from act.models.channels import ChannelSpace
from act.models.layout import sizes_of
from act.models.modes import restored
from act.models.prefix import Prefix
from act.models.views import language_view, original
from act.profiles.moments import Moments
from act.taps.attachments import Attachments, Mechanism
from act.taps.attention import Attentions
from act.taps.ending import Ending, behind
from act.taps.fusion import Fusion, recognise
from act.taps.gated_mlp import GatedMlps
from act.taps.head import Head
from act.taps.held import HeldParameters
from act.taps.holders import parameters_of
from act.taps.measurement import Measurement, OnDonor, nothing
from act.taps.outputs import outputs_of
from act.taps.padded import padded, require_whole
from act.taps.patch_products import PatchProducts
from act.taps.patches import Inputs, Samples
from act.taps.probe import run, run_with
from act.taps.probed import Probed
from act.taps.residual import ResidualSums
from act.taps.sink import MomentsSink, Sink
from act.taps.swap import Swap

if TYPE_CHECKING:
    from typing_extensions import Unpack


class TapOptions(TypedDict, total=False):
    """The keywords of :func:`taps` and :func:`act.taps.lockstep.lockstep`, as the former describes them."""

    fused: bool
    include: str | Iterable[str]
    exclude: str | Iterable[str]
    moe_all_experts: bool
    images: Samples


@contextlib.contextmanager
def taps(
    model: nn.Module,
    moments: Moments,
    *,
    fused: bool = True,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    moe_all_experts: bool = False,
    images: Samples = (),
) -> Iterator[MomentsTaps]:
    """Accumulate the sites of ``model`` into ``moments`` during the block.

    Sites that scale others have no output: :meth:`act.profiles.moments.Moments.fill_scaled` gives them their moments.
    Call ``start(count_mask)`` on the yielded :class:`MomentsTaps` before each forward. The model computes what it would
    compute without taps: bit for bit with ``fused=False``; else activations and norms may differ by float32's rounding
    (on CPUs with AVX2 or AVX-512, LayerNorm alone).
    Modules are restored when the block ends, even by an exception. Run the model under ``torch.no_grad()``, not in
    inference mode: there torch does not say whether a tensor was changed in place after the probe.

    Args:
        model: a model that is not compiled.
        moments: the arena of one model.
        fused: let statistics ride inside fused kernels where the model allows it.
        include, exclude: the sites to measure and not to measure (see :meth:`ChannelSpace.without`).
        moe_all_experts: measure each expert on every token, not only on those that are routed to it.
        images: inputs with images, from which the parts that read them are learnt (see
            :meth:`act.data.images.Vision.samples`); none: these parts stay unread.

    Raises:
        ActError: a compiled model; an unknown kind; experts that are spread over processes, quantised, or run by
            kernels of their own.
    """
    tapped = MomentsTaps(
        model,
        moments,
        fused=fused,
        include=include,
        exclude=exclude,
        moe_all_experts=moe_all_experts,
        images=images,
    )
    try:
        yield tapped
    finally:
        tapped.remove()


class Taps:
    """Hooks and fused parts on a model.

    Args:
        model, fused, include, exclude, moe_all_experts, images: see :func:`taps`.
        space: the channel space of the model.
        sink: where the sites go.
        swap: the donor whose modules are called with what those of this model are given, too.

    Attributes:
        space: the channel space with what a probe of the model has shown: layouts, and which dimensions of heads turn.
        unread: why sites that should be measured are not, by name.
        unswapped: why measured sites have no swapped output, by name, as far as that is known; empty without ``swap``.
        paths: the op by which each site was last read, by site name.
        norms: how norms run that can run fused, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        space: ChannelSpace,
        sink: Sink,
        *,
        swap: Swap | None = None,
        fused: bool = True,
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        moe_all_experts: bool = False,
        images: Samples = (),
    ) -> None:
        refuse_compiled(model)
        model = self._model = language_view(model)
        self._without_cache, self._cache_argument = without_cache(model), cache_argument(model)
        probed = Probed.of(model, space, images)
        self._is_probed = probed.recording is not None
        self.space = probed.space
        wanted = self.space.without(exclude, among=include)
        self.unread = {site.name: probed.unread[site.name] for site in wanted if not site.layouts and not site.scales}
        outputs = outputs_of(self.space, {site.name for site in wanted if site.layouts})
        readable = outputs_of(self.space, {site.name for site in self.space if site.layouts})
        layouts = {output.site.name: output.site.layouts for output in readable}
        self._measurement = Measurement(outputs, layouts, sink, probed.beside)
        self._blocks = probed.recording.blocks if probed.recording else {}
        if not self._measurement.sites:
            raise ActError(f"no output of {type(model).__name__} can be measured: {next(iter(self.unread.values()))}")
        self.paths, self.unswapped = self._measurement.paths, self._measurement.unswapped
        self._on: OnDonor = nothing if swap is None else swap.on
        if swap is not None:
            swap.leave_out(probed.recording.changing if probed.recording else (), "it changes its input in place")
            apart = {site.name for holder in probed.holders for bank in holder.banks for site in bank.sites}
            apart |= self.unread.keys()
            self.unswapped |= swap.unswapped(site for site in wanted if site.name not in apart)
        donor = None if swap is None else swap.parameter
        self._attachments = Attachments(model)
        fusion = recognise(model, probed.recording) if fused and probed.recording else Fusion()
        modules = self._attachments.modules
        _refuse_gates_behind(fusion, self.space)
        self.norms = fusion.norms
        self._sums = ResidualSums(fusion, modules, self._measurement, self._on)
        attentions = Attentions(fusion.attentions if fusion.mlps or fusion.norms else {}, self._measurement)
        left_out = self.space.left_out(include, exclude)
        some = any(site.name in left_out and site.kind != "head" for site in self.space)  # a head ends it by itself
        ends = _behind(model, self._measurement, probed, images) if some else frozenset()
        self._ending = Ending(ends, self._measurement, (self._sums, attentions))
        head = Head(model, self._measurement, self._ending, self._on)
        products = PatchProducts(model, self._measurement, donor)
        self._mechanisms: list[Mechanism] = [head, self._sums, products]
        if probed.holders:
            parameter = parameters_of(model)
            self._mechanisms.append(
                HeldParameters(probed.holders, parameter, self._measurement, moe_all_experts, donor)
            )
        if fusion.mlps or fusion.norms:
            self._mechanisms.append(attentions)
        if fusion.mlps:
            self._mechanisms.append(GatedMlps(fusion.mlps, modules, self._measurement))
        try:
            self._attach()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Restore the model; calling it again does nothing."""
        self._attachments.remove()
        self._reset()

    def start(
        self, count_mask: torch.Tensor, source_mask: torch.Tensor | None = None, inputs: Inputs | None = None
    ) -> None:
        """Announce the next forward.

        Args:
            count_mask: bool ``[batch, length]``, True where a token counts; of a decoder, if the model has one beside
                an encoder.
            source_mask: bool ``[batch, source]``, the same for the tokens that this encoder reads.
            inputs: the arguments of the model, which show where images are padded.

        Raises:
            ActError: as many sequences as tokens, for a model that could not be probed; texts that the model pads.
        """
        batch, length = count_mask.shape
        if batch == length > 1 and not self._is_probed:
            raise ActError(
                f"{type(self._model).__name__} does not run with input_ids and attention_mask alone, so it could not "
                f"be probed, and {batch} sequences of {length} tokens do not show which dimension of its outputs runs "
                "over tokens; give batches of another number of sequences"
            )
        require_whole(self._blocks, sizes_of(count_mask, source_mask))
        self._reset()
        self._measurement.start(count_mask, source_mask, inputs)

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        count_mask: torch.Tensor,
        source_mask: torch.Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        """Run the model only for its statistics: its LM head sees counted rows only, in chunks, or does not run.

        Texts are padded as the model would do it. ``prefix`` stands before every row of the ``inputs`` (see
        :mod:`act.models.prefix`).
        """
        inputs, count_mask, source_mask = padded(self._model, self._blocks, inputs, count_mask, source_mask)
        self.start(count_mask, source_mask, inputs)
        with self._ending.over(prefix):
            self._model(**inputs, **(self._without_cache if prefix is None else prefix.inputs(self._cache_argument)))
        if not self._ending.early:
            self._sums.settle()
        self._reset()

    def _attach(self) -> None:
        self._ending.attach(self._attachments)
        taken = {name for mechanism in self._mechanisms for name in mechanism.attach(self._attachments)}
        for name in self._measurement.sites:
            if name not in taken:
                self._attachments.after(name, partial(self._observe, name))

    def _observe(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        self._measurement.read(name, output, self._on(name, args, kwargs))

    def _reset(self) -> None:
        for mechanism in self._mechanisms:
            mechanism.reset()


class MomentsTaps(Taps):
    """Taps that accumulate into moments."""

    def __init__(self, model: nn.Module, moments: Moments, **options: Unpack[TapOptions]) -> None:
        self._sink = MomentsSink(moments)
        super().__init__(model, moments.space, self._sink, **options)

    @property
    def moments(self) -> Moments:
        """Where the next forward accumulates; assign others of the same space and device between forwards."""
        return self._sink.moments

    @moments.setter
    def moments(self, moments: Moments) -> None:
        self._sink.moments = moments


def _behind(model: nn.Module, measurement: Measurement, probed: Probed, images: Samples) -> frozenset[str]:
    """The modules behind everything to measure; none for a model that could not be probed."""
    recording = probed.recording
    if recording is None:
        return frozenset()
    holders = {site.name: holder.name for holder in probed.holders for bank in holder.banks for site in bank.sites}
    modules = dict(model.named_modules())
    read = {holders.get(name, name if name in modules else site.module) for name, site in measurement.sites.items()}
    texts = [partial(run, model, recording.ids, recording.source, recording.masked)]
    texts += [partial(run_with, model, inputs) for inputs in images]
    with restored(model):
        return behind(model, read, texts)


def _refuse_gates_behind(fusion: Fusion, space: ChannelSpace) -> None:
    """Raise :class:`ActError` where the second half of a fused projection is its gate, unlike what its sites say."""
    fused = {site.module for site in space if site.columns is not None}
    behind = next((mlp.gate for mlp in fusion.mlps.values() if mlp.gate in fused and not mlp.gate_first), None)
    if behind is not None:
        raise ActError(
            f"the gate of {behind} is its second half, as in no known model with a projection of this name, so its "
            "sites [gate] and [up] would be called wrongly; report the architecture"
        )


def refuse_compiled(model: nn.Module) -> None:
    """Raise :class:`ActError` for a model that torch.compile has compiled."""
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in original(model).modules())
    if compiled or any(hasattr(module, "_orig_mod") for module in original(model).modules()):
        raise ActError(
            "the model was compiled by torch.compile, which ignores hooks added afterwards; pass the model from before "
            "compiling, or compile it inside the taps"
        )

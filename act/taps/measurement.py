"""What the mechanisms of one model share: the sites to measure, the tokens that count, where outputs go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from act.core.errors import ActError
from act.models.layout import OF_PATCHES, Layout, Sizes, Tokens, sizes_of
from act.models.sites import Site
from act.taps.holders import Bank
from act.taps.layouts import Beside, Unread
from act.taps.outputs import Output
from act.taps.patches import Inputs, counted, number_of_images
from act.taps.routed import RoutedRows
from act.taps.sink import Sink

OnDonor = Callable[[str, Iterable[Any], Mapping[str, Any]], Callable[[], Any] | None]
"""Called with a module's name and what it was given; returns a call of the donor's module on that, if there is one."""


def nothing(name: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """The :data:`OnDonor` of a model whose outputs are not swapped."""


class Shape(NamedTuple):
    """What a layout is for one batch and length, computed once for all sites that have it."""

    layout: Layout
    lead: tuple[int, ...]
    """The sizes of the dimensions before the channels."""
    rows_per_token: int
    in_order: bool
    """Whether flattening these dimensions gives rows token by token."""

    @classmethod
    def of(cls, layout: Layout, sizes: Sizes) -> Shape:
        """The shape for a batch of these sizes."""
        in_order = layout.tokens_first and layout.groups == 1 and layout.columns is None
        return cls(layout, layout.lead(sizes), layout.rows_per_token, in_order)

    def rows(self, output: Any, sizes: Sizes) -> torch.Tensor:
        """What a module returned as rows ``[R, C]``, token by token."""
        rows = self.layout.tensor_in(output).detach()
        return rows.reshape(-1, rows.shape[-1]) if self.in_order else self.layout.rows(rows, sizes)


class Measurement:
    """The sites of one model on their way into a sink.

    Args:
        outputs: the modules behind the sites.
        layouts: of all modules whose outputs could be read, so that a model runs alike whichever of them are.
        sink: where their rows go.
        beside: calls of these modules in a forward that are not over tokens and are not read, by name.

    Attributes:
        sites: what is to be measured, by the name of the site or, of sites that share it, the fused projection.
        riding: those that fused kernels may measure while they compute.
        paths: the op by which each site was last read, by site name.
        missing: what has not been read in this forward, by the names of :attr:`sites`.
        unswapped: why sites have no swapped output, by name, where that is wanted.
    """

    def __init__(
        self,
        outputs: Iterable[Output],
        layouts: Mapping[str, tuple[Layout, ...]],
        sink: Sink,
        beside: Mapping[str, Beside],
    ) -> None:
        self._outputs = {output.site.name: output for output in outputs}
        self.sites = {name: output.site for name, output in self._outputs.items()}
        together = [output.site for output in self._outputs.values() if output.together]
        self.riding = {site.name for site in together if sink.block(site) is not None}
        self.paths: dict[str, str] = {}
        self._layouts = layouts
        self._sink = sink
        self._beside = beside
        self._calls: Counter[str] = Counter()
        self._count_masks: dict[Tokens, torch.Tensor] = {}
        self._sizes: Sizes | None = None
        self._inputs: Inputs = {}
        self._all_count: set[Tokens] = set()
        self._masks: dict[tuple[Tokens, torch.device, int], torch.Tensor | None] = {}
        self._reads: Counter[str] = Counter()
        self._closed = False
        self.missing: set[str] = set()
        self.unswapped: dict[str, str] = {}
        self._shapes: dict[str, tuple[Shape, ...]] = {}

    def start(
        self, count_mask: torch.Tensor, source_mask: torch.Tensor | None = None, inputs: Inputs | None = None
    ) -> None:
        """Announce the next forward.

        Args:
            count_mask: bool ``[batch, length]``, True where a token counts.
            source_mask: the same ``[batch, source]`` for what an encoder reads beside a decoder.
            inputs: the arguments of the model, which show where images are padded.
        """
        self._inputs = inputs or {}
        sizes = sizes_of(count_mask, source_mask)
        if self._sizes != sizes:
            self._sizes = sizes
            distinct = {layout for layouts in self._layouts.values() for layout in layouts if layout not in OF_PATCHES}
            shapes = {layout: Shape.of(layout, sizes) for layout in distinct}
            self._shapes = {
                name: tuple(shapes[layout] for layout in layouts if layout in shapes)
                for name, layouts in self._layouts.items()
            }
        self._count_masks = {"length": count_mask, **({} if source_mask is None else {"source": source_mask})}
        self._masks.clear()
        self._reads.clear()
        self._calls.clear()
        self._closed, self.missing = False, set(self.sites)
        self._all_count = {text for text, mask in self._count_masks.items() if mask.device.type == "cpu" and mask.all()}

    def close(self) -> None:
        """Read nothing more in this forward."""
        self._closed = True

    @property
    def closed(self) -> bool:
        """Whether nothing more is read in this forward."""
        return self._closed

    @property
    def sizes(self) -> Sizes:
        """The sizes of the batch of this forward."""
        if self._sizes is None:
            raise RuntimeError("call start(count_mask) before the forward")
        return self._sizes

    def tokens_of(self, *names: str) -> Tokens:
        """Which tokens sites with one row for each have rows for; of these sites, some are measured."""
        return next((self.sites[name].layouts[0].tokens for name in names if name in self.sites), "length")

    def mask(self, text: Tokens, device: torch.device, per_token: int = 1) -> torch.Tensor | None:
        """The count mask of some tokens as rows on a device, for this many rows per token; None: all rows count."""
        key = (text, device, per_token)
        if key not in self._masks:
            rows = self._count_masks[text].to(device, non_blocking=True).reshape(-1, 1)
            self._masks[key] = None if text in self._all_count else rows.expand(-1, per_token).flatten()
        return self._masks[key]

    def shape(self, name: str, lead: torch.Size) -> Shape | None:
        """The shape of a module's output that has these dimensions before the channels in this forward, if any."""
        for shape in self._shapes.get(name, ()):
            if shape.lead == lead:
                return shape
        return None

    def has_layout(self, name: str) -> bool:
        """Whether a module's output could be read."""
        return name in self._layouts

    def lies_by_token(self, name: str, lead: torch.Size) -> bool:
        """Whether an output of this shape before the channels is one row per token, in order, if it can be read."""
        shape = self.shape(name, lead)
        return not self.has_layout(name) or (shape is not None and shape.in_order and shape.rows_per_token == 1)

    def read(self, name: str, output: Any, swapped: Callable[[], Any] | None = None) -> None:
        """Feed what a module returned to the sink, if it is a site to measure.

        ``swapped`` computes what the donor's module returns for the same input.
        """
        site = self.sites.get(name)
        if site is None or self._closed or self._is_beside(site, output):
            return
        self.missing.discard(name)
        rows_in, mask = self._rows_in(site, output)
        rows, others = rows_in(output), None if swapped is None else rows_in(swapped())
        whole = self._outputs[name]
        if whole.together:
            self.read_rows(site, rows, mask, others)
            return
        of_others = {} if others is None else {part.name: columns for part, columns in whole.of_parts(others)}
        for part, columns in whole.of_parts(rows):
            self.read_rows(part, columns, mask, of_others.get(part.name))

    def _is_beside(self, site: Site, output: Any) -> bool:
        """Whether this call of a site is not over tokens: the probe knows it by its place among the calls."""
        calls = self._beside.get(site.name)
        if calls is None:
            return False
        layout = calls.get(self._calls[site.name])
        self._calls[site.name] += 1
        if layout is None or layout.lead_of(output) == layout.lead(self.sizes):
            return layout is not None
        if self.shape(site.name, layout.lead_of(output)) is None:
            return True  # more rows of its kind, such as one for each block of a longer text
        raise ActError(
            f"site {site.name} gave {list(output.shape)} where its probe showed {layout}, which is not over tokens; "
            "exclude this kind of module, or report the architecture"
        )

    def rows(self, site: Site, output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a site returned as rows ``[R, C]``, token by token, and which of them count, ``[R]`` (None: all).

        Raises:
            ActError: it has another layout than in the probe.
        """
        rows_in, mask = self._rows_in(site, output)
        return rows_in(output), mask

    def _rows_in(self, site: Site, output: Any) -> tuple[Callable[[Any], torch.Tensor], torch.Tensor | None]:
        """How to turn what a site returned, or anything laid out so, into rows, and which of them count."""
        if (of_patches := site.layouts[0]) in OF_PATCHES:
            images = number_of_images(self._inputs)
            mask = self._patch_mask(site, len(of_patches.patches(output, images)), output.device)
            return lambda given: of_patches.patches(given.detach(), images), mask
        found: dict[Tokens, tuple[Shape, torch.Tensor]] = {}
        for shape in self._shapes[site.name]:
            tensor = shape.layout.tensor_in(output)
            if isinstance(tensor, torch.Tensor) and shape.layout.lead_of(tensor) == shape.lead:
                found.setdefault(shape.layout.tokens, (shape, tensor))
        self._reads[site.name] += 1
        if found:
            # A site that reads both texts, as a shared embedding does, reads them in the order of its layouts.
            shape, tensor = list(found.values())[min(self._reads[site.name], len(found)) - 1]
            mask = self.mask(shape.layout.tokens, tensor.device, shape.rows_per_token)
            return lambda given: shape.rows(given, self.sizes), mask
        given = list(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        batch, length, source = self.sizes
        more = f" and {source} of the source" if source else ""
        raise ActError(
            f"site {site.name} gave {given} for {batch} x {length} tokens{more}; expected "
            f"{' or '.join(map(str, site.layouts))}, as its probe showed or, without one, was "
            "assumed; exclude this kind of module, or report the architecture"
        )

    def _patch_mask(self, site: Site, rows: int, device: torch.device) -> torch.Tensor | None:
        try:
            mask = counted(rows, self._inputs)
        except Unread as unread:
            raise ActError(f"site {site.name} cannot be read: {unread.reason}; exclude its kind") from unread
        return None if mask is None else mask.to(device)

    def read_rows(
        self, site: Site, rows: torch.Tensor, mask: torch.Tensor | None, swapped: torch.Tensor | None = None
    ) -> None:
        """Feed rows ``[R, C]`` of a site to the sink, with swapped ones if there are any.

        ``mask`` is bool ``[R]``, True where a row counts (None: all).
        """
        self._sink.read(site, rows, mask, swapped)
        self._note_path(self._parts(site.name) or (site,), "column_moments")

    def read_bank(self, bank: Bank, given: RoutedRows) -> None:
        """Feed what a bank of sites gave, with the token of each row, to the sink, if some are to be measured."""
        wanted = [site.name in self.sites for site in bank.sites]
        if self._closed or not any(wanted):
            return
        names = [site.name for site in bank.sites]
        self.missing.difference_update(names)
        text = self.tokens_of(*names)
        mask = self.mask(text, given.rows.device)
        if not bank.routed:
            several = len(given.rows) != self.sizes.batch * self.sizes.of(text)  # rows for each token
            mask = mask[given.tokens] if mask is not None and several else mask
            self.read_rows(bank.sites[0], given.rows, mask, given.swapped)
            return
        counts = None if mask is None else mask[given.tokens]
        if not all(wanted):
            measured = torch.tensor(wanted, device=given.rows.device)[given.experts]
            counts = measured if counts is None else counts & measured
        self._sink.read_bank(bank, given, counts)
        self._note_path([site for site in bank.sites if site.name in self.sites], "segment_moments")

    def block(self, name: str, path: str) -> torch.Tensor | None:
        """The moments of a site for the op ``path`` to accumulate into; None where it cannot ride along."""
        if name not in self.riding or self._closed:
            return None
        self.missing.discard(name)
        self._note_path(self._parts(name), path)
        return self._sink.block(self.sites[name])

    def _parts(self, name: str) -> tuple[Site, ...]:
        """The sites of a module that is one to measure; empty for a site that is a part of one."""
        return self._outputs[name].parts if name in self._outputs else ()

    def _note_path(self, sites: Sequence[Site], path: str) -> None:
        """Note by which op sites that are read together are read: once, unless it changes."""
        if self.paths.get(sites[0].name) != path:
            self.paths.update(dict.fromkeys((site.name for site in sites), path))

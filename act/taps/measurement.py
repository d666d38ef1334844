"""What the mechanisms of one model share: the sites to measure, the tokens that count, where outputs go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from act.core.errors import ActError
from act.models.channels import Site
from act.models.layout import Layout
from act.taps.sink import Sink


class Measurement:
    """The sites of one model on their way into a sink.

    Attributes:
        sites: the sites to measure, by name, with their layouts.
        riding: those that fused kernels may measure while they compute.
        paths: the op by which each site was last read, by site name.
    """

    def __init__(self, sites: Iterable[Site], sink: Sink) -> None:
        self.sites = {site.name: site for site in sites}
        self.riding = {name for name, site in self.sites.items() if sink.block(site) is not None}
        self.paths: dict[str, str] = {}
        self._sink = sink
        self._count_mask: torch.Tensor | None = None
        self._all_count = False
        self._masks: dict[tuple[torch.device, int], torch.Tensor | None] = {}

    def start(self, count_mask: torch.Tensor) -> None:
        """Announce the next forward: bool ``[batch, length]``, True where a token counts."""
        self._count_mask = count_mask
        self._masks.clear()
        self._all_count = count_mask.device.type == "cpu" and bool(count_mask.all())

    @property
    def tokens(self) -> torch.Size:
        """Batch and length of the forward."""
        if self._count_mask is None:
            raise RuntimeError("call start(count_mask) before the forward")
        return self._count_mask.shape

    def mask(self, device: torch.device, per_token: int = 1) -> torch.Tensor | None:
        """The count mask as rows on a device, for this many rows per token; None if all rows are known to count."""
        key = (device, per_token)
        if key not in self._masks:
            assert self._count_mask is not None
            rows = self._count_mask.to(device, non_blocking=True).reshape(-1, 1)
            self._masks[key] = None if self._all_count else rows.expand(-1, per_token).flatten()
        return self._masks[key]

    def layout(self, name: str, shape: torch.Size) -> Layout | None:
        """The layout of a site to measure that has this shape before the channels in this forward, if any."""
        site = self.sites.get(name)
        for layout in site.layouts if site else ():
            if layout.lead(*self.tokens) == shape:
                return layout
        return None

    def lies_by_token(self, name: str, shape: torch.Size) -> bool:
        """Whether an output of this shape before the channels is one row per token, in order, if it is measured."""
        layout = self.layout(name, shape)
        return name not in self.sites or (
            layout is not None and layout.tokens_first and layout.rows_per_token == 1 and layout.groups == 1
        )

    def read(self, name: str, output: Any) -> None:
        """Feed what a module returned to the sink, if it is a site to measure."""
        site = self.sites.get(name)
        if site is not None:
            rows, per_token = self.rows(site, output)
            self.read_rows(site, rows, self.mask(rows.device, per_token))

    def rows(self, site: Site, output: Any) -> tuple[torch.Tensor, int]:
        """What a site returned as rows ``[tokens * per_token, C]``, token by token, and ``per_token``.

        Raises:
            ActError: it has another layout than in the probe.
        """
        for layout in site.layouts:
            tensor = output if layout.item is None else output[layout.item]
            if layout.fits(tensor, *self.tokens):
                return layout.rows(tensor.detach(), *self.tokens), layout.rows_per_token
        shape = list(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        batch, length = self.tokens
        raise ActError(
            f"site {site.name} gave {shape} for {batch} x {length} tokens; expected "
            f"{' or '.join(map(str, site.layouts))}, as when it was probed; exclude this kind of module, or report the "
            "architecture"
        )

    def read_rows(self, site: Site, rows: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Feed rows ``[R, C]`` of a site to the sink; ``mask`` is bool ``[R]``, True where a row counts (None: all)."""
        self._sink.read(site, rows, mask)
        self.paths[site.name] = "column_moments"

    def block(self, name: str, path: str) -> torch.Tensor | None:
        """The moments of a site for the op ``path`` to accumulate into; None where it cannot ride along."""
        if name not in self.riding:
            return None
        self.paths[name] = path
        return self._sink.block(self.sites[name])

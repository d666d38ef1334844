"""What the mechanisms of one model share: the sites to measure, the tokens that count, where outputs go."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from act.core.errors import ActError
from act.models.channels import Site
from act.taps.sink import Sink


class Measurement:
    """The sites of one model on their way into a sink.

    Attributes:
        sites: the sites to measure, by name.
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

    def mask(self, device: torch.device, heads: int = 1) -> torch.Tensor | None:
        """The count mask as rows on a device, repeated per head; None if all rows are known to count."""
        key = (device, heads)
        if key not in self._masks:
            assert self._count_mask is not None
            rows = self._count_mask.to(device, non_blocking=True).reshape(-1, 1)
            self._masks[key] = None if self._all_count else rows.expand(-1, heads).flatten()
        return self._masks[key]

    def read(self, name: str, output: torch.Tensor) -> None:
        """Feed the output of a module to the sink, if it is a site to measure."""
        site = self.sites.get(name)
        if site is not None:
            rows, heads = as_rows(output.detach(), self.tokens, site)
            self.read_rows(site, rows, self.mask(rows.device, heads))

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
        "[batch, length, channels], optionally with a dimension of heads; exclude this kind of module, or report the "
        "architecture"
    )


def _heads_lead(output: torch.Tensor) -> bool:
    # With as many heads as tokens the shape is ambiguous; heads moved forward keep their memory next to each other.
    return output.stride(1) < output.stride(2)

"""Where the outputs of sites go: into moments, or to a function that reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from act.models.sites import Site
from act.profiles.moments import Moments
from act.taps.holders import Bank
from act.taps.routed import RoutedRows
from act_kernels import column_moments, segment_moments

Reader = Callable[[Site, torch.Tensor, "torch.Tensor | None", "torch.Tensor | None"], None]
"""Called with a site, its output as rows ``[R, C]``, the bool mask ``[R]`` of the rows that count (None: all), and what
the donor's module gives on the same input, if that is wanted."""

BankReader = Callable[[Bank, RoutedRows, "torch.Tensor | None"], None]
"""The same for the sites of a bank, of which each token reaches some."""


class Sink(Protocol):
    """What the taps of one model feed, site by site, in the order of computation."""

    def read(
        self, site: Site, rows: torch.Tensor, mask: torch.Tensor | None, swapped: torch.Tensor | None = None
    ) -> None:
        """Take the output of a site as rows ``[R, C]``; ``mask``: bool ``[R]``, True where a row counts (None: all).

        ``swapped`` is what the donor's module gives on the same input, if that is wanted.
        """
        ...

    def read_bank(self, bank: Bank, given: RoutedRows, mask: torch.Tensor | None) -> None:
        """Take what the experts of a bank gave; ``mask``: bool ``[R]``, True where a row counts (None: all)."""
        ...

    def block(self, site: Site) -> torch.Tensor | None:
        """The float64 ``[7, C]`` that a fused kernel may accumulate the site into; None: every output must be read."""
        ...


class MomentsSink:
    """Accumulates every site into :attr:`moments`, which may be replaced between forwards."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    def read(
        self, site: Site, rows: torch.Tensor, mask: torch.Tensor | None, swapped: torch.Tensor | None = None
    ) -> None:
        """Accumulate one output; swapped ones are none of a single model."""
        column_moments(rows, self.moments.block(site.name), mask)

    def read_bank(self, bank: Bank, given: RoutedRows, mask: torch.Tensor | None) -> None:
        """Accumulate what all experts gave."""
        segment_moments(given.rows, self.moments.segments(bank.sites), given.offsets, mask)

    def block(self, site: Site) -> torch.Tensor:
        """The site's part of the moments."""
        return self.moments.block(site.name)


class ReaderSink:
    """Hands every output to functions; fused kernels then compute without measuring."""

    def __init__(self, reader: Reader, bank_reader: BankReader) -> None:
        self._reader = reader
        self._bank_reader = bank_reader

    def read(
        self, site: Site, rows: torch.Tensor, mask: torch.Tensor | None, swapped: torch.Tensor | None = None
    ) -> None:
        """Hand over one output."""
        self._reader(site, rows, mask, swapped)

    def read_bank(self, bank: Bank, given: RoutedRows, mask: torch.Tensor | None) -> None:
        """Hand over what all experts gave."""
        self._bank_reader(bank, given, mask)

    def block(self, site: Site) -> None:
        """None: nothing rides along."""

"""The LM head: in a forward that runs only for its statistics, the head sees counted tokens only, or does not run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from act.models.embeddings import lm_head
from act.taps.attachments import Attachments
from act.taps.ending import Ending
from act.taps.measurement import Measurement, OnDonor, nothing

HEAD_CHUNK_BYTES = 32 << 20  # output of the LM head that exists at one time


class Head:
    """The LM head of one model, if it has one: it ends forwards that run for their statistics.

    A head that is measured is given the counted rows, in chunks.
    """

    def __init__(self, model: nn.Module, measurement: Measurement, ending: Ending, on: OnDonor = nothing) -> None:
        head = lm_head(model)
        if isinstance(head, nn.Embedding):  # whose weight the model uses for its logits without calling it
            head = None
        self._name = next((name for name, module in model.named_modules() if module is head), None)
        self._measurement = measurement
        self._ending, self._on = ending, on
        # A hook of the user may change what the head gives; then it runs as a whole, and its output is read.
        self._hooked = head is not None and bool(head._forward_hooks or head._forward_pre_hooks)
        self._adapted = any(name.startswith(f"{self._name}.") for name in measurement.sites)

    def attach(self, attachments: Attachments) -> set[str]:
        """Hook the input of the head; in a whole forward its output is read by a hook, like that of any other site."""
        if self._name is not None:
            attachments.before(self._name, self._before)
        return set()

    def reset(self) -> None:
        """Nothing is kept between forwards."""

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._ending.on or self._measurement.closed:
            return
        site = self._measurement.sites.get(self._name or "")
        if (site is not None and self._hooked) or self._adapted:
            return
        if site is not None:
            hidden, mask = self._measurement.rows(site, args[0])
            counted = hidden if mask is None else hidden[mask]
            for rows in torch.split(counted, max(16, HEAD_CHUNK_BYTES // (site.width * hidden.element_size()))):
                swapped = self._on(site.name, (rows,), {})
                self._measurement.read_rows(site, module.forward(rows), None, None if swapped is None else swapped())
        self._ending.end()

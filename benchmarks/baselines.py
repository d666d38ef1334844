"""What people write to get statistics of activations: forward hooks, ``torch.var_mean``, nnsight.

Hooks are on every linear, and on the LM head if ``head`` is true.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

Run = Callable[..., None]


@contextlib.contextmanager
def hooked(model: PreTrainedModel, read: Callable[[str, torch.Tensor], None], head: bool = False) -> Iterator[None]:
    """Forward hooks that pass on the name and output of each linear."""
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: read(name, output))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (head or module is not model.get_output_embeddings())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Sums(dict[str, list[torch.Tensor]]):
    """Float32 sum and sum of squares by name."""

    def add(self, name: str, output: torch.Tensor) -> None:
        """Count the output of a linear."""
        x = output.flatten(0, -2).float()
        new = [x.sum(0), (x * x).sum(0)]
        self[name] = [a + b for a, b in zip(self[name], new, strict=True)] if name in self else new


def by_sums(model: PreTrainedModel, head: bool = False) -> Run:
    """A forward with the hooks most people write."""
    sums = Sums()

    def run(**inputs: Any) -> None:
        with hooked(model, sums.add, head):
            model(**inputs)

    return run


def by_var_mean(model: PreTrainedModel) -> Run:
    """A forward with hooks that call ``torch.var_mean`` on each batch."""
    found: dict[str, Any] = {}

    def read(name: str, output: torch.Tensor) -> None:
        found[name] = torch.var_mean(output.flatten(0, -2).float(), dim=0)

    def run(**inputs: Any) -> None:
        with hooked(model, read):
            model(**inputs)

    return run


def by_nnsight(model: PreTrainedModel, head: bool = False) -> Run | None:
    """A forward that saves sum and sum of squares through nnsight; None where it is not installed."""
    if importlib.util.find_spec("nnsight") is None:
        return None
    nnsight = importlib.import_module("nnsight")
    wrapped = nnsight.NNsight(model)
    order: list[str] = []
    with torch.inference_mode(), hooked(model, lambda name, _: order.append(name), head):
        model(input_ids=torch.ones((1, 2), dtype=torch.long, device=model.device))
    sums: list[list[torch.Tensor]] = []

    def run(**inputs: Any) -> None:
        with wrapped.trace(**inputs):
            saved = nnsight.save([])
            for name in order:
                x = wrapped.get(name).output.flatten(0, -2).float()
                saved.append([x.sum(0), (x * x).sum(0)])
        old = sums or [[torch.zeros((), device=model.device)] * 2 for _ in saved]
        sums[:] = [[a + b for a, b in zip(*two, strict=True)] for two in zip(old, saved, strict=True)]

    return run

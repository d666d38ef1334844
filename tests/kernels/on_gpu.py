"""Lets the tests of the ops, whose tensors are on the CPU, run the ops on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from act_kernels import backends, ops

OPS = ("column_moments", "segment_moments", "pair_moments", "blend_rows", "gated_mlp", "rotary", "add_norm")


def run_on_gpu(monkeypatch, backend: str, device: str = "cuda") -> None:
    """Every op of :mod:`act_kernels.ops` moves its tensors to ``device``, runs there, and moves what it wrote back."""
    try:
        backends.choose(torch.device(device).type)
    except backends.BackendError as error:
        pytest.skip(str(error))
    for op in OPS:
        monkeypatch.setattr(ops, op, _on(getattr(ops, op), device))


def _on(op: Any, device: str) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        storages: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        moved: dict[int, torch.Tensor] = {}

        def there(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [there(each) for each in value]
            if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
                return value
            # Whole storages, so that views keep their strides, their alignment and what they share.
            storage = value.untyped_storage()
            if storage.data_ptr() not in storages:
                here = torch.empty(0, dtype=torch.uint8).set_(storage)
                storages[storage.data_ptr()] = (here, here.to(device, copy=True))
            copy = storages[storage.data_ptr()][1].untyped_storage()
            view = torch.empty(0, dtype=value.dtype, device=device)
            view.set_(copy, value.storage_offset(), value.shape, value.stride())
            moved[id(view)] = value
            return view

        def back(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(back(each) for each in value)
            return moved[id(value)] if id(value) in moved else value.cpu() if isinstance(value, torch.Tensor) else value

        kept = there(arguments), {name: there(value) for name, value in options.items()}
        result = op(*kept[0], **kept[1])
        for here, copy in storages.values():
            here.copy_(copy)
        return back(result)

    return run

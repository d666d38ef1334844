"""Moving all parameters a little: what a transfer of channels is compared with."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch
from torch import nn

from act.models.views import language_view

Parameters = nn.Module | MutableMapping[str, torch.Tensor]


@torch.no_grad()
def interpolate(target: Parameters, donors: Sequence[Parameters], strength: float) -> None:
    """``theta += strength * (mean of the donors' theta - theta)`` for every parameter of ``target``, in place.

    With the base of a fine-tuned target as the only donor, this is task arithmetic (Ilharco et al., arXiv 2212.04089)
    with the scale ``1 - strength``. Half precision is computed in float32.

    Args:
        target: a model, or tensors by parameter name.
        donors: models of the same parameters; only read.
        strength: 0 changes nothing, 1 gives the donors' mean.
    """
    theirs = [_named(donor) for donor in donors]
    for name, mine in _named(target).items():
        wide = mine.to(torch.promote_types(mine.dtype, torch.float32))
        mine.copy_(wide.lerp(torch.stack([donor[name].to(wide) for donor in theirs]).mean(0), strength))


def _named(model: Parameters) -> MutableMapping[str, torch.Tensor]:
    return dict(language_view(model).named_parameters()) if isinstance(model, nn.Module) else model

"""What the weights of a model in memory were before it was changed, by fingerprint: channels may be of those."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from act.models.views import original

_NAME = "act_earlier_fingerprints"


def remember_earlier(model: nn.Module, fingerprints: Iterable[str]) -> None:
    """Note what the weights of a model were before a change; a copy of the model knows it, too."""
    setattr(original(model), _NAME, earlier(model).union(fingerprints))


def earlier(model: nn.Module) -> frozenset[str]:
    """The fingerprints that a model is known to have had.

    >>> from act.editing.earlier import earlier
    >>> patch = act.transfer(donor, target, act.rank(act.profile_pair(donor, target, corpus), count=8))
    >>> patch.provenance.before in earlier(target)
    True
    """
    found: frozenset[str] = getattr(original(model), _NAME, frozenset())
    return found

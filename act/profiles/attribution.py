"""Attribution profiles: how the loss over each document would change if a channel moved, in one safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from act.core.errors import ActError
from act.core.tensor_files import load_tensors, save_tensors, taken, understood
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments, require_moments
from act.profiles.profile import Profile, require_same_models
from act.profiles.provenance import Provenance
from act_kernels import STATISTICS

ATTRIBUTION = "act-attribution"
SCHEMA = f"{ATTRIBUTION}/1"


class AttributionProfile(Profile):
    """What moving each channel from a target to a donor would do to the target's loss, to first order.

    Its statistics are over documents (a text longer than the maximum length: over its pieces): ``mean`` and ``var``
    are of the change of a document's summed negative log-likelihood, in nats, if the channel moved all the way;
    ``count`` is the number of documents.

    Attributes:
        moments: the arena ``[7, N]``.
        provenance: which models read which text; ``counted`` is the number of tokens that the loss is over.
        distance: the norm of each channel's step, ``|| theta_d - theta_t ||_2``, float64 ``[N]``.
        kept: the same on texts of what the target should keep; empty for these themselves.

    >>> found = act.attribute(donor, target, corpus)
    >>> found.tokens, len(found.space)
    (24, 940)
    >>> channels = act.rank(found, "attribution", top="5%")
    >>> found.fall.shape, bool((found.error >= 0).all())
    (torch.Size([940]), True)
    >>> bool((found.rms >= found.mean.abs() - 1e-12).all())
    True
    """

    of_tokens = False

    def __init__(
        self,
        moments: Moments,
        provenance: Provenance,
        distance: torch.Tensor,
        kept: Sequence[AttributionProfile] = (),
    ) -> None:
        super().__init__(moments, provenance)
        self.distance = distance
        self.kept = tuple(kept)

    @property
    def tokens(self) -> int:
        """How many tokens the loss is over."""
        return sum(corpus.counted for corpus in self.provenance.corpora)

    @property
    def fall(self) -> torch.Tensor:
        """By how much the mean loss of a token would fall, in nats, float64 ``[N]``; NaN where nothing was counted."""
        return -self.mean * self.count / max(1, self.tokens)

    @property
    def error(self) -> torch.Tensor:
        """The standard error of :attr:`fall` over documents, for as many tokens; NaN for fewer than two documents."""
        spread = (self.var * self.count / (self.count - 1)).sqrt()
        return (spread * self.count.sqrt() / max(1, self.tokens)).where(self.count > 1, torch.nan)

    @property
    def rms(self) -> torch.Tensor:
        """Root mean square over documents of the change of a document's summed loss, float64 ``[N]``.

        At a minimum of the loss the mean vanishes and this remains: what moving the channel disturbs (the diagonal of
        the empirical Fisher information along the step).
        """
        return (self.var + self.mean.square()).sqrt()

    def __add__(self, other: Profile) -> AttributionProfile:
        """The profile over both texts, equal to that of one run over both up to float64 rounding.

        Raises:
            ActError: the other is of another kind, of other models, or has other texts to keep.
        """
        if not isinstance(other, AttributionProfile):
            raise ActError(f"cannot add a {type(other).__name__} to a {type(self).__name__}")
        require_same_models(self, other)
        if len(self.kept) != len(other.kept):
            raise ActError(
                f"the profiles hold {len(self.kept)} and {len(other.kept)} texts to keep; measure both with the same"
            )
        merged = Moments(self.space)
        merged.arena.copy_(self.moments.arena)
        merged.merge(other.moments)
        kept = [mine + theirs for mine, theirs in zip(self.kept, other.kept, strict=True)]
        return AttributionProfile(merged, self.provenance.merged(other.provenance), self.distance, kept)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the profile, with what it holds of texts to keep, to one safetensors file; :func:`act.load` reads it.

        Raises:
            ActError: the file exists and ``force`` is False; the disk is full.
        """
        parts = {"": self, **{f"keep.{number}.": kept for number, kept in enumerate(self.kept)}}
        tensors = {"distance": self.distance}
        for prefix, part in parts.items():
            tensors |= {f"{prefix}{name}": row for name, row in zip(STATISTICS, part.moments.arena.cpu(), strict=True)}
        header = {
            "space": self.space.to_json(),
            "source": self.provenance.to_json(),
            "keep": [kept.provenance.to_json() for kept in self.kept],
        }
        save_tensors(Path(path), tensors, SCHEMA, header, force=force)


def load_attribution(path: Path) -> AttributionProfile:
    """Read what :meth:`AttributionProfile.save` wrote; raises ActError as :func:`act.load`."""
    tensors, header = load_tensors(path, SCHEMA)
    with understood(path):
        space = ChannelSpace.from_json(header["space"])
        source, *kept = (Provenance.from_json(each) for each in (header["source"], *header["keep"]))
        for provenance in (source, *kept):
            if provenance.models and sorted(provenance.models) != ["donor", "target"]:
                raise ValueError(f"it is of the models {', '.join(sorted(provenance.models)):.60}")
        prefixes = ["", *(f"keep.{number}." for number in range(len(kept)))]
        expected = {"distance", *(f"{prefix}{name}" for prefix in prefixes for name in STATISTICS)}
        if extra := tensors.keys() - expected:
            raise ValueError(f"it has a tensor {min(extra):.60}")
        for name in sorted(expected):
            taken(tensors, name, (torch.float64,), (len(space),))
        distance = tensors["distance"]
        if not (distance >= 0).all():
            raise ValueError("its distance holds what is no norm of a step")
        arenas = [_moments(space, tensors, prefix) for prefix in prefixes]
        rest = [AttributionProfile(arena, each, distance) for arena, each in zip(arenas[1:], kept, strict=True)]
        return AttributionProfile(arenas[0], source, distance, rest)


def _moments(space: ChannelSpace, tensors: dict[str, Any], prefix: str) -> Moments:
    moments = Moments(space)
    for row, name in zip(moments.arena, STATISTICS, strict=True):
        row.copy_(tensors.pop(f"{prefix}{name}"))
    require_moments(moments.arena)
    return moments

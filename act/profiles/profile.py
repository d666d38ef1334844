"""Profiles: what a run measured, with the channel space and where it came from, in one safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch

from act.core.errors import ActError
from act.core.tensor_files import load_tensors, save_tensors, understood
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.profiles.provenance import Provenance
from act_kernels import PAIR, STATISTICS
from act_kernels.statistics import COUNT, M2, MAX_ABS, MEAN, POSITIVE, SUM_ABS

SCHEMA = "act-profile/1"


class Statistics:
    """Finalised statistics of a block ``[7, N]``: flat float64 vectors; NaN where no finite value was counted."""

    def __init__(self, block: torch.Tensor) -> None:
        self._block = block

    @property
    def count(self) -> torch.Tensor:
        """Finite values counted."""
        return self._block[COUNT]

    @property
    def mean(self) -> torch.Tensor:
        """Mean."""
        return torch.where(self.count > 0, self._block[MEAN], torch.nan)

    @property
    def var(self) -> torch.Tensor:
        """Population variance, ``M2 / count``."""
        return self._block[M2] / self.count

    @property
    def mean_abs(self) -> torch.Tensor:
        """Mean of absolute values."""
        return self._block[SUM_ABS] / self.count

    @property
    def max_abs(self) -> torch.Tensor:
        """Largest absolute value."""
        return torch.where(self.count > 0, self._block[MAX_ABS], torch.nan)

    @property
    def positive_rate(self) -> torch.Tensor:
        """Share of values above zero."""
        return self._block[POSITIVE] / self.count


class Profile(Statistics):
    """The statistics of one model over a corpus.

    Attributes:
        moments: the arena ``[7, N]``.
        provenance: which models read which text, and how.
    """

    def __init__(self, moments: Moments, provenance: Provenance) -> None:
        super().__init__(self._own_block(moments))
        self.moments = moments
        self.provenance = provenance

    @staticmethod
    def _own_block(moments: Moments) -> torch.Tensor:
        return moments.arena

    @property
    def space(self) -> ChannelSpace:
        """The channel space of the vectors."""
        return self.moments.space

    @property
    def pair(self) -> bool:
        """Whether donor and target were measured."""
        return self.moments.pair

    def site(self, name: str) -> Statistics:
        """The same vectors for one site, ``[width]`` each."""
        return Statistics(self._block[:, self.space.site(name).channels])

    def __add__(self, other: Profile) -> Profile:
        """The profile of both corpora together; raises ActError unless kind, models and settings agree."""
        if type(self) is not type(other):
            raise ActError(f"cannot add a {type(other).__name__} to a {type(self).__name__}")
        require_same_models(self, other)
        merged = Moments(self.space, pair=self.moments.pair)
        merged.arena.copy_(self.moments.arena)
        merged.merge(other.moments)
        return type(self)(merged, self.provenance.merged(other.provenance))

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the profile; raises ActError if ``path`` exists and ``force`` is False, or the disk is full."""
        arena = self.moments.arena.cpu()
        blocks = dict(zip(PAIR, arena, strict=True)) if self.moments.pair else {"": arena}
        tensors = {
            f"{side}.{statistic}".lstrip("."): row
            for side, block in blocks.items()
            for statistic, row in zip(STATISTICS, block, strict=True)
        }
        header = {"space": self.space.to_json(), "source": self.provenance.to_json(), "pair": self.moments.pair}
        save_tensors(Path(path), tensors, SCHEMA, header, force=force)


class PairProfile(Profile):
    """The statistics of donor and target over the same tokens, and of donor - target.

    The plain vectors (``mean``, ``var``, …) and ``site`` are the target's; ``donor`` and ``target`` give either side.
    """

    @staticmethod
    def _own_block(moments: Moments) -> torch.Tensor:
        return moments.arena[PAIR.index("target")]

    @property
    def donor(self) -> Statistics:
        """The donor's statistics."""
        return Statistics(self.moments.arena[PAIR.index("donor")])

    @property
    def target(self) -> Statistics:
        """The target's statistics."""
        return Statistics(self._block)

    @property
    def difference(self) -> Statistics:
        """The statistics of donor - target."""
        return Statistics(self.moments.arena[PAIR.index("difference")])

    @property
    def mean_diff(self) -> torch.Tensor:
        """Mean of donor - target."""
        return self.difference.mean

    @property
    def var_diff(self) -> torch.Tensor:
        """Population variance of donor - target."""
        return self.difference.var

    @property
    def mean_abs_diff(self) -> torch.Tensor:
        """Mean of ``|donor - target|``: the paper's score (eq. 2)."""
        return self.difference.mean_abs


class StoredProfile:
    """A profile on disk of which only the header was read; raises ActError as :func:`load`.

    Attributes:
        space, pair, provenance: those of the profile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _, header = load_tensors(path, SCHEMA, header_only=True)
        with understood(path):
            self.space = ChannelSpace.from_json(header["space"])
            self.pair = bool(header["pair"])
            self.provenance = Provenance.from_json(header["source"])

    def load(self) -> Profile:
        """The whole profile."""
        return load(self.path)


def require_same_models(first: Profile | StoredProfile, second: Profile | StoredProfile) -> None:
    """Raise :class:`ActError` unless both profiles are of the same models, saying what differs."""
    difference = first.space.first_difference(second.space)
    if difference:
        raise ActError(f"the profiles are of different architectures: {difference}")
    for side, model in first.provenance.models.items():
        other = second.provenance.models.get(side)
        if other is None or other.fingerprint != model.fingerprint:
            raise ActError(
                f"the profiles are of different models: the {side} is {model} in one and {other} in the other; "
                "profile the same models for both"
            )


def load(path: str | Path) -> Profile:
    """Read a profile or pair profile; raises ActError if it is missing, damaged or of another schema version."""
    tensors, header = load_tensors(Path(path), SCHEMA)
    with understood(Path(path)):
        moments = Moments(ChannelSpace.from_json(header["space"]), pair=header["pair"])
        sides = [f"{side}." for side in PAIR] if header["pair"] else [""]
        blocks = [torch.stack([tensors[side + statistic] for statistic in STATISTICS]) for side in sides]
        moments.arena.copy_(torch.stack(blocks) if header["pair"] else blocks[0])
        return (PairProfile if header["pair"] else Profile)(moments, Provenance.from_json(header["source"]))

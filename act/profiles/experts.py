"""How many counted tokens each expert got: of few, its statistics say little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from act.models.channels import ChannelSpace
from act.models.sites import Site
from act.profiles.defaults import MIN_EXPERT_TOKENS
from act.profiles.statistics import PairStatistics, Statistics

if TYPE_CHECKING:
    from act.profiles.profile import Profile


@dataclass(frozen=True)
class ExpertTokens:
    """The counted tokens that each site of an expert got.

    Attributes:
        sites: the sites of experts, without those that were not measured.
        tokens: how many tokens each got, int64 ``[sites]`` on the CPU.
    """

    sites: tuple[Site, ...]
    tokens: torch.Tensor

    @classmethod
    def of(
        cls,
        space: ChannelSpace,
        statistics: Sequence[Statistics],
        sides: Sequence[Statistics] = (),
        left_out: Set[str] = frozenset(),
    ) -> ExpertTokens:
        """The fewest tokens that each site got in any of these statistics of the space.

        Args:
            space: the channel space.
            statistics: those that are judged.
            sides: those of each model, which show what was measured at all, if others are judged.
            left_out: names of sites that were not to be measured.
        """
        sites = [site for site in space if site.expert is not None]
        firsts = torch.tensor([site.offset for site in sites], dtype=torch.int64)
        rows = [one.rows_counted(firsts) for one in statistics] if sites else []
        tokens = torch.stack(rows).amin(0) if rows else firsts
        rows += [one.rows_counted(firsts) for one in sides] if sites else []
        most = torch.stack(rows).amax(0).tolist() if rows else []
        measured = {site.kind for site, seen in zip(sites, most, strict=True) if seen}
        kept = [
            number
            for number, (site, seen) in enumerate(zip(sites, most, strict=True))
            if seen or (site.kind in measured and site.name not in left_out)
        ]
        return cls(tuple(sites[number] for number in kept), tokens[torch.tensor(kept, dtype=torch.int64)])

    def fewer(self, least: int) -> list[Site]:
        """The sites that got fewer tokens than ``least``."""
        return [self.sites[number] for number in (self.tokens < least).nonzero().flatten().tolist()]


def tokens_needed(space: ChannelSpace, least: int = MIN_EXPERT_TOKENS) -> torch.Tensor:
    """The counted tokens that each site needs to be ranked by activations: some of an expert; int64 ``[sites]``."""
    return torch.tensor([0 if site.expert is None else least for site in space], dtype=torch.int64)


def expert_of(site: Site) -> str:
    """What the sites of one expert have in common: ``model.layers.0.mlp.experts[3]``."""
    return site.name.rpartition(".")[0]


@dataclass(frozen=True)
class FewTokens:
    """The experts of a profile that saw fewer counted tokens than their statistics need.

    Attributes:
        experts: how many were measured.
        few: how many saw fewer than ``least`` tokens.
        none: how many of these saw none.
        least: the threshold.
        worst: the layer's experts of which most saw too few.
        worst_few, worst_experts: how many of them did, and how many there are.
        both: whether only tokens count that met the same expert in donor and target.
    """

    experts: int
    few: int
    none: int
    least: int
    worst: str | None
    worst_few: int
    worst_experts: int
    both: bool

    @classmethod
    def of(cls, profile: Profile, least: int = MIN_EXPERT_TOKENS) -> FewTokens | None:
        """What a profile says of its experts; None if it measured none. Of a pair, tokens in both models count.

        >>> from act.profiles.experts import FewTokens
        >>> FewTokens.of(act.profile(model, corpus)) is None  # a dense model
        True
        """
        if not profile.of_tokens:
            return None
        both = isinstance(profile, PairStatistics)
        found = (
            ExpertTokens.of(profile.space, [profile.difference], [profile.donor, profile.target], profile.left_out)
            if isinstance(profile, PairStatistics)
            else ExpertTokens.of(profile.space, [profile], left_out=profile.left_out)
        )
        tokens: dict[str, int] = {}
        for site, seen in zip(found.sites, found.tokens.tolist(), strict=True):
            tokens.setdefault(expert_of(site), seen)
        if not tokens:
            return None
        layers = Counter(map(_layer_of, tokens))
        few = Counter(_layer_of(name) for name, seen in tokens.items() if seen < least)
        worst = max(few, key=lambda name: few[name] / layers[name], default=None)
        none = sum(not seen for seen in tokens.values())
        of_worst = (few[worst], layers[worst]) if worst else (0, 0)
        return cls(len(tokens), few.total(), none, least, worst, *of_worst, both)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """One sentence, without a full stop."""
        tokens = f"{self.least} counted tokens{' in both models' if self.both else ''}"
        if not self.few:
            return f"each of {self.experts:,} experts saw at least {tokens}"
        return (
            f"{self.few:,} of {self.experts:,} experts saw fewer than {tokens} ({self.none:,} saw none), most in "
            f"{self.worst} ({self.worst_few:,} of {self.worst_experts:,})"
        )


def _layer_of(expert: str) -> str:
    """The experts module of an expert: ``model.layers.0.mlp.experts``."""
    return expert.rpartition("[")[0]

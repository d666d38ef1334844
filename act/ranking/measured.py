"""What a score is computed from: a pair profile, one with swapped outputs, or an attribution profile."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from act.data.corpus import Corpus
from act.profiles.profile import Profile
from act.profiling.attribution import attribute
from act.profiling.job import TokenBudget
from act.profiling.measure import profile_pair
from act.profiling.observer import Observer
from act.ranking.scores import ScoreName, score_named


def measured_for(
    score: ScoreName,
    donor: nn.Module,
    target: nn.Module,
    corpus: Corpus,
    *,
    token_budget: TokenBudget = None,
    observers: Sequence[Observer] = (),
) -> Profile:
    """Measure donor and target on a corpus as a score needs it; ``observers`` are called between batches.

    Raises:
        ActError: as :func:`act.profile_pair` and :func:`act.attribute`; an unknown score.
    """
    if score == "attribution":
        return attribute(donor, target, corpus, token_budget=token_budget, observers=observers)
    swap = score_named(score).needs_swap
    return profile_pair(donor, target, corpus, token_budget=token_budget, swap=swap, observers=observers)

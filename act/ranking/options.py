"""The options of :func:`act.rank` for functions that rank on the way: declared by ``rank`` alone, with its defaults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, TypedDict, TypeVar

import torch

from act.core.near import meant
from act.ranking.attributed import Cost
from act.ranking.granularity import Granularity
from act.ranking.normalize import Normalize
from act.ranking.rank import rank
from act.ranking.scores import ScoreName
from act.ranking.selection import Scope

P = ParamSpec("P")
T = TypeVar("T")


class RankOptions(TypedDict, total=False):
    """What channels are ranked by, as keywords of :func:`act.rank`, which documents them and has their defaults.

    >>> from act.ranking.options import RankOptions
    >>> options = RankOptions(score="mean-shift", normalize="std", exclude=["head"])
    >>> pair = act.profile_pair(donor, target, corpus)
    >>> len(act.rank(pair, **options, count=10))
    10
    """

    score: ScoreName | torch.Tensor | None
    normalize: Normalize
    scope: Scope
    granularity: Granularity | Sequence[Granularity]
    include: str | Iterable[str]
    exclude: str | Iterable[str]
    seed: int
    min_expert_tokens: int
    cost: Cost


def with_rank_options(function: Callable[P, T]) -> Callable[P, T]:
    """Spell :class:`RankOptions` out in the signature of a function that takes them as ``**options``.

    A keyword that neither has is a TypeError at once, not when something is ranked.
    """
    options = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(rank).parameters.items()
        if name in RankOptions.__annotations__
    ]
    own = inspect.signature(function)
    named = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    signature = own.replace(parameters=[*named, *options])

    @functools.wraps(function)
    def called(*given: P.args, **keywords: P.kwargs) -> T:
        try:
            signature.bind(*given, **keywords)
        except TypeError as error:
            unknown = next((name for name in keywords if name not in signature.parameters), None)
            takes = ", ".join(one.name for one in named if one.default is inspect.Parameter.empty)
            more = meant(unknown, signature.parameters) if unknown else f"; it takes {takes}, and more by name"
            raise TypeError(f"act.{function.__name__}: {error}{more}") from None
        return function(*given, **keywords)

    called.__signature__ = signature  # type: ignore[attr-defined]  # what inspect, help() and editors show
    return called

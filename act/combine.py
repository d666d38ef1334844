"""Shards of one run, made anywhere and in any order, merged to the profile of the whole corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from act.checkpoint import first_difference
from act.errors import ActError
from act.moments import Moments
from act.profile import Profile, require_same_models

SUMMED = ("tokens", "counted", "padding", "sequences", "records", "seconds", "waited")
PER_SHARD = (*SUMMED, "shard", "paths", "nonfinite", "irregular", "skipped")


def combine(shards: Iterable[Profile], *, partial: bool = False) -> Profile:
    """Merge the profiles that ``shard=(i, n)`` gave, in the order of i, whatever the order given.

    Args:
        shards: one profile of each shard.
        partial: allow some to be missing; the source then says which are there.

    Raises:
        ActError: none; not a shard, or one of another run; one that is there twice, or is missing.
    """
    by_number: dict[int, Profile] = {}
    size = 0
    for profile in shards:
        number, of = _shard(profile)
        size = size or of
        if of != size:
            raise ActError(f"shard {number}/{of} is of a run of {of} shards, others are of {size}; give one run's")
        if number in by_number:
            raise ActError(f"shard {number}/{size} was given twice; give each shard once, or its text counts twice")
        by_number[number] = profile
    if not by_number:
        raise ActError("no shard was given; give the profiles that --shard i/n made")
    missing = [f"{number}/{size}" for number in range(size) if number not in by_number]
    if missing and not partial:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ActError(f"missing shards: {some}; run them too, or leave them out on purpose with --partial")
    numbers = sorted(by_number)
    first = by_number[numbers[0]]
    merged = Moments(first.space, pair=first.moments.pair)
    for number in numbers:
        _require_same_run(first, by_number[number], f"shards {numbers[0]}/{size} and {number}/{size}")
        merged.merge(by_number[number].moments)
    corpora = [by_number[number].source["corpora"][0] for number in numbers]
    corpus: dict[str, Any] = {
        **{name: value for name, value in corpora[0].items() if name not in PER_SHARD},
        "shards": numbers if missing else size,
        **({"of": size} if missing else {}),
        **{name: sum(each[name] for each in corpora) for name in SUMMED},
        "paths": next((each["paths"] for each in corpora if each["paths"]), {}),
        "nonfinite": merged.nonfinite(),
        "irregular": dict(sum((Counter(each["irregular"]) for each in corpora), Counter())),
        "skipped": [skipped for each in corpora for skipped in each["skipped"]],
    }
    corpus["seconds"], corpus["waited"] = round(corpus["seconds"], 3), round(corpus["waited"], 3)
    return type(first)(merged, {**first.source, "job": None, "corpora": [corpus]})


def _shard(profile: Profile) -> tuple[int, int]:
    corpora = profile.source["corpora"]
    if len(corpora) != 1 or "shard" not in corpora[0]:
        raise ActError(f"the profile of {corpora[0]['name']} is not of a shard; give those that --shard i/n made")
    number, size = corpora[0]["shard"]
    return number, size


def _require_same_run(first: Profile, other: Profile, which: str) -> None:
    if type(first) is not type(other):
        raise ActError(f"{which} are a {type(first).__name__} and a {type(other).__name__}; give one run's")
    require_same_models(first, other)
    for part, one, two in (
        ("settings", first.source["settings"], other.source["settings"]),
        ("corpora", *({k: v for k, v in p.source["corpora"][0].items() if k not in PER_SHARD} for p in (first, other))),
    ):
        different = first_difference(two, one)
        if different:
            raise ActError(f"{which} have different {part} ({different}); give the shards of one run")

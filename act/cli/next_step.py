"""The last line of a command: what most people type next, with the paths of what was just made.

Its outputs have names that nothing has yet. What is not known is in capitals: see :data:`RECORDS`.
"""

from __future__ import annotations

import itertools
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from act.profiles.profile import Profile
    from act.profiles.provenance import ModelRead

log = logging.getLogger(__name__)
Words = list[str | Path]

MENDED = "mended"
"""The folder of a transferred model, beside what it is made from."""
RECORDS = "TEST.jsonl"
"""Stands for a file of records that were used for nothing else, which nobody but the user knows."""


def after_profiles(profiles: Mapping[Path, Profile]) -> None:
    """Rank the channels of a pair or an attribution, write those of one model as a table, or combine shards.

    Args:
        profiles: by file, one for each ability: the first is taken for what to recover, the others for what to keep.
    """
    from act.profiles.attribution import AttributionProfile

    (first, profile), *others = profiles.items()
    if profile.provenance.corpora[-1].shard:
        made = first.parent if others else first
        return _say(["combine", made, "...", "--output", _free(made.with_name(f"whole{made.suffix}"))])
    if "donor" not in profile.provenance.models:
        return _say(["export", first, "--output", _free(first.with_name(f"{first.stem}.csv"))])
    attributed = isinstance(profile, AttributionProfile)
    score: Words = ["--score", "attribution"] if attributed else ["--score", "match"] if profile.swapped else []
    keep: Words = [] if attributed else [word for path, _ in others for word in ("--keep-profile", path)]
    _say(["rank", first, *score, *keep, "--top", "5%", "--output", _set_of(first)])


def after_rank(channels: Path, models: Mapping[str, ModelRead]) -> None:
    """Transfer the channels between the models that they were ranked for."""
    donor, target = (models[side].name if side in models else side.upper() for side in ("donor", "target"))
    _say(_transfer(channels, donor, target, 0.4))


def after_sweep(profile: Path, donor: str, target: str, top: float, strength: float, ranking: Sequence[str]) -> None:
    """Rank by the share of a setting, and transfer at its strength.

    Args:
        ranking: the options by which the sweep ranked, as they are typed.
    """
    channels = _set_of(profile)
    ranked: Words = ["rank", profile, *ranking, "--top", f"{100 * top:g}%", "--output", channels]
    _say(ranked, _transfer(channels, donor, target, strength))


def after_transfer(target: str, output: Path) -> None:
    """Apply a patch, or judge a model beside the target."""
    if output.suffix == ".safetensors":
        return _say(["patch", "apply", output, "--model", target, "--output", _free(output.with_name(MENDED))])
    after_change(target, output)


def after_change(before: str, output: Path) -> None:
    """Judge a model beside what it was before, on records that were used for nothing else."""
    _say(["evaluate", "--before", before, "--model", output, "--corpus", RECORDS])


def options_of(given: Mapping[str, Any]) -> list[str]:
    """Options as they are typed, from their values by name; a list is an option that is repeated."""
    each = [(name, value if isinstance(value, list) else [value]) for name, value in given.items()]
    return [word for name, values in each for one in values for word in (f"--{name.replace('_', '-')}", str(one))]


def _transfer(channels: Path, donor: str, target: str, strength: float) -> Words:
    models: Words = ["--donor", donor, "--target", target, "--channels", channels]
    return ["transfer", *models, "--strength", f"{strength:g}", "--output", _free(channels.with_name(MENDED))]


def _set_of(profile: Path) -> Path:
    return _free(profile.with_name(f"{profile.stem}-channels.safetensors"))


def _free(path: Path) -> Path:
    """A path, or the first of those with a number at its name's end, that nothing has yet."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not os.path.lexists(one))


def _say(*commands: Words) -> None:
    if log.isEnabledFor(logging.INFO):
        print("next:", " && ".join(shlex.join(["act-profile", *map(str, words)]) for words in commands))

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
LOOKED_FOR = 64
"""Of so many shards, those that lie in one folder are looked for; of more, their headers would take too long."""
RECORDS = "TEST.jsonl"
"""Stands for a file of records that were used for nothing else, which nobody but the user knows."""
RECORDS_TO_KEEP = "KEEP-TEST.jsonl"
"""Stands for such a file of what to keep."""

ABILITY = "ABILITY.safetensors"
"""Stands for the profile of what is to be recovered, where only a text to keep was measured."""


def after_profiles(profiles: Mapping[Path, Profile], folder: Path | None = None, *, to_keep: bool = False) -> None:
    """Rank the channels of a pair or an attribution, write those of one model as a table, or combine shards.

    Args:
        profiles: by file, one for each ability: the first is taken for what to recover, the others for what to keep.
        folder: that was made for them; None: the one profile is no part of one.
        to_keep: the one profile is of a pair on a text that the target reads better than the donor.
    """
    from act.profiles.attribution import AttributionProfile

    (first, profile), *others = profiles.items()
    made = folder or first
    if shard := profile.provenance.corpora[-1].shard:
        return _after_shard(made, shard[1])
    if "donor" not in profile.provenance.models:
        table = made.with_name(f"{made.name}-tables") if folder else made.with_name(f"{made.stem}.csv")
        return _say(["export", made, "--output", _free(table)])
    attributed = isinstance(profile, AttributionProfile)
    score: Words = ["--score", "attribution"] if attributed else ["--score", "match"] if profile.swapped else []
    if to_keep and not attributed:
        channels = _free(made.with_name("channels.safetensors"))
        _say(["rank", ABILITY, *score, "--keep-profile", first, "--top", "5%", "--output", channels])
        return _add(f"{ABILITY} is the profile of a text to recover, measured as this one was")
    keep: Words = [] if attributed else [word for path, _ in others for word in ("--keep-profile", path)]
    _say(["rank", first, *score, *keep, "--top", "5%", "--output", _set_of(first, made.parent)])
    if others:
        likewise = ", ".join(path.stem for path, _ in others)
        _add(f"likewise for {likewise}{', with the others behind --keep-profile' if keep else ''}")


def _after_shard(made: Path, size: int) -> None:
    """Combine the shards of a run if all are here, or say what is missing."""
    from act.profiles.combine import shards_beside

    whole = _free(made.with_name(f"whole{made.suffix}"))
    if size > LOOKED_FOR:
        folder = shlex.quote(str(made.parent))
        return _add(
            f"next: the same for each --shard from 0/{size} to {size - 1}/{size}, with an --output of its own in "
            f"{folder}; then act-profile combine, with all of these, and --output {shlex.quote(str(whole))}"
        )
    found = shards_beside(made)
    if missing := [number for number in range(size) if number not in found]:
        return _add(
            f"next: the same {_with_shards(missing, size)}, and an --output of its own in "
            f"{shlex.quote(str(made.parent))}; the last one says how all are combined"
        )
    _say(["combine", *found.values(), "--output", whole])


def _with_shards(numbers: Sequence[int], size: int) -> str:
    """The shards that are missing, in words: a few one by one, more in runs of numbers that follow each other."""
    if len(numbers) <= 3:
        return f"with {' and with '.join(f'--shard {number}/{size}' for number in numbers)}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    named = [f"{run[0]}/{size}" if len(run) == 1 else f"{run[0]}/{size} to {run[-1]}/{size}" for run in runs]
    return f"for each --shard of {', '.join(named)}"


def after_rank(channels: Path, models: Mapping[str, ModelRead], profiles: Sequence[Path] = ()) -> None:
    """Transfer the channels between the models that they were ranked for, as far as these are found.

    Args:
        profiles: what they were ranked by: models are looked for around these and the channels.
    """
    named = {side: models[side].name for side in ("donor", "target") if side in models}
    found = {side: place for side, name in named.items() if (place := _place_of(name, [*profiles, channels]))}
    _say(_transfer(channels, found.get("donor", "DONOR"), found.get("target", "TARGET"), 0.4))
    if lost := [f"{side.upper()} is where {name} lies now" for side, name in named.items() if side not in found]:
        _add(", ".join(lost))


def after_sweep(profile: Path, donor: str, target: str, top: float, strength: float, ranking: Sequence[str]) -> None:
    """Rank by the share of a setting, and transfer at its strength.

    Args:
        ranking: the options by which the sweep ranked, as they are typed.
    """
    channels = _set_of(profile)
    ranked: Words = ["rank", profile, *ranking, "--top", f"{100 * top:g}%", "--output", channels]
    _say(ranked, _transfer(channels, donor, target, strength))


def after_figures(figures: Path, profile: Path, *, others: bool = False) -> None:
    """Put the figures of a sweep and the profile that it ranked by on one page; ``others``: after another command."""
    words: Words = ["report", figures, profile, "--output", _free(figures.with_name(f"{profile.stem}-report"))]
    if others:
        return _add(f"or, for one page with where the channels lie: {_typed(words)}")
    _say(words)


def after_transfer(target: str, output: Path, *, kept: bool = False) -> None:
    """Apply a patch, or judge a model beside the target; ``kept``: records of what to keep were given, too."""
    if output.suffix == ".safetensors":
        return _say(["patch", "apply", output, "--model", target, "--output", _free(output.with_name(MENDED))])
    after_change(target, output, kept=kept)


def after_change(before: str, output: Path, *, kept: bool = False) -> None:
    """Judge a model beside what it was before, on records that were used for nothing else."""
    keep: Words = ["--keep", RECORDS_TO_KEEP] if kept else []
    _say(["evaluate", "--before", before, "--model", output, "--corpus", RECORDS, *keep])


def options_of(given: Mapping[str, Any]) -> list[str]:
    """Options as they are typed, from their values by name; a list is an option that is repeated."""
    each = [(name, value if isinstance(value, list) else [value]) for name, value in given.items()]
    return [word for name, values in each for one in values for word in (f"--{name.replace('_', '-')}", str(one))]


def _transfer(channels: Path, donor: str, target: str, strength: float) -> Words:
    models: Words = ["--donor", donor, "--target", target, "--channels", channels]
    return ["transfer", *models, "--strength", f"{strength:g}", "--output", _free(channels.with_name(MENDED))]


def _place_of(model: str, files: Sequence[Path]) -> str | None:
    """A model by a name that is true here: its folder, from here or one around these files, or its hub id."""
    from act.core.near import is_local
    from act.models.hub import identifier, is_here

    if is_here(model):
        return model
    around = [folder for file in files if not os.path.isabs(model) for folder in file.absolute().parents]
    if found := next((one for one in around if (one / model / "config.json").is_file()), None):
        return os.path.relpath(found / model)
    return model if identifier(model).count("/") == 1 and not is_local(model) else None


def _set_of(profile: Path, folder: Path | None = None) -> Path:
    """A channel set beside a profile, or in another folder: beside that of several profiles, which stays as it is."""
    return _free((folder or profile.parent) / f"{profile.stem}-channels.safetensors")


def _free(path: Path) -> Path:
    """A path, or the first of those with a number at its name's end, that nothing has yet."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not os.path.lexists(one))


def _say(*commands: Words) -> None:
    _add("next: " + " && ".join(map(_typed, commands)))


def _typed(words: Words) -> str:
    return shlex.join(["act-profile", *map(str, words)])


def _add(line: str) -> None:
    if log.isEnabledFor(logging.INFO):
        print(line)

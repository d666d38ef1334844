"""Merge the profiles of the shards of one run, which may be made anywhere and in any order."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from act.core.differences import first_difference
from act.core.errors import ActError, option
from act.core.tensor_files import kind_of, load_tensors, understood
from act.data.stream import nothing_counted
from act.profiles.attribution import ATTRIBUTION, AttributionProfile, load_attribution
from act.profiles.attribution import SCHEMA as ATTRIBUTION_SCHEMA
from act.profiles.moments import Moments
from act.profiles.profile import (
    SCHEMA,
    PairProfile,
    Profile,
    StoredProfile,
    require_same_blocks,
    require_same_models,
)
from act.profiles.provenance import CorpusRead, Provenance


def combine(shards: Iterable[Profile | str | Path], *, partial: bool = False, without: Collection[int] = ()) -> Profile:
    """Merge the profiles of the shards of one run into the profile of the whole corpus.

    Shards are merged in the order of their numbers, so the order in which they are given changes no bit.

    Args:
        shards: the profile of each ``shard=(i, n)``, or its file. The headers of all files are read first, then one
            file at a time, so memory never holds more than two profiles.
        partial: allow missing shards; the provenance then lists those that were merged.
        without: numbers of shards that were run and found nothing of this text, as of an ability that labels only some
            records; they are not missing.

    Returns:
        A :class:`act.PairProfile` if the shards are pair profiles.

    Raises:
        ActError: no shard is given; a profile is not of a shard, or is of another run; a shard is given twice or
            missing; nothing was counted.

    >>> from act.profiles.combine import combine
    >>> combine(act.profile(model, corpus, shard=(number, 2)) for number in range(2))
    <Profile of LlamaForCausalLM over records: 940 channels at 21 sites, 24 tokens counted>
    """
    by_number: dict[int, Profile | StoredProfile] = {}
    called: dict[int, str] = {}
    size = 0
    for given in shards:
        shard = given if isinstance(given, Profile) else opened(Path(given))
        number, of = shard_of(shard)
        size = size or of
        if of != size:
            raise ActError(
                f"shard {number}/{of} is of a run of {of} shards, and others are of {size}; give those of one run"
            )
        name = "" if isinstance(given, Profile) else str(given)
        if number in by_number:
            both = f" ({called[number]} and {name})" if name and called[number] not in ("", name) else ""
            raise ActError(
                f"shard {number}/{size} was given twice{both}; give each shard once, or its text counts twice"
            )
        by_number[number], called[number] = shard, name
    if not by_number:
        raise ActError("no shard was given; give the profiles that --shard i/n made")
    missing = [f"{number}/{size}" for number in range(size) if number not in by_number and number not in without]
    if missing and not partial:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ActError(f"missing shards: {some}; run them too, or merge without them with --partial")
    numbers = sorted(by_number)
    first = by_number[numbers[0]]
    for number in numbers[1:]:
        _require_same_run(first, by_number[number], f"shards {numbers[0]}/{size} and {number}/{size}")
    corpora = [by_number[number].provenance.corpora[0] for number in numbers]
    if not any(each.counted for each in corpora):
        raise ActError(nothing_counted(corpora[0].name))
    merged = Moments(first.space, pair=first.pair, swap=first.swapped)
    for number in numbers:
        shard = by_number[number]
        merged.merge((shard if isinstance(shard, Profile) else shard.load()).moments)
    there = {"shards": tuple(numbers), "of": size} if missing else {"shards": size}
    corpus = replace(CorpusRead.merged(corpora, merged.nonfinite()), **there)
    provenance = first.provenance.over(corpus)
    if isinstance(first, AttributionProfile):
        kept = zip(*(by_number[number].kept for number in numbers), strict=True)  # type: ignore[union-attr]
        return AttributionProfile(merged, provenance, first.distance, [_attributions(each, partial) for each in kept])
    return (PairProfile if first.pair else Profile)(merged, provenance)


def shards_beside(path: Path) -> dict[int, Path]:
    """The shards of the run that a shard is of, by number, as far as they lie in its folder under any names.

    Of each file there the header is read, and a folder of profiles, if ``path`` is one, has all of its abilities.
    """
    name = min(each.name for each in path.glob("*.safetensors")) if path.is_dir() else None
    own = _source(path / name if name else path)
    assert own is not None and own.corpora[0].shard is not None
    found = {own.corpora[0].shard[0]: path}
    for each in sorted(path.absolute().parent.iterdir()):
        source = _source(each / name if name else each)
        if source and len(source.corpora) == 1 and (shard := source.corpora[0].shard) and _of_one_run(own, source):
            found.setdefault(shard[0], path.with_name(each.name))
    return dict(sorted(found.items()))


def _source(path: Path) -> Provenance | None:
    """The provenance of a profile of any kind; None for another file, or none."""
    schema = {"act-profile": SCHEMA, ATTRIBUTION: ATTRIBUTION_SCHEMA}.get(kind_of(path) or "")
    if schema is None:
        return None
    try:
        _, header = load_tensors(path, schema, header_only=True)
        with understood(path):
            return Provenance.from_json(header["source"])
    except ActError:  # of another version, or damaged
        return None


def _of_one_run(first: Provenance, other: Provenance) -> bool:
    def of_any_shard(shard: Provenance) -> list[object]:
        text = shard.corpora[0]
        rest = {**shard.to_json(), "corpora": None, "job": None, "versions": None}
        return [text.shared_by_shards(), text.shard and text.shard[1], rest]

    return of_any_shard(first) == of_any_shard(other)


def opened(path: Path) -> Profile | StoredProfile:
    """A profile of which only the header was read, or an attribution, which is read whole."""
    return load_attribution(path) if kind_of(path) == ATTRIBUTION else StoredProfile(path)


def _attributions(shards: Iterable[Profile], partial: bool) -> AttributionProfile:
    merged = combine(shards, partial=partial)
    assert isinstance(merged, AttributionProfile)
    return merged


def shard_of(profile: Profile | StoredProfile) -> tuple[int, int]:
    """The shard ``(i, n)`` of a profile; raises :class:`ActError`, which names it, if it is of none."""
    corpora = profile.provenance.corpora
    if len(corpora) != 1 or corpora[0].shard is None:
        names = ", ".join(corpus.name for corpus in corpora) or "no text"
        where = f" ({profile.path})" if isinstance(profile, StoredProfile) else ""
        merged = ", but of several that are merged already" if any(corpus.shards for corpus in corpora) else ""
        raise ActError(f"the profile of {names}{where} is not of a shard{merged}; give those that --shard i/n made")
    return corpora[0].shard


def _require_same_types(first: Profile | StoredProfile, other: Profile | StoredProfile, which: str) -> None:
    theirs = other.provenance.models
    for side, model in first.provenance.models.items():
        types = model.dtype, theirs[side].dtype
        if None not in types and types[0] != types[1]:
            raise ActError(
                f"{which} were measured in different types: the {side} in {types[0]} and in {types[1]}; measure every "
                f"shard in one ({option('--dtype', 'the dtype it is loaded in')})"
            )


def _require_same_run(first: Profile | StoredProfile, other: Profile | StoredProfile, which: str) -> None:
    kept, others = (len(p.kept) if isinstance(p, AttributionProfile) else None for p in (first, other))
    if kept != others:
        raise ActError(f"{which} are not of one attribution, with the same texts to keep; give those of one run")
    if first.pair != other.pair:
        raise ActError(f"{which} are of a pair of models and of a single model; give those of one run")
    require_same_blocks(first, other, which)
    require_same_models(first, other)
    _require_same_types(first, other, which)
    for part, one, two in (
        ("settings", *(p.provenance.settings.to_json() for p in (first, other))),
        ("corpora", *(p.provenance.corpora[0].shared_by_shards() for p in (first, other))),
    ):
        different = first_difference(two, one)
        if different:
            raise ActError(f"{which} have different {part} ({different}); give the shards of one run")

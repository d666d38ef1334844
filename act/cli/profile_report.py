"""The report of ``run``, ``pair`` and ``combine`` on the profiles they made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from act.cli.console import print_json, print_table, some, warn
from act.cli.next_step import after_profiles
from act.cli.tables import filled
from act.core.counted import counted
from act.core.units import duration

if TYPE_CHECKING:
    from act.data.stream import Skipped
    from act.evaluation.sides import Sides
    from act.profiles.attribution import AttributionProfile
    from act.profiles.coverage import Measured
    from act.profiles.experts import FewTokens
    from act.profiles.profile import Profile

log = logging.getLogger(__name__)


def report_profile(profile: Profile, output: Path, as_json: bool, losses: Mapping[str, Sides] | None = None) -> None:
    """Print what a run measured and where its profile is, and warn of anything unusual.

    Args:
        losses: of donor and target on the same tokens, by text, where both ran; for JSON, since people saw them.
    """
    if as_json:
        print_json({**_summary(profile, output, _tokens([profile])), **_losses(losses)})
        return _warn({"": profile})
    _print_summary({"": profile}, output)
    _warn({"": profile})
    found = [*(losses or {}).values()]
    after_profiles({output: profile}, to_keep=bool(found) and all(sides.swapped for sides in found))


def report_profiles(
    profiles: Mapping[str, Profile], folder: Path, as_json: bool, losses: Mapping[str, Sides] | None = None
) -> None:
    """The same for the profiles of several abilities; with ``as_json``, as one JSON object."""
    outputs = {ability: folder / f"{ability}.safetensors" for ability in profiles}
    if as_json:
        together = _tokens(profiles.values())
        results = {ability: _summary(profile, outputs[ability], together) for ability, profile in profiles.items()}
        print_json({"output": str(folder), "abilities": results, **_losses(losses)})
        return _warn(profiles)
    _print_summary(profiles, folder)
    _warn(profiles)
    better = {ability for ability, sides in (losses or {}).items() if sides.swapped}  # in the target: to be kept
    in_order = sorted(profiles, key=lambda ability: ability in better)
    after_profiles({outputs[ability]: profiles[ability] for ability in in_order}, folder)


def _tokens(profiles: Iterable[Profile]) -> int:
    """What a run has read of all its abilities: its time is that of all."""
    return sum(one.provenance.corpora[-1].tokens for profile in profiles for one in (profile, *_kept(profile)))


def _summary(profile: Profile, output: Path, together: int) -> dict[str, Any]:
    """Plain data; ``together``: the tokens that the run has read of all abilities."""
    read = profile.provenance.corpora[-1]
    return {
        "output": str(output),
        "channels": len(profile.space),
        "sites": len(profile.space.sites),
        "records": read.records,
        "sequences": read.sequences,
        "tokens": read.tokens,
        "computed": read.tokens - read.shared,
        "counted": read.counted,
        "padding": read.padding,
        "seconds": read.seconds,
        "padding_share": round(read.padding / max(read.padding + read.tokens - read.shared, 1), 4),
        "busy_share": round(1 - read.waited / max(read.seconds, 1e-9), 4),
        "tokens_per_second": round(together / max(read.seconds, 1e-9), 1),
        "backend": profile.provenance.settings.backend,
        "paths": dict(read.paths),
        "nonfinite": dict(read.nonfinite),
        "irregular": dict(read.irregular),
        **({"unswapped": dict(read.unswapped)} if profile.swapped else {}),
        "skipped": [skipped._asdict() for skipped in read.skipped],
        **({"shard": read.shard} if read.shard else {}),
        **({"shards": read.shards} if read.shards else {}),
        **({"of": read.of} if read.of else {}),
        **({"stable": read.extra["stable"]} if "stable" in read.extra else {}),
        **({"coverage": None} if (measured := _measured(profile)) is None else measured.to_json()),
        "moe_all_experts": profile.provenance.settings.moe_all_experts,
        "experts": None if (few := _few_tokens(profile)) is None else few.to_json(),
        "uncovered": list(profile.space.uncovered),
        **({"kept": [_read(one) for one in kept]} if (kept := _kept(profile)) else {}),
    }


def _read(profile: Profile) -> dict[str, Any]:
    """What was read of a text, in figures that a run's own also has."""
    read = profile.provenance.corpora[-1]
    return {"corpus": read.name, "records": read.records, "tokens": read.tokens, "counted": read.counted}


def _losses(losses: Mapping[str, Sides] | None) -> dict[str, Any]:
    """The losses of donor and target as plain data; nothing where they did not run."""
    return {"losses": [{"corpus": name, **sides.to_json()} for name, sides in losses.items()]} if losses else {}


def _kept(profile: Profile) -> Sequence[AttributionProfile]:
    """What was read of texts to keep, in the same run; empty but for an attribution."""
    from act.profiles.attribution import AttributionProfile

    return profile.kept if isinstance(profile, AttributionProfile) else ()


def _print_summary(profiles: Mapping[str, Profile], output: Path) -> None:
    """Print what was read of each text and where its profile is, then what was measured, and at which speed."""
    first = next(iter(profiles.values()))
    names = ["text", "records", "tokens", "counted" if first.of_tokens else "in the loss", "file"]
    rows = [_row(name, one, f"{name}.safetensors" if name else "") for name, one in profiles.items()]
    rows += [_row("", kept, "", ", to keep") for kept in _kept(first)]  # of all abilities alike
    print_table(f"Written to {output}{'' if '' in profiles else '/'}", *filled(names, rows))
    for line in _told(profiles, _measured_in):
        print(line)
    print(_speed(list(profiles.values())))
    for line in _told(profiles, _certainty):
        print(line)
    for line in _told(profiles, _plumbing):
        log.debug(line)


def _row(name: str, profile: Profile, file: str, role: str = "") -> list[str]:
    read = profile.provenance.corpora[-1]
    called = name or read.ability or PurePath(read.name).name
    return [called + role, f"{read.records:,}", f"{read.tokens:,}", f"{read.counted:,}", file]


def _measured_in(profile: Profile) -> list[str]:
    """Which channels were measured, of which parts of the model."""
    from act.profiles.coverage import swapped_share

    space = profile.space
    channels = f"{counted(len(space), 'channel')} of {counted(len(space.sites), 'site')}"
    read, measured = profile.provenance.corpora[-1], _measured(profile)
    lines = [f"{channels} ({', '.join(measured.kinds)}): {measured}" if measured else channels]
    if _empty(profile):
        lines = [
            "no record falls to it: the text has fewer records than there are shards; combine takes it like the rest"
        ]
    if read.part or read.shards:
        lines.insert(0, f"part of the text: {read.part}" if read.part else f"the whole text, from {read.shards} shards")
    if profile.swapped:
        lines += [f"swapped outputs {swapped_share(profile)}"]
    if few := _few_tokens(profile):
        every = ", every token through every expert" if profile.provenance.settings.moe_all_experts else ""
        lines += [f"experts: {few}{every}"]
    return lines


def _empty(profile: Profile) -> bool:
    """Whether a profile is of a shard of a short text, to which none of its records falls."""
    read = profile.provenance.corpora[-1]
    return read.shard is not None and not read.records and not read.skipped


def _speed(profiles: Sequence[Profile]) -> str:
    """How long one pass over all texts took, and what ran."""
    reads = [one.provenance.corpora[-1] for profile in profiles for one in (profile, *_kept(profile))]
    tokens, shared, seconds = sum(read.tokens for read in reads), sum(read.shared for read in reads), reads[0].seconds
    spared = f" ({tokens - shared:,} computed: others begin as a text before)" if shared else ""
    kernels = profiles[0].provenance.settings.backend
    return (
        f"{tokens:,} tokens{spared} in {duration(seconds)}, {tokens / max(seconds, 1e-9):,.0f} a second, "
        f"with {kernels} kernels"
    )


def _certainty(profile: Profile) -> Iterator[str]:
    """Of a run that stopped before its text ended, how certain its top channels are."""
    if not (stable := profile.provenance.corpora[-1].extra.get("stable")):
        return
    yield (
        f"stopped after {counted(stable['documents'], 'record')}: at least {stable['certain_overlap']:.1%} of the "
        f"top {stable['top']:.2%} by {stable['score']} is also that of the whole corpus "
        f"(confidence {stable['confidence']:.0%})"
    )
    if profile.swapped and stable["score"] == "match":
        yield "that is certain of match without --keep: with it, the top channels may still change with more text"
    elif profile.swapped:
        yield f"that is certain of {stable['score']} alone: match and match-contrast may still change with more text"


def _plumbing(profile: Profile) -> Iterator[str]:
    """What explains a speed, and what each kind of module has of the parameters."""
    from act.profiles.coverage import percent

    read = profile.provenance.corpora[-1]
    padding = read.padding / max(read.padding + read.tokens - read.shared, 1)
    busy = 1 - read.waited / max(read.seconds, 1e-9)
    yield f"padding {padding:.1%}, time in the model (not waiting for text) {busy:.1%}"
    if read.paths:  # none if a run that was continued had nothing left to read
        yield f"sites by what reads them: {', '.join(f'{path} {sites}' for path, sites in read.paths.items())}"
    if measured := _measured(profile):
        kinds = ", ".join(f"{kind} {percent(share)}" for kind, share in measured.kinds.items())
        yield f"coverage by kind: {kinds}"


def _told(profiles: Mapping[str, Profile], lines_of: Callable[[Profile], Iterable[str]]) -> list[str]:
    """What is to be said of profiles, each sentence once, with the names of the texts if it is not said of all."""
    found: dict[str, list[str]] = {}
    for name, profile in profiles.items():
        for line in lines_of(profile):
            found.setdefault(line, []).append(name)
    return [line if len(of) == len(profiles) else f"{', '.join(of)}: {line}" for line, of in found.items()]


def _warn(profiles: Mapping[str, Profile]) -> None:
    """Warn of anything unusual."""
    for message in _told(profiles, _unusual):
        warn(message)
    # A bad record of a labelled corpus may belong to any ability, so it is in the profile of each.
    skipped = [each for profile in profiles.values() for each in profile.provenance.corpora[-1].skipped]
    _warn_of_skipped({(each.ability, each.record): each for each in skipped}.values())


def _unusual(profile: Profile) -> Iterator[str]:
    from act.models.coverage import grouped

    read = profile.provenance.corpora[-1]
    if read.of:
        yield (f"{read.name}: {read.part}; run what is missing, too, and combine all, for the whole text")
    if "stable" in read.extra and not read.extra["stable"]:
        yield "the corpus ended before its top channels were certain; more text would still change them"
    if read.nonfinite:
        yield f"NaN or infinite values were left out of the statistics of {some(read.nonfinite)}"
    if read.irregular:
        yield f"sites that did not see every counted token (rows seen): {some(read.irregular)}"
    if read.unswapped:
        named = "; ".join(f"{name} ({reason})" for name, reason in [*read.unswapped.items()][:5])
        yield f"some sites have no swapped output, so the scores match and match-contrast leave them out: {named}"
    if (few := _few_tokens(profile)) and few.few:
        yield f"{few}, so their statistics are not sure; measure more text"
    if profile.space.uncovered:
        coverage = profile.space.coverage
        why = coverage.why if coverage else {}
        found = grouped(coverage.uncovered) if coverage else profile.space.uncovered
        names = [f"{name} ({why[name]})" if name in why else name for name in found]
        yield f"no site covers these parameters, so no transfer moves them: {', '.join(names[:5])}"
    if (measured := _measured(profile)) and measured.unreached and not _empty(profile):
        yield f"no counted token reached the channels of these sites (values behind them): {some(measured.unreached)}"


def _measured(profile: Profile) -> Measured | None:
    from act.profiles.coverage import Measured

    return Measured.of(profile)


def _few_tokens(profile: Profile) -> FewTokens | None:
    from act.profiles.experts import FewTokens

    return FewTokens.of(profile)


def _warn_of_skipped(skipped: Iterable[Skipped]) -> None:
    listed = [f"{each.place}: {each.reason}" for each in skipped]
    if listed:
        warn(f"skipped {counted(len(listed), 'bad record')}: {'; '.join(listed)}")

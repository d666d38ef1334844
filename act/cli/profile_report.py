"""The report of ``run``, ``pair`` and ``combine`` on the profiles they made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli.console import print_json, print_table, some, warn
from act.cli.next_step import after_profiles
from act.core.counted import counted
from act.core.units import duration

if TYPE_CHECKING:
    from act.data.stream import Skipped
    from act.evaluation.sides import Sides
    from act.profiles.attribution import AttributionProfile
    from act.profiles.coverage import Measured
    from act.profiles.experts import FewTokens
    from act.profiles.profile import Profile


def report_profile(profile: Profile, output: Path, as_json: bool, losses: Mapping[str, Sides] | None = None) -> None:
    """Print what a run measured and where its profile is, and warn of anything unusual.

    Args:
        losses: of donor and target on the same tokens, by text, where both ran; for JSON, since people saw them.
    """
    if as_json:
        print_json({**_summary(profile, output, _tokens([profile])), **_losses(losses)})
    else:
        _print_summary(profile, output, _tokens([profile]))
    _warn(profile)
    _warn_of_skipped(profile.provenance.corpora[-1].skipped)
    if not as_json:
        after_profiles({output: profile})


def report_profiles(
    profiles: Mapping[str, Profile], folder: Path, as_json: bool, losses: Mapping[str, Sides] | None = None
) -> None:
    """The same for the profiles of several abilities; with ``as_json``, as one JSON object."""
    outputs = {ability: folder / f"{ability}.safetensors" for ability in profiles}
    together = _tokens(profiles.values())
    if as_json:
        results = {ability: _summary(profile, outputs[ability], together) for ability, profile in profiles.items()}
        print_json({"output": str(folder), "abilities": results, **_losses(losses)})
    for ability, profile in profiles.items():
        if not as_json:
            _print_summary(profile, outputs[ability], together)
        _warn(profile)
    # A bad record of a labelled corpus may belong to any ability, so it is in the profile of each.
    skipped = [each for profile in profiles.values() for each in profile.provenance.corpora[-1].skipped]
    _warn_of_skipped({(each.ability, each.record): each for each in skipped}.values())
    if not as_json:
        after_profiles({outputs[ability]: profile for ability, profile in profiles.items()})


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


def _print_summary(profile: Profile, output: Path, together: int) -> None:
    """Print a table; ``together`` as in :func:`_summary`."""
    from act.profiles.coverage import percent, swapped_share

    result, read = _summary(profile, output, together), profile.provenance.corpora[-1]
    kept = [one.provenance.corpora[-1] for one in _kept(profile)]
    rows = [[name, f"{result[name]:,}"] for name in ("channels", "sites")]
    if read.part or read.shards:
        rows += [["part of the text", read.part or f"all of it, from {read.shards} shards"]]
    counting = "tokens that count" if profile.of_tokens else "tokens that the loss is over"
    for name, called in (("records", "records"), ("tokens", "tokens"), ("counted", counting)):
        more = f", and {sum(getattr(one, name) for one in kept):,} of what to keep" if kept else ""
        rows += [[called, f"{result[name]:,}{more}"]]
    if result["computed"] != result["tokens"]:
        rows += [["tokens computed (others begin as a text before)", f"{result['computed']:,}"]]
    rows += [["time", duration(result["seconds"])]]
    rows += [["tokens per second", f"{result['tokens_per_second']:,.0f}"]]
    rows += [["padding", f"{result['padding_share']:.1%}"]]
    rows += [["time in the model (not waiting for text)", f"{result['busy_share']:.1%}"]]
    rows += [["kernels", result["backend"]]]
    if read.paths:  # none if a run that was continued had nothing left to read
        rows += [["sites by what reads them", ", ".join(f"{path} {sites}" for path, sites in read.paths.items())]]
    if measured := _measured(profile):
        kinds = ", ".join(f"{kind} {percent(share)}" for kind, share in measured.kinds.items())
        rows += [["coverage", str(measured)], ["coverage by kind", kinds]]
    if profile.swapped:
        rows += [["swapped outputs", swapped_share(profile)]]
    if few := _few_tokens(profile):
        rows += [["experts", str(few)]]
        rows += [["every token through every expert", "yes" if result["moe_all_experts"] else "no"]]
    print_table(result["output"], ["", ""], rows)
    if stable := read.extra.get("stable"):
        print(
            f"stopped after {counted(stable['documents'], 'record')}: at least {stable['certain_overlap']:.1%} of the "
            f"top {stable['top']:.2%} by {stable['score']} is also that of the whole corpus "
            f"(confidence {stable['confidence']:.0%})"
        )
        if profile.swapped and stable["score"] == "match":
            print("that is certain of match without --keep: with it, the top channels may still change with more text")
        elif profile.swapped:
            print(
                f"that is certain of {stable['score']} alone: match and match-contrast may still change with more text"
            )


def _warn(profile: Profile) -> None:
    from act.models.coverage import grouped

    read = profile.provenance.corpora[-1]
    if read.of:
        warn(f"{read.name}: {read.part}; run what is missing, too, and combine all, for the whole text")
    if "stable" in read.extra and not read.extra["stable"]:
        warn("the corpus ended before its top channels were certain; more text would still change them")
    if read.nonfinite:
        warn(f"NaN or infinite values were left out of the statistics of {some(read.nonfinite)}")
    if read.irregular:
        warn(f"sites that did not see every counted token (rows seen): {some(read.irregular)}")
    if read.unswapped:
        named = "; ".join(f"{name} ({reason})" for name, reason in [*read.unswapped.items()][:5])
        warn(f"some sites have no swapped output, so the scores match and match-contrast leave them out: {named}")
    if (few := _few_tokens(profile)) and few.few:
        warn(f"{few}, so their statistics are not sure; measure more text")
    if profile.space.uncovered:
        coverage = profile.space.coverage
        why = coverage.why if coverage else {}
        found = grouped(coverage.uncovered) if coverage else profile.space.uncovered
        names = [f"{name} ({why[name]})" if name in why else name for name in found]
        warn(f"no site covers these parameters, so no transfer moves them: {', '.join(names[:5])}")
    if (measured := _measured(profile)) and measured.unreached:
        warn(f"no counted token reached the channels of these sites (values behind them): {some(measured.unreached)}")


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

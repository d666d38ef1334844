"""The report of ``run``, ``pair`` and ``combine`` on the profiles they made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli.console import print_json, print_table, some, warn

if TYPE_CHECKING:
    from act.data.stream import Skipped
    from act.profiles.coverage import Measured
    from act.profiles.experts import FewTokens
    from act.profiles.profile import Profile


def report_profile(profile: Profile, output: Path, as_json: bool) -> None:
    """Print what a run measured and where its profile is, and warn of anything unusual."""
    if as_json:
        print_json(_summary(profile, output))
    else:
        _print_summary(profile, output)
    _warn(profile)
    _warn_of_skipped(profile.provenance.corpora[-1].skipped)


def report_profiles(profiles: Mapping[str, Profile], folder: Path, as_json: bool) -> None:
    """The same for the profiles of several abilities; with ``as_json``, as one JSON object."""
    outputs = {ability: folder / f"{ability}.safetensors" for ability in profiles}
    if as_json:
        results = {ability: _summary(profile, outputs[ability]) for ability, profile in profiles.items()}
        print_json({"output": str(folder), "abilities": results})
    for ability, profile in profiles.items():
        if not as_json:
            _print_summary(profile, outputs[ability])
        _warn(profile)
    # A bad record of a labelled corpus may belong to any ability, so it is in the profile of each.
    skipped = [each for profile in profiles.values() for each in profile.provenance.corpora[-1].skipped]
    _warn_of_skipped({(each.ability, each.record): each for each in skipped}.values())


def _summary(profile: Profile, output: Path) -> dict[str, Any]:
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
        "tokens_per_second": round(read.tokens / max(read.seconds, 1e-9), 1),
        "backend": profile.provenance.settings.backend,
        "paths": dict(read.paths),
        "nonfinite": dict(read.nonfinite),
        "irregular": dict(read.irregular),
        **({"unswapped": dict(read.unswapped)} if profile.swapped else {}),
        "skipped": [skipped._asdict() for skipped in read.skipped],
        **({"stable": read.extra["stable"]} if "stable" in read.extra else {}),
        **({"coverage": None} if (measured := _measured(profile)) is None else measured.to_json()),
        "moe_all_experts": profile.provenance.settings.moe_all_experts,
        "experts": None if (few := _few_tokens(profile)) is None else few.to_json(),
        "uncovered": list(profile.space.uncovered),
    }


def _print_summary(profile: Profile, output: Path) -> None:
    from act.profiles.coverage import percent, swapped_share

    result, read = _summary(profile, output), profile.provenance.corpora[-1]
    names = ("channels", "sites", "records", "tokens", "computed", "counted", "seconds", "tokens_per_second")
    rows = [[name.replace("_", " "), f"{result[name]:,}"] for name in names]
    rows += [[name.replace("_", " "), f"{result[name]:.1%}"] for name in ("padding_share", "busy_share")]
    paths = ", ".join(f"{path} {sites}" for path, sites in read.paths.items())
    rows += [["backend", result["backend"]], ["sites by path", paths]]
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
            f"stopped after {stable['documents']:,} records: at least {stable['certain_overlap']:.1%} of the top "
            f"{stable['top']:.2%} by {stable['score']} is also that of the whole corpus "
            f"(confidence {stable['confidence']:.0%})"
        )


def _warn(profile: Profile) -> None:
    from act.models.coverage import grouped

    read = profile.provenance.corpora[-1]
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
        warn(f"{len(listed)} bad records were skipped: {'; '.join(listed)}")

"""What commands print with: tables and JSON on stdout, progress and warnings on stderr."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from act.core.errors import ActError

if TYPE_CHECKING:
    from act.data.corpus import Corpus
    from act.profiles.profile import Profile

_NAMED = re.compile(r"(?P<name>\w[\w.-]*)=(?P<place>.+)")


def quiet_transformers() -> None:
    """Leave stderr to our own progress bar."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(result, ensure_ascii=False))


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on stdout; all columns but the first are right-aligned."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    Console().print(table)


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def places_of(corpora: list[str]) -> dict[str, str]:
    """The places of corpora by name; the name of a single one may be empty. Each is given as PLACE or NAME=PLACE."""
    places: dict[str, str] = {}
    for given in corpora:
        named = None if Path(given).exists() else _NAMED.fullmatch(given)
        name, place = (named["name"], named["place"]) if named else ("", given)
        if name in places or (places and "" in (name, *places)):
            raise ActError("several corpora need a name each, for a profile each: --corpus NAME=PLACE")
        places[name] = place
    return places


def print_spans(corpora: Mapping[str, Corpus], limit: int, skip_bad_records: int, as_json: bool) -> None:
    """The first good records of each corpus, the counted tokens bold and green (in brackets in a file), others dim."""
    console = Console(highlight=False, soft_wrap=True)
    skipped = 0
    shown: dict[str, list[Any]] = {}
    for ability, corpus in corpora.items():
        shown[ability] = []
        if ability and not as_json:
            console.rule(ability)
        for entry, encoded in corpus.numbered():
            if len(shown[ability]) == limit:
                break
            if isinstance(encoded, ActError):
                skipped += 1
                if skipped > skip_bad_records:
                    raise ActError(f"{entry.place}: {encoded}") from encoded
                warn(f"left out {entry.place}: {encoded}")
                continue
            runs = corpus.runs_of(encoded)
            shown[ability].append([{"text": text, "counted": counted} for text, counted in runs])
            if not as_json:
                _print_runs(console, runs)
    if as_json:
        print_json({"spans": shown})


def _print_runs(console: Console, runs: list[tuple[str, bool]]) -> None:
    for text, counted in runs:
        marked = f"[[{text}]]" if counted and not console.is_terminal else text
        console.print(marked, style="bold green" if counted else "dim", end="", markup=False)
    console.print()


@contextlib.contextmanager
def counter(what: str) -> Iterator[Any]:
    """A progress callback ``(doing, done, total)`` that draws a bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what)

        def show(doing: str, done: int, total: int) -> None:
            progress.update(task, description=f"{what}: {doing}", completed=done, total=total)

        yield show


def report_profile(profile: Profile, output: Path, as_json: bool) -> None:
    """Say what a run measured and where it is, with everything odd about it."""
    result = _summary(profile, output)
    if as_json:
        print_json(result)
    _explain(profile, result, as_json)
    _warn_of_skipped(result["skipped"])


def report_profiles(profiles: Mapping[str, Profile], folder: Path, as_json: bool) -> None:
    """The same for the profiles of several abilities, one JSON object in all."""
    results = {ability: _summary(profile, folder / f"{ability}.safetensors") for ability, profile in profiles.items()}
    if as_json:
        print_json({"output": str(folder), "abilities": results})
    for ability, result in results.items():
        _explain(profiles[ability], result, as_json)
    # A bad record among labelled ones may be of any of their abilities, and is in the profile of each.
    skipped = {(each["ability"], each["record"]): each for result in results.values() for each in result["skipped"]}
    _warn_of_skipped(list(skipped.values()))


def _summary(profile: Profile, output: Path) -> dict[str, Any]:
    measured = profile.source["corpora"][-1]
    return {
        "output": str(output),
        "channels": len(profile.space),
        "sites": len(profile.space.sites),
        **{key: measured[key] for key in ("records", "sequences", "tokens", "counted", "padding", "seconds")},
        "padding_share": round(measured["padding"] / max(measured["padding"] + measured["tokens"], 1), 4),
        "busy_share": round(1 - measured["waited"] / max(measured["seconds"], 1e-9), 4),
        "tokens_per_second": round(measured["tokens"] / max(measured["seconds"], 1e-9), 1),
        "backend": profile.source["settings"]["backend"],
        "paths": measured["paths"],
        "nonfinite": measured["nonfinite"],
        "irregular": measured["irregular"],
        "skipped": measured["skipped"],
        **({"stable": measured["stable"]} if "stable" in measured else {}),
        "uncovered": list(profile.space.uncovered),
    }


def _explain(profile: Profile, result: dict[str, Any], as_json: bool) -> None:
    """The table, if a person reads, and warnings."""
    measured = profile.source["corpora"][-1]
    if not as_json:
        names = ("channels", "sites", "records", "tokens", "counted", "seconds", "tokens_per_second")
        rows = [[name.replace("_", " "), f"{result[name]:,}"] for name in names]
        rows += [[name.replace("_", " "), f"{result[name]:.1%}"] for name in ("padding_share", "busy_share")]
        paths = ", ".join(f"{path} {sites}" for path, sites in result["paths"].items())
        print_table(result["output"], ["", ""], [*rows, ["backend", result["backend"]], ["sites by path", paths]])
    if measured.get("stable") and not as_json:
        stable = measured["stable"]
        print(
            f"stopped at {stable['documents']:,} records: at least {stable['certain_overlap']:.1%} of the top "
            f"{stable['top']:.2%} by {stable['score']} is the whole corpus's (confidence {stable['confidence']:.0%})"
        )
    elif "stable" in measured and not measured["stable"]:
        warn("the corpus ended before its top channels were certain; more text would still change them")
    if measured["nonfinite"]:
        warn(f"NaN or infinite values were left out of the statistics of {first_few(measured['nonfinite'])}")
    if measured["irregular"]:
        warn(f"sites that did not see every counted token (rows seen): {first_few(measured['irregular'])}")
    if profile.space.uncovered:
        warn(f"parameters that no site covers, and no transfer moves: {', '.join(profile.space.uncovered[:5])}")


def _warn_of_skipped(skipped: list[dict[str, Any]]) -> None:
    if skipped:
        listed = "; ".join(f"{each['place']}: {each['reason']}" for each in skipped)
        warn(f"{len(skipped)} bad records were left out: {listed}")


def first_few(counts: Mapping[str, int]) -> str:
    """The first five counts, as a phrase."""
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:5])
    return shown + (f" and {len(counts) - 5} more" if len(counts) > 5 else "")

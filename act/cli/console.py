"""Output of commands: tables and JSON on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from act.cli.streams import names_read, unread
from act.cli.tables import print_table
from act.core.directions import straight
from act.core.errors import ActError, Missing
from act.core.names import is_part, require_name
from act.core.places import last_parts

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from act.data.corpus import Corpus
    from act.models.channels import ChannelSpace

_ABSOLUTE = re.compile(r"(?<==)/.*|^/.*", re.DOTALL)

__all__ = [
    "command_for_others",
    "command_line",
    "named",
    "note",
    "order_experts",
    "places_of",
    "print_json",
    "print_spans",
    "print_table",
    "quiet_transformers",
    "require_models",
    "some",
    "warn",
]

log = logging.getLogger(__name__)


def quiet_transformers() -> None:
    """Silence transformers, so that stderr shows only our messages and progress bar; not with ``--log-level debug``."""
    from transformers.utils import logging as transformers_logging

    theirs: Any = transformers_logging  # untyped
    if not log.isEnabledFor(logging.DEBUG):
        theirs.set_verbosity_error()
        theirs.disable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # which tells of each try to reach the hub
        logging.getLogger("accelerate").setLevel(logging.ERROR)  # which tells what it offloads


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object to stdout."""
    text = names_read(json.dumps(result, ensure_ascii=False))
    # Escaped, what turns a line, is no text, or is not in the encoding of stdout is still in the data.
    print(text if text == straight(text) and _encodable(text) else json.dumps(result))


def _encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def command_line() -> str:
    """The command as the user typed it."""
    return shlex.join(["act-profile", *map(names_read, sys.argv[1:])])


def command_for_others() -> str:
    """The command, with absolute paths of this machine as their last parts."""
    places = [found[0] for one in sys.argv[1:] if (found := _ABSOLUTE.search(one))]
    short = last_parts(places)
    given = [_ABSOLUTE.sub(lambda found: short[found[0]], one) for one in sys.argv[1:]]
    return shlex.join(["act-profile", *given])


def note(message: str) -> None:
    """Log a line that tells people what was found on the way."""
    log.info(message)


def warn(message: str) -> None:
    """Log a one-line warning, which goes to stderr."""
    log.warning(message)


def require_two_models(donor: str, target: str) -> None:
    """Raise :class:`ActError` if donor and target are one model, however it is written."""
    same = os.path.realpath(donor) == os.path.realpath(target) if os.path.exists(donor) else donor == target
    if same:
        raise ActError(
            f"donor and target are the same model, {target}, of which nothing would change; give the model that has "
            "the ability as the donor"
        )


def places_of(corpora: Iterable[str]) -> dict[str, str]:
    """Parse corpora, each given as PLACE or NAME=PLACE, to places by name; a single one may have an empty name."""
    places: dict[str, str] = {}
    for given in corpora:
        name, place = _name_and_place(given)
        if name and name in places:
            raise ActError(f"two corpora are named {name}; give each a name of its own (--corpus NAME=PLACE)")
        if places and "" in (name, *places):
            unnamed = place if not name else places[""]
            raise ActError(
                f"several corpora need different names, one for each profile, and {unnamed} has none; give it one "
                f"(--corpus NAME={unnamed})"
            )
        places[name] = place
    return places


def _name_and_place(given: str) -> tuple[str, str]:
    """What stands in front of an equals sign, unless it is a part of a path; empty if nothing does.

    Raises:
        ActError: a name that can be no file's, in front of a place that is there.
    """
    from act.data.records import lies_here

    if lies_here(given):
        return "", given
    name, equals, place = given.partition("=")
    place = os.path.expanduser(place)  # which shells do in front alone
    of_folder = os.path.isdir(os.path.dirname(given) or given)
    if equals and place and (lies_here(place) or (is_part(name) and not of_folder)):
        return require_name("the name of a corpus", name), place
    name, colon, place = given.partition(":")
    if colon and lies_here(place):
        raise Missing(f"no such corpus: {given}; a name stands before an equals sign", f"{name}={place}")
    return "", given


def named(given: Iterable[str], keep: Iterable[str] = ()) -> dict[str, str]:
    """Places by name, of an option whose corpora need no names: NAME=PLACE, or PLACE, whose name is the place.

    Args:
        keep: those of what is to be kept, given the same way; they come last.

    Raises:
        ActError: two have one name, or are one place, however it is written.
    """
    found: dict[str, str] = {}
    seen: dict[str, tuple[int, str]] = {}  # number and name, by where they lie
    abilities = [*given]
    for number, each in enumerate([*abilities, *keep]):
        ((name, place),) = places_of([each]).items()
        name, where = name or place, os.path.realpath(place) if os.path.exists(place) else place
        earlier, first = seen.setdefault(where, (number, name))
        both = first if first == name else f"{first} and {name}"
        if earlier < len(abilities) <= number:
            apart = "what is recovered and what is kept cannot be told apart"
            raise ActError(f"{both}: the ability and what to keep are the same text, so {apart}; keep other records")
        if first != name:
            raise ActError(f"{both} are the same text, {place}; give each corpus once")
        if name in found:
            raise ActError(f"{name} was given twice; give each corpus once, each with a name of its own")
        found[name] = place
    return found


def print_spans(corpora: Mapping[str, Corpus], limit: int, skip_bad_records: int, as_json: bool) -> None:
    """Print the first good records of each corpus, with counted tokens in green (in a file, in double brackets)."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    skipped = 0
    shown: dict[str, list[Any]] = {}
    for ability, corpus in corpora.items():
        shown[ability] = []
        if ability and not as_json:
            console.rule(ability)
        for entry, encoded in corpus.numbered():
            if len(shown[ability]) == limit or unread():
                break
            if isinstance(encoded, ActError):
                skipped += 1
                if skipped > skip_bad_records:
                    raise ActError(f"{entry.place}: {encoded}") from encoded
                warn(f"skipped {entry.place}: {encoded}")
                continue
            runs = corpus.runs_of(encoded)
            shown[ability].append([{"text": text, "counted": counted} for text, counted in runs])
            if not as_json:
                _print_runs(console, runs)
        if not shown[ability] and not unread():
            raise ActError(f"{corpus.name}: there is no record to show{', bad ones aside' if skipped else ''}")
    if as_json:
        print_json({"spans": shown})


def _print_runs(console: Console, runs: list[tuple[str, bool]]) -> None:
    for text, counted in runs:
        marked = f"[[{text}]]" if counted and not console.is_terminal else text
        console.print(marked, style="bold green" if counted else "dim", end="", markup=False)
    console.print()


def order_experts(donor: nn.Module, target: nn.Module, matching: bool, space: ChannelSpace | None = None) -> None:
    """Put a donor's experts in the target's order if ``matching``; otherwise warn if they look otherwise."""
    from act.models.expert_order import align_experts, other_orders

    orders = (align_experts if matching else other_orders)(donor, target, space)
    if not orders:
        return
    name = next(iter(orders))
    where = f"in {name}" + (f" and {len(orders) - 1} more layers" if len(orders) > 1 else "")
    if matching:
        warn(f"the donor's experts {where} were put in the target's order, in memory")
    else:
        warn(
            f"the donor's experts {where} look like the target's in another order, so strangers are compared and "
            "blended; --match-experts puts them in the target's order"
        )


def require_models(names: Iterable[str | None]) -> None:
    """Raise :class:`ActError` for a folder that holds no model, before anything is said of it as an input."""
    from act.models.load_errors import require_no_other_folder

    for name in names:
        if name:
            require_no_other_folder(name)


def some(counts: Mapping[str, int]) -> str:
    """The first five names with their counts, and how many more there are."""
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:5])
    return shown + (f" and {len(counts) - 5} more" if len(counts) > 5 else "")

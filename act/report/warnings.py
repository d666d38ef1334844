"""What is wrong with what was measured, in sentences: a reader should know it before believing the pictures."""

from __future__ import annotations

from collections.abc import Iterator

from act.core.counted import counted
from act.report.build import Measured, Report
from act.report.data import ConcentrationRow

SWAMPED = 0.5, 2.0
"""A module kind swamps a ranking if it gives this share of the set, and this many times its share of the channels."""
NAMED = 3


Told = tuple[str, str]
"""What is unusual, the same for all profiles of which it is true, and the sentence about one of them."""


def warnings_of(report: Report) -> list[str]:
    """One sentence for everything unusual in the profiles of a report; the same of several is said once."""
    found: dict[str, list[tuple[str, str]]] = {}
    for one, row in zip(report.measured, report.data["concentration"], strict=True):
        for what, sentence in (*_of_ranking(row, one), *_of_profile(one), *_gaps(row)):
            found.setdefault(what, []).append((one.name, sentence))
    return [
        f"{name}: {sentence}." + (f" Likewise {_some([other for other, _ in others])}." if others else "")
        for (name, sentence), *others in found.values()
    ]


def _of_ranking(row: ConcentrationRow, one: Measured) -> Iterator[Told]:
    for kind, group in row["kinds"].items():
        if group["chosen"] >= SWAMPED[0] and group["chosen"] >= SWAMPED[1] * group["channels"]:
            yield (
                f"swamped by {kind}",
                f"{kind} gives {group['chosen']:.0%} of the set, with {group['channels']:.0%} of the channels: its "
                "scale may swamp the ranking; compare with --normalize std or --scope kind",
            )
    if (experts := row["experts"]) and experts["few"]:
        yield (
            "starved experts",
            f"{experts['sentence']}; they are not ranked, so measure more text, or profile with --moe-all-experts",
        )
    for name, part in one.top.rule.parts.items():
        yield f"part of {name}", f"{name} was measured in part: {part}"
    if row["unmeasured"]:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in row["unmeasured"].items())
        yield "unmeasured", f"channels without a score, which are never chosen: {kinds}"
    if one.top.rule.not_positive:
        yield (
            "not positive",
            f"{one.top.rule.not_positive:,} of the chosen channels have a score of 0 or below; ask for fewer",
        )


def _of_profile(one: Measured) -> Iterator[Told]:
    for corpus in one.profile.provenance.corpora:
        if corpus.nonfinite:
            values, sites = sum(corpus.nonfinite.values()), len(corpus.nonfinite)
            yield (
                "not finite",
                f"{counted(values, 'NaN or infinite value')}, left out of the statistics of "
                f"{_some(list(corpus.nonfinite))}{f' ({sites} sites)' if sites > NAMED else ''}; "
                "look for NaN in the weights",
            )
        if corpus.irregular:
            yield "irregular", f"sites that did not see every counted token: {_some(list(corpus.irregular))}"
        if corpus.skipped:
            yield "skipped", f"{counted(len(corpus.skipped), 'bad record')} left out"


def _gaps(row: ConcentrationRow) -> Iterator[Told]:
    if uncovered := row["uncovered_values"]:
        why = row["uncovered_reasons"]
        names = [f"{name} ({why[name]})" if name in why else name for name in uncovered]
        yield "uncovered", f"parameters behind no measured channel, which no transfer moves: {_some(names)}"
    if unreached := row["unreached_values"]:
        yield "unreached", f"no counted token reached the channels of {_some(list(unreached))}"


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")

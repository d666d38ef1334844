"""The verdict of a report, in sentences that its statistics allow, and what to try next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from act.core.counted import counted
from act.evaluation.kept import KEPT, Keeping
from act.evaluation.sweep import Setting
from act.report.build import OUTSIDE, Report
from act.report.data import GroupShares, RecoveredRow
from act.report.results import CLEAR, Figure, Gain, Results, is_share, shown

Tone = Literal["good", "mixed", "bad", "open"]
FEWEST = 100
"""Records below which a figure is called uncertain."""
LISTED = 8
"""Methods, and abilities, of which the verdict says something."""
SETTLE = (
    "Evaluate on texts of your own. A light tune may add to the gain: tune the controls alike, for it evens out much "
    "of what sets changes apart."
)
_NONE: Mapping[str, Keeping] = {}
WORST: list[Tone] = ["bad", "mixed", "open", "good"]
"""The tones, the worst first."""


@dataclass(frozen=True)
class Against:
    """A method against one control on one text: by how much it is better, with p, and what the control keeps."""

    text: str
    method: str
    control: str
    gain: str
    p: str
    keeps: str


@dataclass(frozen=True)
class Verdict:
    """What a report says first.

    Attributes:
        tone: whether it is good news.
        headline: one short sentence.
        details: the figures behind it, one sentence each.
        advice: what to try next.
        controls: the method against each control, one by one.
    """

    tone: Tone
    headline: str
    details: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    controls: tuple[Against, ...] = ()


def verdict_on(results: Results, score: str = "", *, swept: bool = False) -> Verdict | None:
    """What the results say of each method, in order; None if there is no model that was changed, or no ability.

    Args:
        score: what the channels were ranked by, where that is known: it is no advice.
        swept: whether shares and strengths were tried; to try them is no advice.
    """
    methods = results.named("method")[:LISTED]
    abilities = [text for text in results.texts if text not in results.keep]
    more = "shares and strengths that were not tried yet" if swept else "other shares and strengths (act-profile sweep)"
    finder = "" if score == "attribution" else "ranking by attribution, and "  # the best in our experiments
    found = [(method, one) for method in methods if (one := _on_method(results, method, abilities, (finder, more)))]
    tasks = tuple(sentence for method in methods if (sentence := _on_tasks(results, method)))
    if not found:
        return Verdict("open", tasks[0], tasks[1:]) if tasks else None
    several = len(found) > 1
    tuned = any(method.endswith(" + tune") for method, _ in found)
    advice = [line for _, one in found for line in one.advice if not (tuned and line == SETTLE)]
    if not results.keep:
        advice.append("Nothing shows what the change costs: evaluate records of what is to be kept, too (--keep).")
    return Verdict(
        min((one.tone for _, one in found), key=WORST.index),
        " ".join(f"{method}: {one.headline}" if several else one.headline for method, one in found),
        (*(line for _, one in found for line in one.details), *tasks),
        tuple(dict.fromkeys(advice)),
        tuple(row for _, one in found for row in one.controls),
    )


def _on_method(results: Results, method: str, abilities: Sequence[str], tries: tuple[str, str]) -> Verdict | None:
    """What the results say of one method, the worst first."""
    found = [one for text in abilities if (one := _on_ability(results, method, text, tries))]
    if not found:
        return None
    found.sort(key=lambda one: WORST.index(one.tone))
    kept = [sentence for text in results.texts if text in results.keep and (sentence := _kept(results, method, text))]
    left = [share for text in results.keep if (share := results.kept(method, text))]
    costly = [share.share for share in left if share.below(results.least_kept)]
    tone, headline = found[0].tone, " ".join(one.headline for one in found[:LISTED])
    advice = [line for one in found if one.tone == tone or one.tone != "good" for line in one.advice]
    if costly and tone == "good":
        tone, headline = "mixed", f"{headline[:-1]}, but only {100 * min(costly):.0f} % of what was to be kept is left."
    if costly:
        advice.append(
            "Spare what is to be kept: rank with --keep-profile, or move fewer channels or a smaller strength."
        )
    details = tuple([line for one in found for line in one.details] + kept)
    return Verdict(tone, headline, details, tuple(advice), tuple(row for one in found for row in one.controls))


def _on_ability(results: Results, method: str, text: str, tries: tuple[str, str]) -> Verdict | None:
    mine = results.of(method, text)
    before = [gain for name in results.named("target") if (gain := results.gain(method, name, text))]
    if mine is None or not before:
        return None
    gains = [gain for name in results.named("control") if (gain := results.gain(method, name, text))]
    controls = [gain for gain in gains if gain.p is not None] or gains  # a tuned result is compared with tuned controls
    details, against = (_reached(results, mine),), tuple(_against(results, gain) for gain in controls)
    advice = []
    if mine.records < FEWEST:
        advice.append(f"{text} has {counted(mine.records, 'record')} only: with more, the errors become smaller.")
    finder, more = tries
    better = [gain.other for gain in controls if gain.clear and gain.value < 0]
    enough = min(results.least_kept, _least_kept(results, method))
    costly = [name for name in better if _least_kept(results, name) < enough]
    unclear = [gain.other for gain in controls if not gain.clear]
    if not before[0].seems:
        advice.append(f"Try {finder}a larger share of the channels or strength.")
        return Verdict("bad", f"{text} did not clearly come back.", details, tuple(advice), against)
    if better and len(costly) == len(better):
        advice.append(f"Compare where as much is kept: try {finder}{more}.")
        headline = f"{text} came back; more came back with {listed(better)}, at a higher cost to what was to be kept."
        return Verdict("mixed", headline, details, tuple(advice), against)
    if better:
        advice.append(f"Try {finder}{more}.")
        headline = f"A simpler change does better on {text}: {listed(better)}."
        return Verdict("bad", headline, details, tuple(advice), against)
    if unclear:
        advice.append(f"Evaluate more records, or try {finder}{more}.")
        headline = f"{text} came back, but not shown to be better than {listed(unclear, 'or')}."
        return Verdict("mixed", headline, details, tuple(advice), against)
    if not controls:
        advice.append("Compare with controls (random, weight-diff, interpolation) before believing the transfer.")
        headline = f"{text} came back; no control shows whether a simpler change does as well."
        return Verdict("open", headline, details, tuple(advice))
    advice.append(SETTLE)
    every = "the control" if len(controls) == 1 else f"all {len(controls)} controls"
    return Verdict("good", f"{text} came back, and clearly more than with {every}.", details, tuple(advice), against)


def _on_tasks(results: Results, method: str) -> str | None:
    """How a method differs from the target in tasks of lm-evaluation-harness; None if they were not compared."""
    targets = results.named("target")
    changes = [one for one in results.task_changes if one["after"] == method and one["before"] in targets]
    if not changes:
        return None
    clear = [one["difference"] or 0.0 for one in changes if one["p"] is not None and one["p"] < CLEAR]
    higher = sum(one > 0 for one in clear)
    return (
        f"{method} in tasks: of {counted(len(changes), 'figure')}, {higher} clearly higher than the target's, "
        f"{len(clear) - higher} clearly lower."
    )


def _least_kept(results: Results, model: str) -> float:
    """The smallest share that a model keeps of a text to keep; 1 if there is none."""
    return min((found.share for text in results.keep if (found := results.kept(model, text))), default=1.0)


def _reached(results: Results, mine: Figure) -> str:
    others = [(role, figure) for role in ("target", "donor") for name in results.named(role)
              if (figure := results.of(name, mine.text))]  # fmt: skip
    beside = ", ".join(f"{role} {figure}" for role, figure in others)
    what = "right answers" if mine.share else "log-likelihood"
    chance = results.chance.get(mine.text)
    guessing = "" if chance is None else f"; guessing gives {100 * chance:.1f} %"
    return f"{mine.model} on {mine.text}: {mine} {what}{f' ({beside}{guessing})' if beside or guessing else ''}."


def _against(results: Results, gain: Gain) -> Against:
    kept = [found.share for text in results.keep if (found := results.kept(gain.other, text))]
    keeps = f"{100 * min(kept):.0f} %" if kept else ""
    return Against(gain.text, gain.one, gain.other, gain.size, gain.certainty, keeps)


def _kept(results: Results, method: str, text: str) -> str | None:
    found = results.kept(method, text)
    if found is None:
        return None
    gain = next((one for name in results.named("target") if (one := results.gain(method, name, text))), None)
    of = found.what or " of the target's right answers"
    return f"{method} keeps {shown(found.share, found.error, True)}{of} on {text}{f' ({gain})' if gain else ''}."


def verdict_of_profiles(report: Report) -> Verdict:
    """What profiles alone say: where the top channels are; never that moving them recovers anything."""
    rows = report.data["concentration"]
    top = f"{100 * report.data['top']:g} %"
    details = [
        f"The top {top} of the channels for {one['profile']} are mostly {_most(one['kinds'])}{_places(one['layers'])}."
        for one in rows[:LISTED]
    ]
    relations = {row["relation"] for row in report.data["overlaps"]} - {"set"}
    what = rows[0]["profile"] if len(rows) == 1 or relations <= {"scores"} else f"{len(rows)} abilities"
    moved, text = _moved(report.data["recovered"]), "whether moving these channels helps was not evaluated"
    headline = f"Where {what} may live; {moved or text}."
    advice = "Try shares and strengths on records of the ability and of what is to be kept: act-profile sweep --keep."
    return Verdict("open", headline, tuple(details), (advice,))


def _moved(rows: Sequence[RecoveredRow]) -> str:
    """What came back of the first text when the set that brings most was moved, beside as many random channels."""
    known = [row for row in rows if row["share"] is not None and row["text"] == rows[0]["text"]]
    control = next((row for row in known if row["moved"] == "random"), None)
    best = max((row for row in known if row is not control), key=lambda row: row["share"] or 0.0, default=None)
    if best is None or control is None:
        return ""
    return (
        f"moved alone, the channels of {best['moved']} bring back {best['share']:.0%} of what the target lacks on "
        f"{best['text']}, and as many at random {control['share']:.0%}"
    )


def verdict_of_settings(
    settings: Mapping[str, Sequence[Setting]],
    keep: Collection[str],
    known: Mapping[str, Keeping] = _NONE,
    doubts: Sequence[str] = (),
    least_kept: float = KEPT,
) -> Verdict | None:
    """Which of the settings that were tried brings most back and keeps enough; None if none was tried.

    Args:
        known: the scale of figures of what is to be kept, where more than the target's figure is known, and that of
            what is recovered, if the donor is known.
        doubts: why none is to be chosen by these figures; they are said first.
        least_kept: the share of what is to be kept that is enough.
    """
    method, tried = next(iter(settings.items()))
    moved = [one for one in tried if one.top > 0]
    before = next((one for one in tried if not one.top), None)
    if not moved or before is None:
        return None
    ability = _ability(before, keep)

    scales = _keeping(before, moved, keep, known)
    keeping = [one for one in moved if _left(one, scales)[0] >= least_kept]
    best, enough = best_setting(before, moved, keep, known, least_kept), f"{100 * least_kept:.10g}%"
    setting = f"{100 * best.top:g} % of the channels at strength {best.strength:g}"
    share = is_share(tried, ability)
    gained = f"{shown(before.figures[ability], None, share)} before, {shown(best.figures[ability], None, share)} after"
    most = f"Of {counted(len(moved), 'setting')}, {setting} recover {ability} best"
    headline = f"{most}{f' and keep {enough} of the rest' if keep and keeping else ''}: {gained}."
    left, what = _left(best, scales)
    details = [f"It keeps {left:.0%} of what is to be kept, at the least{what and f': {what}'}."] if keep else []
    if lacked := known.get(ability):
        details = [f"It recovers {lacked.share(best.figures[ability]):.0%} {lacked.what}.", *details]
    for name, rows in [*settings.items()][1:]:
        if others := [one for one in rows if one.top > 0]:
            other = best_setting(before, others, keep, known, least_kept)
            which = f"The best of {name}"
            if keeping and _left(other, scales)[0] < least_kept:  # ours keeps enough: what comes nearest to that
                other = max(others, key=lambda one: _left(one, scales)[0])
                which = f"No setting of {name} keeps {enough}; that which keeps most"
            spared = _left(other, scales)[0]
            much = f", and keeps {spared:.0%}" if keep else ""
            reached = shown(other.figures[ability], None, share)
            enough_too = not keep or spared >= min(least_kept, left)
            equal = enough_too and before.figures[ability] < best.figures[ability] <= other.figures[ability]
            less = ": the ranked channels bring no more" if equal else ""
            details.append(f"{which} brings {ability} to {reached}{much}{less}.")
    if best.figures[ability] <= before.figures[ability]:
        headline = f"None of {counted(len(moved), 'setting')} brings {ability} back: {gained}, at the best."
    elif keep and not keeping:
        headline = f"No setting keeps {enough}{what and f' {what}'}; {setting} recover {ability} best: {gained}."
    if doubts:
        first, *more = [f"{one.rstrip('.')}." for one in doubts]
        return Verdict(
            "open",
            f"No share or strength can be chosen by these figures: {first}",
            (*more, f"As a picture of these records alone: {headline}", *details),
            ("Sweep on records of what the target lost, that the channels were not ranked on, and enough of them.",),
        )
    advice = [
        f"This is the best of {counted(len(moved), 'setting')} on the records that it was chosen on: evaluate it on "
        "others, with controls, before believing it."
    ]
    if best.figures[ability] <= before.figures[ability]:
        advice = [f"Try {'smaller' if keep and not keeping else 'larger'} shares and strengths, or another score."]
    elif keep and not keeping:
        advice = ["Try smaller shares and strengths, or a ranking that spares what is to be kept."]
    if not keep:
        advice.append("Nothing shows what the change costs: evaluate records of what is to be kept, too (--keep).")
    return Verdict("open", headline, tuple(details), tuple(advice))


def best_setting(
    before: Setting,
    tried: Sequence[Setting],
    keep: Collection[str],
    known: Mapping[str, Keeping] = _NONE,
    least_kept: float = KEPT,
) -> Setting:
    """The setting that brings most of the ability back, of those that keep enough if there are any.

    Args:
        before: the unchanged target.
        tried: one or more settings.
        keep: the figures of what is to be kept.
        known, least_kept: as in :func:`verdict_of_settings`.
    """
    scales = _keeping(before, tried, keep, known)
    keeping = [one for one in tried if _left(one, scales)[0] >= least_kept]
    return max(keeping or tried, key=lambda one: one.figures[_ability(before, keep)])


def keeps_enough(
    before: Setting,
    tried: Setting,
    keep: Collection[str],
    known: Mapping[str, Keeping] = _NONE,
    least_kept: float = KEPT,
) -> bool:
    """Whether a setting keeps enough; arguments as those of :func:`best_setting`."""
    return _left(tried, _keeping(before, [tried], keep, known))[0] >= least_kept


def _ability(setting: Setting, keep: Collection[str]) -> str:
    return next((name for name in setting.figures if name not in keep), next(iter(setting.figures)))


def _left(one: Setting, keeping: Mapping[str, Keeping]) -> tuple[float, str]:
    """The share that is left of what suffers most, of what is to be kept, and of what it is a share."""
    return min(((scale.share(one.figures[name]), scale.what) for name, scale in keeping.items()), default=(1.0, ""))


def _keeping(
    before: Setting, tried: Sequence[Setting], keep: Collection[str], known: Mapping[str, Keeping]
) -> dict[str, Keeping]:
    """The scale of each figure of what is to be kept; where it is not known, by the target's figure alone."""
    return {
        name: known.get(name) or Keeping.of_figure(value, is_share=is_share([before, *tried], name))
        for name, value in before.figures.items()
        if name in keep
    }


def _most(groups: Mapping[str, GroupShares]) -> str:
    """The groups that give most of a set, with their shares."""
    names = sorted(groups, key=lambda name: -groups[name]["chosen"])[:3]
    return listed([f"{name} ({groups[name]['chosen']:.0%})" for name in names if groups[name]["chosen"]])


def _places(layers: Mapping[str, GroupShares]) -> str:
    """The layers that give most of a set, and the share outside them."""
    inside = {name: group for name, group in layers.items() if name != OUTSIDE}
    where = f"; most in {_most(inside)}" if any(group["chosen"] for group in inside.values()) else ""
    outside = layers[OUTSIDE]["chosen"] if OUTSIDE in layers else 0.0
    return f"{where}{f'; {outside:.0%} outside the layers' if outside else ''}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names as a phrase."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"

"""The parts of an experiment, each for one run: recovery, a light tune after it, merging."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

from laboratory import Candidates, Lab, Scores, Setting, Unmade, candidates

from act.lab.frontier import Point, area, best_keeping, frontier, relative
from act.lab.mixing import Weights, interpolated, weights


def recovery_methods(lab: Lab, by_rule: Scores) -> dict[str, Candidates]:
    """Every method of recovering from the base, with all its settings."""
    rules = {rule: [score] for rule, score in by_rule.items()}
    tops, strengths = lab.settings["tops"], lab.settings["strengths"]
    return candidates(lab, rules, (lab.target, [lab.donor]), (lab.donor, [lab.target]), tops, strengths)


def recover(lab: Lab) -> dict[str, Any]:
    """The frontier of every method: its settings are tried on validation records, those left on test records."""
    before = {split: lab.point(lab.target, split) for split in ("validation", "test")}
    ceiling = lab.point(lab.donor, "test")
    methods = recovery_methods(lab, lab.scores())
    makers = {method: partial(_recovered, lab, method, tries, before, ceiling) for method, tries in methods.items()}
    return {"before": before["test"], "donor": ceiling, "methods": lab.each_kept("recovery, ", makers)}


def _recovered(lab: Lab, method: str, tries: Candidates, before: dict[str, Point], ceiling: Point) -> dict[str, Any]:
    tried: dict[Setting, Point] = {setting: lab.point(make(), "validation") for setting, make in tries.items()}
    tested: dict[Setting, Point] = {setting: lab.point(tries[setting](), "test") for setting in frontier(tried)}
    best: Setting = best_keeping(tried, before["validation"])
    here = (tested.get(best) or lab.point(tries[best](), "test")) if best else before["test"]
    kept: list[Setting] = [best_keeping(tried, before["validation"], share) for share in lab.settings["tune_starts"]]
    found = {
        "area": area([relative(point, before["test"], ceiling) for point in tested.values()]),
        "gain": here.forgotten - before["test"].forgotten,
        "retained": here.retained / before["test"].retained if before["test"].retained else 0.0,
        "setting": best,
        "frontier": [[list(setting), *point] for setting, point in tested.items()],
        "tried": [[list(setting), *point] for setting, point in tried.items()],
        "starts": list(dict.fromkeys(setting for setting in kept if setting)),
        **lab.look(tries[best]() if best else lab.target),
    }
    lab.say(f"{method}: area {found['area']:.3f}, gain {found['gain']:+.3f}")
    return found


def tuned(lab: Lab, recovered: dict[str, Any]) -> dict[str, Any]:
    """Test figures after a light tune on few records, half forgotten and half retained ones as a replay.

    A transfer may use no more records than the tune that follows it, for its score too. Starts, steps and rate are
    chosen by the mean of both abilities on validation records.
    """
    result: dict[str, Any] = {}
    for count in lab.settings["tune_records"]:
        with contextlib.suppress(Unmade):
            result[str(count)] = _tuned_on(lab, recovered, count)
    return result


def _tuned_on(lab: Lab, recovered: dict[str, Any], count: int) -> dict[str, Any]:
    methods = recovery_methods(lab, lab.scores(count))
    first: dict[str, list[Weights]] = {"no transfer": [lab.target]}
    for method in lab.settings["tune_methods"]:
        if method in recovered["methods"]:
            starts = [methods[method][tuple(setting)]() for setting in recovered["methods"][method]["starts"]]
            first[method] = starts or first["no transfer"]
    makers = {name: partial(_tuned, lab, count, name, starts) for name, starts in first.items()}
    return lab.each_kept(f"tune on {count} after ", makers)


def _tuned(lab: Lab, count: int, name: str, starts: list[Weights]) -> dict[str, Any]:
    tried: dict[Setting, tuple[float, Weights]] = {}
    for number, start in enumerate(starts):
        for steps in lab.settings["tune_steps"]:
            for rate in lab.settings["tune_rates"]:
                after = lab.tune(start, count, steps, rate)
                tried[number, steps, rate] = sum(lab.point(after, "validation")), after
    best = max(tried, key=lambda setting: tried[setting][0])
    untuned = lab.point(starts[best[0]], "validation")
    point = lab.point(tried[best][1], "test")
    lab.say(f"tune on {count} after {name}: {point.forgotten:.3f} / {point.retained:.3f}")
    return {**point._asdict(), "setting": [untuned, *best[1:]]}


def merge(lab: Lab) -> dict[str, Any]:
    """The worst ability of a merge of specialists, with settings chosen by it on validation records."""
    base = lab.donor
    target, *donors = all_of_them = [weights(model) for model in lab.siblings()]
    tops, strengths = lab.settings["merge_tops"], lab.settings["merge_strengths"]
    methods = candidates(lab, lab.merge_scores(), (target, donors), (base, all_of_them), tops, strengths)
    methods["average"] = {(): partial(interpolated, target, donors, len(donors) / len(all_of_them))}
    return lab.each_kept("merge, ", {name: partial(_merged, lab, name, tries) for name, tries in methods.items()})


def _merged(lab: Lab, method: str, tries: Candidates) -> dict[str, Any]:
    tried = {setting: min(lab.abilities(make(), "validation").values()) for setting, make in tries.items()}
    best = max(tried, key=lambda setting: tried[setting])
    figures = lab.abilities(tries[best](), "test")
    worst, mean = min(figures.values()), sum(figures.values()) / len(figures)
    lab.say(f"merging by {method}: worst ability {worst:.3f}")
    return {"worst": worst, "mean": mean, "setting": best, **figures}

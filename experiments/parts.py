"""The parts of the experiment, each for one seed: recovery and tuning, merging, analysis."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from laboratory import Candidates, Lab, Scores, Setting, candidates, scores

from act.data.corpus import Corpus
from act.lab.frontier import Point, area, best_keeping, frontier, relative
from act.lab.language import examples
from act.lab.mixing import Weights, interpolated, put, task_arithmetic, transferred, weights
from act.lab.regimes import ENGLISH, GERMAN, NEW_ENGLISH, OLD_ENGLISH, SIBLINGS, SPANISH, SWAHILI, Ability
from act.lab.tokenizer import corpus_of
from act.lab.train import tune
from act.profiling.measure import profile_pair
from act.ranking.analysis import concentration, overlap, sufficiency, top_channels
from act.ranking.attribution import attribution, fall_per_cost
from act.ranking.weights import random_scores, weight_diff


def recovery_methods(lab: Lab, by_rule: Scores) -> dict[str, Candidates]:
    """Every method of recovering from the base, with all its settings."""
    donor, target = weights(lab.regime.base()), weights(lab.regime.target())
    rules = {rule: [score] for rule, score in by_rule.items()}
    tops, strengths = lab.settings["tops"], lab.settings["strengths"]
    return candidates(lab, rules, (target, [donor]), (donor, [target]), tops, strengths)


def recover(lab: Lab) -> dict[str, Any]:
    """The frontier of every method, then a light tune from the settings that it suggests as starts."""
    donor, target = weights(lab.regime.base()), weights(lab.regime.target())
    before = {split: lab.point(target, split) for split in ("validation", "test")}
    ceiling = lab.point(donor, "test")
    methods = recovery_methods(lab, scores(lab))
    found: dict[str, Any] = {}
    starts: dict[str, list[Setting]] = {}
    for method, tries in methods.items():
        tried: dict[Setting, Point] = {setting: lab.point(make(), "validation") for setting, make in tries.items()}
        tested: dict[Setting, Point] = {setting: lab.point(tries[setting](), "test") for setting in frontier(tried)}
        best: Setting = best_keeping(tried, before["validation"])
        here = (tested.get(best) or lab.point(tries[best](), "test")) if best else before["test"]
        found[method] = {
            "area": area([relative(point, before["test"], ceiling) for point in tested.values()]),
            "gain": here.forgotten - before["test"].forgotten,
            "retained": here.retained / before["test"].retained if before["test"].retained else 0.0,
            "setting": best,
            "frontier": [[list(setting), *point] for setting, point in tested.items()],
        }
        shares = lab.settings["tune_starts"]
        kept: list[Setting] = [best_keeping(tried, before["validation"], share) for share in shares]
        starts[method] = list(dict.fromkeys(setting for setting in kept if setting))
        say(f"seed {lab.seed}: {method}: area {found[method]['area']:.3f}, gain {found[method]['gain']:+.3f}")
    return {"before": before["test"], "donor": ceiling, "methods": found, "tuned": tuned(lab, starts)}


def tuned(lab: Lab, starts: dict[str, list[Setting]]) -> dict[str, Any]:
    """Test figures after a light tune on few records, half German and half new skills as a replay.

    A transfer may use no more records than the tune that follows it, for its score too. Starts, steps and rate are
    chosen by the mean of both abilities on validation records.
    """
    result: dict[str, Any] = {}
    settings = lab.settings
    for count in settings["tune_records"]:
        # The score uses the first records of the tune, since examples() draws them in one order.
        methods = recovery_methods(lab, scores(lab, count))
        records = [*examples(*GERMAN, count), *examples(*NEW_ENGLISH, count)]
        untouched = [weights(lab.regime.target())]
        made: dict[str, list[Weights]] = {"no transfer": untouched}
        for method in ("attribution / cost", "paired", "weight-diff", "interpolation"):
            made[method] = [methods[method][setting]() for setting in starts[method]] or untouched
        result[str(count)] = {}
        for name, first in made.items():
            tried: dict[Setting, tuple[float, Weights]] = {}
            for number, start in enumerate(first):
                for steps in settings["tune_steps"]:
                    for rate in settings["tune_rates"]:
                        put(start, lab.model)
                        after = weights(tune(lab.model, lab.tokenizer, records, steps, rate, lab.seed))
                        tried[number, steps, rate] = sum(lab.point(after, "validation")), after
            best = max(tried, key=lambda setting: tried[setting][0])
            untuned = [lab.point(start, "validation") for start in first]
            point = lab.point(tried[best][1], "test")
            result[str(count)][name] = {**point._asdict(), "setting": [untuned[best[0]], *best[1:]]}
            say(f"seed {lab.seed}: tune on {count} after {name}: {point.forgotten:.3f} / {point.retained:.3f}")
    return result


def merge(lab: Lab) -> dict[str, Any]:
    """The worst ability of a merge of three siblings, with settings chosen by it on validation records."""
    settings = lab.settings
    models = {language: lab.regime.sibling(language) for language in SIBLINGS}
    base = weights(lab.regime.base())
    target, *donors = all_three = [weights(model) for model in models.values()]
    into = models["English"]
    others = [(models["German"], lab.corpus(GERMAN)), (models["Swahili"], lab.corpus(SWAHILI))]
    cost = [attribution(donor, into, lab.corpus(ENGLISH)) for donor, _ in others]
    fall = [attribution(donor, into, corpus) for donor, corpus in others]
    paired = [profile_pair(donor, into, corpus).mean_abs_diff for donor, corpus in others]
    kept = [profile_pair(donor, into, lab.corpus(ENGLISH)).mean_abs_diff for donor, _ in others]
    rules = {
        "attribution / cost": [fall_per_cost(one, other) for one, other in zip(fall, cost, strict=True)],
        "attribution": [-one.mean for one in fall],
        "paired": paired,
        "contrast, half": [one - other / 2 for one, other in zip(paired, kept, strict=True)],
        "weight-diff": [weight_diff(donor, into, lab.space) for donor, _ in others],
        "random": [random_scores(lab.space, lab.seed + 100 * number) for number in range(2)],
    }
    tops, strengths = settings["merge_tops"], settings["merge_strengths"]
    methods = candidates(lab, rules, (target, donors), (base, all_three), tops, strengths)
    methods["average"] = {(): partial(interpolated, target, donors, 2 / 3)}
    methods["task arithmetic"] = {(s,): partial(task_arithmetic, base, all_three, s) for s in settings["scales"]}
    abilities = {"old English": OLD_ENGLISH, "new English": NEW_ENGLISH, "German": GERMAN, "Swahili": SWAHILI}
    result: dict[str, Any] = {}
    for method, tries in methods.items():
        tried = {setting: min(_each(lab, make(), abilities.values(), "validation")) for setting, make in tries.items()}
        best = max(tried, key=lambda setting: tried[setting])
        figures = _each(lab, tries[best](), abilities.values(), "test")
        result[method] = {"worst": min(figures), "setting": best, **dict(zip(abilities, figures, strict=True))}
        say(f"seed {lab.seed}: merging by {method}: worst ability {min(figures):.3f}")
    return result


def _each(lab: Lab, mixed: Weights, abilities: Iterable[Ability], split: str) -> list[float]:
    return [lab.solved(mixed, ability, split) for ability in abilities]


def analyse(lab: Lab) -> dict[str, Any]:
    """Concentration, disentanglement, stability and sufficiency, of three scores."""
    donor, target = lab.regime.base(), lab.regime.target()
    count = lab.settings["localize_records"]
    twice = examples(*GERMAN, 2 * count)

    def both(corpus: Corpus) -> Scores:
        difference = profile_pair(donor, target, corpus).mean_abs_diff
        return {
            "paired": difference,
            "paired / std": lab.std(difference),
            "attribution": -attribution(donor, target, corpus).mean,
        }

    first, second = (both(corpus_of(half, lab.tokenizer, "German")) for half in (twice[:count], twice[count:]))
    few, spanish, new = both(lab.corpus(GERMAN, 16)), both(lab.corpus(SPANISH)), both(lab.corpus(NEW_ENGLISH))
    ours = {name: weights(model) for name, model in (("donor", donor), ("target", target))}
    result = {}
    for name, score in first.items():
        spread = concentration(score.clamp_min(0))
        result[name] = {
            "above a tenth of the largest": spread.above_tenth,
            "mass in the top 5 %": sufficiency(score, [0.05])[0],
            "Gini": spread.gini,
            "overlap, disjoint German": _jaccard(score, second[name]),
            "overlap, 16 German records": _jaccard(score, few[name]),
            "overlap, Spanish": _jaccard(score, spanish[name]),
            "overlap, new English": _jaccard(score, new[name]),
            "overlap, weight difference": _jaccard(score, weight_diff(donor, target, lab.space)),
            "sufficiency": {
                str(top): list(
                    lab.point(transferred(ours["target"], [ours["donor"]], [lab.top(score, top)], lab.space), "test")
                )
                for top in (0.01, 0.05, 0.1, 0.3)
            },
        }
    return result


def _jaccard(one: torch.Tensor, other: torch.Tensor) -> float:
    """Jaccard overlap of the top 5 %, which is about 0.026 by chance."""
    return overlap(top_channels(one, 0.05), top_channels(other, 0.05), len(one)).jaccard


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)

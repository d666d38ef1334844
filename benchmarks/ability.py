"""Which rule gives a model its lost ability back, and at what cost to the others?

    python benchmarks/ability.py --json benchmarks/results/ability.json [--seeds 0 1 2 3 4] [--cache DIR] [--quick]

*Recovery*: a specialist forgot German; its base is the donor. Each method has all its settings tried on validation
records; those on the frontier of recovered German against retained new skills are reported on test records, as the area
under the frontier and as the gain at 95 % retained. *Merging*: siblings in three languages become one model; the
figure is its worst ability. *Tuning*: a light fine-tune with few records, from the target and from each graft.
*Analysis*: the paper's four claims about the channels.

Models and the result of each seed are kept in the cache folder (remove it after changing code), so seeds can be run one
by one, also side by side; the last run collects them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import machine, write_json

from act.data.corpus import Corpus
from act.lab import regimes
from act.lab.evaluate import Exam
from act.lab.frontier import Point, area, best_keeping, frontier, relative
from act.lab.language import examples
from act.lab.mixing import Weights, dare, graft, interpolated, put, task_arithmetic, ties, weights
from act.lab.models import tiny_llama
from act.lab.regimes import ENGLISH, GERMAN, NEW_ENGLISH, OLD_ENGLISH, SIBLINGS, SPANISH, SWAHILI, Ability, Regime
from act.lab.tokenizer import build_tokenizer
from act.lab.train import tune
from act.models.channels import ChannelSpace
from act.profiling.measure import profile_pair
from act.ranking.attribution import attribution, fall_per_cost
from act.ranking.rank import normalized, random_scores, weight_diff

SETTINGS: dict[str, Any] = {
    "tops": [0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.45],
    "strengths": [0.4, 0.55, 0.7, 1.0],
    "merge_tops": [0.02, 0.05, 0.1, 0.2, 0.3],
    "merge_strengths": [0.4, 0.7, 1.0],
    "interpolations": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8],
    "densities": [0.1, 0.2, 0.35, 0.5, 0.7, 0.9],
    "scales": [0.4, 0.6, 0.8, 1.0, 1.3],
    "localize_records": 128,
    "validation_records": 256,
    "test_records": 512,
    "tune_records": [16, 64, 128],
    "tune_steps": [10, 40],
    "tune_rates": [5e-4, 2e-3],
    "tune_starts": [0.95, 0.85, 0.7],
    "base_steps": regimes.BASE_STEPS,
    "sibling_steps": regimes.SIBLING_STEPS,
}
QUICK = {
    **SETTINGS,
    "tops": [0.05, 0.3],
    "strengths": [1.0],
    "merge_tops": [0.1],
    "merge_strengths": [1.0],
    "interpolations": [0.1, 0.5],
    "densities": [0.5],
    "scales": [1.0],
    "localize_records": 16,
    "validation_records": 24,
    "test_records": 24,
    "tune_records": [8],
    "tune_steps": [2],
    "tune_rates": [2e-3],
    "tune_starts": [0.95],
    "base_steps": 0,  # the models that ship
    "sibling_steps": 2,
}

OURS = ("attribution / cost", "attribution")
"""Our rules; the others from the paper or from METHODS are forward-only scores, and CONTROLS what all must beat."""
CONTROLS = (
    "random",
    "weight-diff",
    "wrong ability: paired",
    "wrong ability: attribution / cost",
    "rows shuffled: paired",
    "rows shuffled: attribution / cost",
    "interpolation",
    "TIES",
    "DARE",
)
MERGE_CONTROLS = ("random", "weight-diff", "interpolation", "average", "task arithmetic", "TIES", "DARE")

Scores = dict[str, torch.Tensor]


class Lab:
    """Corpora, exams and one model to write mixed weights into, for one seed."""

    def __init__(self, settings: dict[str, Any], cache: Path, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.regime = Regime(cache, seed, settings["base_steps"], settings["sibling_steps"])
        self.tokenizer = build_tokenizer()
        self.model = tiny_llama(self.tokenizer, 0).eval()
        self.space = ChannelSpace.from_model(self.model)
        self._exams: dict[tuple[Ability, str], Exam] = {}

    def corpus(self, ability: Ability, count: int | None = None, seed: int = 0) -> Corpus:
        """Training records of an ability; the positions that predict the answer count."""
        return self.of(examples(*ability, count or self.settings["localize_records"], seed), ability[0])

    def of(self, records: Sequence[dict[str, str]], name: str) -> Corpus:
        """A corpus of records."""
        spaced = [{"prompt": record["prompt"], "completion": f" {record['completion']}"} for record in records]
        return Corpus.from_records(spaced, self.tokenizer, count="predict", name=name)

    def solved(self, mixed: Weights, ability: Ability, split: str) -> float:
        """Exact match of weights."""
        if (ability, split) not in self._exams:
            records = examples(*ability, self.settings[f"{split}_records"], split=split)
            self._exams[ability, split] = Exam(self.tokenizer, records)
        put(mixed, self.model)
        return self._exams[ability, split](self.model)

    def point(self, mixed: Weights, split: str) -> Point:
        """Forgotten German and retained new skills."""
        return Point(self.solved(mixed, GERMAN, split), self.solved(mixed, NEW_ENGLISH, split))

    def top(self, score: torch.Tensor, share: float) -> torch.Tensor:
        """1 on the channels with the highest scores, 0 elsewhere; every score gets the same number."""
        chosen = torch.zeros(len(self.space))
        order = score.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
        chosen[order[: max(1, round(share * len(self.space)))]] = 1
        return chosen

    def std(self, score: torch.Tensor) -> torch.Tensor:
        """Divided by its standard deviation over each module."""
        return normalized(score, self.space, "std")

    def shuffled(self, score: torch.Tensor) -> torch.Tensor:
        """The scores of each module dealt to its rows at random: how many of each stays, which ones does not."""
        generator = torch.Generator().manual_seed(self.seed)
        dealt = score.clone()
        for site in self.space:
            dealt[site.channels] = score[site.channels][torch.randperm(site.width, generator=generator)]
        return dealt

    def by_unit(self, score: torch.Tensor) -> torch.Tensor:
        """The mean over each neuron (gate, up row) and head (q, k, v rows), given to each of their channels."""
        heads = self.model.config.num_attention_heads
        pooled = score.clone()
        for layer in {site.layer for site in self.space} - {None}:
            sites = {site.kind: site for site in self.space if site.layer == layer}
            neurons = torch.stack([score[sites[kind].channels] for kind in ("gate", "up")]).mean(0)
            per_head = torch.stack([score[sites[kind].channels].view(heads, -1).mean(1) for kind in "qkv"]).mean(0)
            for kind in ("gate", "up"):
                pooled[sites[kind].channels] = neurons
            for kind in "qkv":
                pooled[sites[kind].channels] = per_head.repeat_interleave(sites[kind].width // heads)
        return pooled


def scores(lab: Lab, count: int | None = None) -> Scores:
    """Every rule's score for the recovery of German from the base, by name; ``count`` records to localise."""
    donor, target = lab.regime.base(), lab.regime.target()
    german, spanish, new, english = (
        profile_pair(donor, target, lab.corpus(ability, count)).mean_abs_diff
        for ability in (GERMAN, SPANISH, NEW_ENGLISH, ENGLISH)
    )
    fall, wrong, cost = (attribution(donor, target, lab.corpus(what, count)) for what in (GERMAN, SPANISH, NEW_ENGLISH))
    std = lab.std
    ours = fall_per_cost(fall, cost)
    return {
        "attribution / cost": ours,
        "attribution": -fall.mean,
        "paired": german,
        "paired / std": std(german),
        "contrast": german - english,
        "contrast, half": german - english / 2,
        "contrast / std": std(german) - std(english),
        "contrast / std, new skills": std(german) - std(new),
        "contrast / std, neurons and heads": lab.by_unit(std(german) - std(english)),
        "random": random_scores(lab.space, lab.seed),
        "weight-diff": weight_diff(donor, target, lab.space),
        "wrong ability: paired": spanish,
        "wrong ability: attribution / cost": fall_per_cost(wrong, cost),
        "rows shuffled: paired": lab.shuffled(german),
        "rows shuffled: attribution / cost": lab.shuffled(ours),
    }


Candidates = dict[Hashable, Callable[[], Weights]]


def recovery_methods(lab: Lab, by_rule: Scores) -> dict[str, Candidates]:
    """All settings of every method, each with the weights it gives."""
    settings = lab.settings
    donor, target = weights(lab.regime.base()), weights(lab.regime.target())
    methods: dict[str, Candidates] = {
        rule: {
            (top, strength): lambda score=score, top=top, strength=strength: graft(
                target, [donor], [strength * lab.top(score, top)], lab.space
            )
            for top in settings["tops"]
            for strength in settings["strengths"]
        }
        for rule, score in by_rule.items()
    }
    methods["interpolation"] = {
        (strength,): lambda strength=strength: interpolated(target, [donor], strength)
        for strength in settings["interpolations"]
    }
    pairs = [(density, scale) for density in settings["densities"] for scale in settings["scales"]]
    methods["TIES"] = {(d, s): lambda d=d, s=s: ties(donor, [target], d, s) for d, s in pairs}
    methods["DARE"] = {(d, s): lambda d=d, s=s: dare(donor, [target], d, s, lab.seed) for d, s in pairs}
    return methods


def recover(lab: Lab) -> dict[str, Any]:
    """The frontier of every method, then the light tune from the starts that it suggests."""
    donor, target = (weights(model) for model in (lab.regime.base(), lab.regime.target()))
    before = {split: lab.point(target, split) for split in ("validation", "test")}
    ceiling = lab.point(donor, "test")
    methods = recovery_methods(lab, scores(lab))
    found: dict[str, Any] = {}
    starts: dict[str, list[Hashable]] = {}
    for method, candidates in methods.items():
        tried = {setting: lab.point(make(), "validation") for setting, make in candidates.items()}
        tested = {setting: lab.point(candidates[setting](), "test") for setting in frontier(tried)}
        best = best_keeping(tried, before["validation"])
        here = (tested.get(best) or lab.point(candidates[best](), "test")) if best else before["test"]
        found[method] = {
            "area": area([relative(point, before["test"], ceiling) for point in tested.values()]),
            "gain": here.forgotten - before["test"].forgotten,
            "retained": here.retained / before["test"].retained if before["test"].retained else 0.0,
            "setting": best,
            "frontier": [[list(setting), *point] for setting, point in tested.items()],
        }
        shares = lab.settings["tune_starts"]
        kept = [best_keeping(tried, before["validation"], share) for share in shares]
        starts[method] = list(dict.fromkeys(setting for setting in kept if setting))
        say(f"seed {lab.seed}: {method}: area {found[method]['area']:.3f}, gain {found[method]['gain']:+.3f}")
    return {"before": before["test"], "donor": ceiling, "methods": found, "tuned": tuned(lab, starts)}


def tuned(lab: Lab, starts: dict[str, list[Hashable]]) -> dict[str, Any]:
    """Test figures after a light tune on few records, half German and half new skills as a replay.

    A graft may use no more records than the tune that follows it, for its score too. Starts, steps and rate are chosen
    by the mean of both abilities on validation records.
    """
    result: dict[str, Any] = {}
    settings = lab.settings
    for count in settings["tune_records"]:
        # The records of the score are the first of those of the tune: examples() draws them in one order.
        methods = recovery_methods(lab, scores(lab, count))
        records = [*examples(*GERMAN, count), *examples(*NEW_ENGLISH, count)]
        untouched = [weights(lab.regime.target())]
        made: dict[str, list[Weights]] = {"no transfer": untouched}
        for method in ("attribution / cost", "paired", "weight-diff", "interpolation"):
            made[method] = [methods[method][setting]() for setting in starts[method]] or untouched
        result[str(count)] = {}
        for name, first in made.items():
            tried: dict[Hashable, tuple[float, Weights]] = {}
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
    settings, space = lab.settings, lab.space
    models = {language: lab.regime.sibling(language) for language in SIBLINGS}
    base = weights(lab.regime.base())
    target, *donors = (weights(model) for model in models.values())
    all_three = [target, *donors]
    into, others = models["English"], [models["German"], models["Swahili"]]
    cost = [attribution(donor, into, lab.corpus(ENGLISH)) for donor in others]
    fall = [attribution(donor, into, lab.corpus(what)) for donor, what in zip(others, (GERMAN, SWAHILI), strict=True)]
    paired = [
        profile_pair(donor, into, lab.corpus(what)).mean_abs_diff
        for donor, what in zip(others, (GERMAN, SWAHILI), strict=True)
    ]
    kept = [profile_pair(donor, into, lab.corpus(ENGLISH)).mean_abs_diff for donor in others]
    rules = {
        "attribution / cost": [fall_per_cost(one, other) for one, other in zip(fall, cost, strict=True)],
        "attribution": [-one.mean for one in fall],
        "paired": paired,
        "contrast, half": [one - other / 2 for one, other in zip(paired, kept, strict=True)],
        "weight-diff": [weight_diff(donor, into, space) for donor in others],
        "random": [random_scores(space, lab.seed + 100 * number) for number in range(2)],
    }
    methods: dict[str, Candidates] = {
        rule: {
            (top, strength): lambda both=both, top=top, strength=strength: graft(
                target, donors, [strength * lab.top(score, top) for score in both], space
            )
            for top in settings["merge_tops"]
            for strength in settings["merge_strengths"]
        }
        for rule, both in rules.items()
    }
    methods["interpolation"] = {
        (strength,): lambda strength=strength: interpolated(target, donors, strength)
        for strength in settings["interpolations"]
    }
    methods["average"] = {(): lambda: interpolated(target, donors, 2 / 3)}
    scales, densities = settings["scales"], settings["densities"]
    methods["task arithmetic"] = {(s,): lambda s=s: task_arithmetic(base, all_three, s) for s in scales}
    pairs = [(density, scale) for density in densities for scale in scales]
    methods["TIES"] = {(d, s): lambda d=d, s=s: ties(base, all_three, d, s) for d, s in pairs}
    methods["DARE"] = {(d, s): lambda d=d, s=s: dare(base, all_three, d, s, lab.seed) for d, s in pairs}

    abilities = {"old English": OLD_ENGLISH, "new English": NEW_ENGLISH, "German": GERMAN, "Swahili": SWAHILI}
    result: dict[str, Any] = {}
    for method, candidates in methods.items():
        tried = {
            setting: min(_each(lab, make(), abilities.values(), "validation")) for setting, make in candidates.items()
        }
        best = max(tried, key=lambda setting: tried[setting])
        figures = _each(lab, candidates[best](), abilities.values(), "test")
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

    first, second = (both(lab.of(half, "German")) for half in (twice[:count], twice[count:]))
    few, spanish, new = both(lab.corpus(GERMAN, 16)), both(lab.corpus(SPANISH)), both(lab.corpus(NEW_ENGLISH))
    ours = {name: weights(model) for name, model in (("donor", donor), ("target", target))}
    result = {}
    for name, score in first.items():
        mass = score.clamp_min(0).sort(descending=True).values
        share = mass.cumsum(0) / mass.sum()
        ranks = torch.arange(1, len(mass) + 1, dtype=torch.float64)
        result[name] = {
            "above a tenth of the largest": (mass > mass[0] / 10).double().mean().item(),
            "mass in the top 5 %": share[round(0.05 * len(mass)) - 1].item(),
            "Gini": (1 - 2 * (ranks * mass).sum() / (len(mass) * mass.sum()) + 1 / len(mass)).item(),
            "overlap, disjoint German": _jaccard(lab, score, second[name]),
            "overlap, 16 German records": _jaccard(lab, score, few[name]),
            "overlap, Spanish": _jaccard(lab, score, spanish[name]),
            "overlap, new English": _jaccard(lab, score, new[name]),
            "overlap, weight difference": _jaccard(lab, score, weight_diff(donor, target, lab.space)),
            "sufficiency": {
                str(top): list(
                    lab.point(graft(ours["target"], [ours["donor"]], [lab.top(score, top)], lab.space), "test")
                )
                for top in (0.01, 0.05, 0.1, 0.3)
            },
        }
    return result


def _jaccard(lab: Lab, one: torch.Tensor, other: torch.Tensor) -> float:
    """Overlap of the top 5 %; by chance it is about 0.026."""
    a, b = (lab.top(score, 0.05).bool() for score in (one, other))
    return ((a & b).sum() / (a | b).sum()).item()


def run_seed(settings: dict[str, Any], cache: Path, seed: int) -> dict[str, Any]:
    """All parts for one seed, from the cache where they have run with these settings."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    result = {}
    for part, make in (("analysis", analyse), ("merging", merge), ("recovery", recover)):
        path = cache / f"{part}-{seed}-{key}.json"
        if not path.exists():
            write_json(path, make(Lab(settings, cache, seed)))
        result[part] = json.loads(path.read_text())
    return result


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def collect(by_seed: dict[int, dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """The file: figures by method and seed, and the verdict."""

    def by_method(part: Callable[[dict[str, Any]], dict[str, Any]], field: str) -> dict[str, dict[str, Any]]:
        names = part(next(iter(by_seed.values())))
        return {name: {str(seed): part(one)[name][field] for seed, one in by_seed.items()} for name in names}

    def methods(one: dict[str, Any]) -> dict[str, Any]:
        return one["recovery"]["methods"]

    result = {
        "recovery": by_method(methods, "area"),
        "gain_at_95": by_method(methods, "gain"),
        "retained_at_95": by_method(methods, "retained"),
        "setting_at_95": by_method(methods, "setting"),
        "merging": by_method(lambda one: one["merging"], "worst"),
        "merging_setting": by_method(lambda one: one["merging"], "setting"),
        "tuned": {
            count: {
                start: {
                    str(seed): {key: one["recovery"]["tuned"][count][start][key] for key in Point._fields}
                    for seed, one in by_seed.items()
                }
                for start in starts
            }
            for count, starts in next(iter(by_seed.values()))["recovery"]["tuned"].items()
        },
        "analysis": {str(seed): one["analysis"] for seed, one in by_seed.items()},
        "frontiers": by_method(methods, "frontier"),
        "target": {str(seed): one["recovery"]["before"] for seed, one in by_seed.items()},
        "donor": {str(seed): one["recovery"]["donor"] for seed, one in by_seed.items()},
        "controls": list(CONTROLS),
        "merge_controls": list(MERGE_CONTROLS),
        "channels": {str(top): max(1, round(top * _channels())) for top in settings["tops"]},
        "settings": settings,
    }
    return {**result, "verdict": verdict(result)}


def _channels() -> int:
    return len(ChannelSpace.from_model(tiny_llama(build_tokenizer(), 0)))


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """Our first rule against the best control of each seed."""

    def against(figures: dict[str, dict[str, float]], controls: Sequence[str]) -> dict[str, list[float]]:
        return {
            seed: [ours, max(figures[control][seed] for control in controls)] for seed, ours in figures[OURS[0]].items()
        }

    return {
        "area, ours and best control": against(result["recovery"], CONTROLS),
        "gain at 95 %, ours and best control": against(result["gain_at_95"], CONTROLS),
        "worst ability after merging, ours and best control": against(result["merging"], MERGE_CONTROLS),
    }


def table(result: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, best area first."""

    def cell(figures: dict[str, float] | None) -> str:
        if figures is None:
            return ""
        values = list(figures.values())
        return f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}"

    names = sorted(result["recovery"], key=lambda name: -statistics.mean(result["recovery"][name].values()))
    names += [name for name in result["merging"] if name not in names]
    lines = [f"{'':36s}{'area':>14s}{'gain at 95 %':>14s}{'kept':>14s}{'merged, worst':>15s}"]
    for name in names:
        columns = ("recovery", "gain_at_95", "retained_at_95", "merging")
        cells = [cell(result[column].get(name)) for column in columns]
        star = " *" if name in CONTROLS or name in MERGE_CONTROLS else ""
        lines.append(f"{name + star:36s}" + "".join(f"{text:>14s}" for text in cells))
    lines.append("* control\n")
    for count, starts in result["tuned"].items():
        lines.append(f"tuned on {count} records (forgotten / retained):")
        for start, seeds in starts.items():
            both = [cell({seed: point[field] for seed, point in seeds.items()}) for field in Point._fields]
            lines.append(f"  {start:34s}" + " / ".join(both))
    return "\n".join(lines)


def main() -> None:
    """Run the seeds, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keeps models and results (default: temporary)")
    parser.add_argument("--quick", action="store_true", help="the shipped models and few settings: does it run?")
    options = parser.parse_args()
    settings = QUICK if options.quick else SETTINGS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        cache = options.cache or Path(scratch)
        by_seed = {seed: run_seed(settings, cache, seed) for seed in options.seeds}
    result = collect(by_seed, settings)
    print(table(result))
    command = "python benchmarks/ability.py --json OUT --seeds " + " ".join(map(str, options.seeds))
    write_json(
        options.json, {**result, "command": command + (" --quick" if options.quick else ""), "machine": machine()}
    )


if __name__ == "__main__":
    main()

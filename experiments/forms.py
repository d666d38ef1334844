"""Which form of local match finds the channels best? Every form that was tried, on models that no table reports.

    python experiments/forms.py --json experiments/results/forms.json --cache DIR [--data DIR] [--pairs "invented 10" …]
                                [--made]

A form says how modules are compared, what a change costs, and how the LM head is looked at (:mod:`mismatch`). Each is
judged as a method of :mod:`parts` is, on validation records alone: the area under the frontier of recovered against
retained ability, and the gain with the setting that keeps 95 %. The pairs are a new specialist of the base that ships
(the invented language), and a base and a specialist of real prose, smaller than those of ``language.py``.
Everything is kept in the cache folder.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import torch
from ability import QUICK as INVENTED_QUICK
from ability import SETTINGS as INVENTED
from invented import InventedLab
from laboratory import Lab, Scores
from language import DATA
from language import QUICK as PROSE_QUICK
from language import SETTINGS as PROSE
from measure import options, record
from mismatch import Form, Views, views
from prose import MATHEMATICS, Texts
from reading import ProseLab
from schooling import School
from transformers import PreTrainedModel

from act.core.files import written_whole
from act.lab.frontier import Point, area, best_keeping, frontier, relative
from act.lab.mixing import transferred
from act.lab.models import load, save
from act.lab.train import train_target

METHOD = Form()
BEST = Form(module="mean size", head="likely", power=1.0)
"""What ``act.rank`` computes as ``match``."""
CONTRAST = Form(module="mean size", against="fall", head="of the donor")
"""What it computes as ``match-contrast``."""
VARIED: dict[str, tuple[Any, ...]] = {
    "against": ("both", "nothing", "ratio", "penalty"),
    "head": ("as others", "of both", "means", "log-normal", "divergence", "left out", "centred", "curvature"),
    "module": (
        "mean D2",
        "sum size",
        "none",
        "sum D2",
        "residual stream",
        "D2 of the kind",
        "D2 of the channel",
        "mean swap2",
    ),
    "power": (0.25, 0.5),
    "fall": ("1.0", "0.5", "best strength"),
    "units": (True,),
    "change": ("none", "mean D2", "sum size", "mean swap2"),
    "then": ("std", "kind-std"),
    "embedding": ("left out",),
}
"""What was tried instead of each part of :data:`BEST`, one at a time."""
HALF: tuple[dict[str, Any], ...] = (
    *({"head": head} for head in ("as others", "of both", "means", "log-normal")),
    *({"module": module} for module in ("mean D2", "sum size")),
    {"units": True},
    {"fall": "1.0"},
    {"against": "both"},
)
"""What was tried instead of parts of it with the root of the cost."""
FORMS = {
    form.name: form
    for form in (
        BEST,
        CONTRAST,
        METHOD,
        *(replace(BEST, **{part: other}) for part, others in VARIED.items() for other in others),
        replace(METHOD, against="fall"),
        *(replace(BEST, power=0.5, **one) for one in HALF),
        *(replace(BEST, power=0.5, head="log-normal", against=against) for against in ("fall", *VARIED["against"])),
        *(
            replace(BEST, power=0.5, head=head, against="both")
            for head in ("as others", "divergence", "centred", "left out")
        ),
        *(replace(CONTRAST, head=head) for head in ("likely", "of both", "means")),
    )
}
REFERENCES = ("attribution / cost", "contrast / std", "paired", "weight-diff", "random")

SETTINGS: dict[str, Any] = {
    "invented": {
        **INVENTED,
        "base_steps": 0,  # the base that ships
        "tops": [0.03, 0.08, 0.15, 0.3],
        "strengths": [0.55, 1.0],
        "validation_records": 128,
    },
    "prose": {
        **PROSE,
        "models": {
            **PROSE["models"],
            "shape": {"hidden": 128, "inner": 320, "layers": 3, "heads": 4},
            "width": 160,
            "base_steps": 900,
            "base_every": 150,
            "specialist_steps": 200,
            "specialist_rows": 8,
            "validation_texts": 32,
            "read_tokens": 128,
        },
        "tops": [0.06, 0.15, 0.3, 0.45],
        "strengths": [0.55, 1.0],
    },
}
QUICK = {
    "invented": {**INVENTED_QUICK, "validation_records": 12},
    "prose": PROSE_QUICK,
}


class NewSpecialist(InventedLab):
    """A specialist of the base that ships, trained with a seed of its own."""

    @cached_property
    def target_model(self) -> PreTrainedModel:
        folder = self.folder / "target"
        if not folder.exists():
            model, _ = train_target(self.donor_model, self.tokenizer, self.seed)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(folder, directory=True) as temporary:
                save(model, self.tokenizer, temporary)
        return load(folder)[0]


PAIRS = ("invented 10", "prose 9")


def lab_of(pair: str, settings: dict[str, Any], cache: Path, data: Path) -> Lab:
    """The run that a pair names: an experiment and a seed."""
    experiment, seed = pair.split()
    mine = settings[experiment]
    if experiment == "invented":
        return NewSpecialist(mine, cache, int(seed))
    return ProseLab(mine, cache, School(mine, Texts(data), cache / "prose-models"), int(seed), MATHEMATICS)


def judged(lab: Lab, score: torch.Tensor) -> dict[str, Any]:
    """Area and gain of a score on validation records, and which kinds of modules its best tenth is of."""
    before, ceiling = (lab.point(model, "validation") for model in (lab.target, lab.donor))
    tried: dict[tuple[float, float], Point] = {
        (top, strength): lab.point(
            transferred(lab.target, [lab.donor], [strength * lab.top(score, top)], lab.space), "validation"
        )
        for top in lab.settings["tops"]
        for strength in lab.settings["strengths"]
    }
    best = best_keeping(tried, before)
    chosen = lab.top(score, 0.1)
    kinds = Counter({site.kind: 0 for site in lab.space})
    for site in lab.space:
        kinds[site.kind] += int(chosen[site.channels].sum())
    found = {
        "area": area([relative(tried[setting], before, ceiling) for setting in frontier(tried)]),
        "gain": tried[best].forgotten - before.forgotten if best else 0.0,
        "retained": tried[best].retained / before.retained if best else 1.0,
        "setting": best,
        "kinds": dict(kinds),
    }
    lab.say(f"area {found['area']:.3f}, gain {found['gain']:+.3f}")
    return found


def measured(lab: Lab) -> tuple[Views, Views]:
    """What is measured of the forgotten ability and of the retained one, all views of each."""
    texts = lab.texts()
    return views(lab, texts["forgotten"], "donor"), views(lab, texts["retained"], "target")


def tried(lab: Lab) -> dict[str, dict[str, Any]]:
    """The figures of every form and reference."""
    found: dict[str, Any] = {}
    both: list[tuple[Views, Views]] = []
    references: list[Scores] = []

    def of_form(form: Form) -> dict[str, Any]:
        both.extend([] if both else [measured(lab)])
        return judged(lab, form.score(lab, *both[0]))

    def of_reference(name: str) -> dict[str, Any]:
        references.extend([] if references else [lab.scores()])
        return judged(lab, references[0][name])

    found |= lab.each_kept("form ", {name: partial(of_form, form) for name, form in FORMS.items()})
    found |= lab.each_kept("reference ", {name: partial(of_reference, name) for name in REFERENCES})
    return found


def collect(by_pair: dict[str, dict[str, dict[str, Any]]], settings: dict[str, Any]) -> dict[str, Any]:
    """What the result file holds."""
    names = dict.fromkeys(name for found in by_pair.values() for name in found)
    fields = {"area": "area", "gain_at_95": "gain", "retained_at_95": "retained", "kinds_of_best_tenth": "kinds"}
    return {
        **{
            title: {
                name: {pair: found[name][field] for pair, found in by_pair.items() if name in found} for name in names
            }
            for title, field in fields.items()
        },
        "forms": {name: asdict(form) for name, form in FORMS.items()},
        "built": [BEST.name, CONTRAST.name],
        "references": list(REFERENCES),
        "untried": {
            pair: [name for name in (*FORMS, *REFERENCES) if name not in found] for pair, found in by_pair.items()
        },
        "settings": settings,
    }


def summary(result: dict[str, Any]) -> str:
    """Area and gain of each form on each pair, the best mean area first."""
    names = sorted(result["area"], key=lambda name: -statistics.mean(result["area"][name].values()))
    pairs = list(result["untried"])
    lines = ["area / gain at 95 %: " + ", ".join(pairs)]
    for name in names:
        area, gain = result["area"][name], result["gain_at_95"][name]
        figures = (f"{area[pair]:.2f} / {gain[pair]:.2f}" if pair in area else "-" * 11 for pair in pairs)
        lines.append("  ".join([*figures, f"[{name}]" if name in REFERENCES else name]))
    return "\n".join(lines)


def main() -> None:
    """Try every form on every pair, print the figures, write the file."""
    parser = options(__doc__)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="PAIR", help=f"default: {', '.join(PAIRS)}")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keeps models and results (default: temporary)")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="help pages and problems")
    parser.add_argument("--quick", action="store_true", help="tiny models and few settings: does it run?")
    parser.add_argument("--made", action="store_true", help="compute nothing: write what the cache has")
    given = parser.parse_args()
    settings = QUICK if given.quick else SETTINGS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        cache = given.cache or Path(scratch)
        labs = {pair: lab_of(pair, settings, cache, given.data) for pair in given.pairs}
        for lab in labs.values():
            lab.frozen = given.made
        by_pair = {pair: tried(lab) for pair, lab in labs.items()}
    result = collect(by_pair, settings)
    print(summary(result))
    command = "python experiments/forms.py --json OUT --cache DIR"
    record(given.json, {**result, "command": command + (" --quick" if given.quick else "")})


if __name__ == "__main__":
    main()

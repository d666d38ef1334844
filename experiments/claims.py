"""The paper's claims about channels, each with figures and a verdict, for one run of an experiment."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from laboratory import Lab, Scores
from torch import nn

from act.data.corpus import Corpus
from act.lab.frontier import relative
from act.lab.mixing import transferred
from act.profiling.measure import profile_pair
from act.ranking.analysis import concentration, necessity, overlap, score_held, top_channels
from act.ranking.attribution import attribution
from act.ranking.rank import rank
from act.ranking.weights import weight_diff

TOP = 0.05
SHARES = (0.01, 0.05, 0.1, 0.3)


def claims(lab: Lab) -> dict[str, Any]:
    """The figures of each claim by the paper's score, raw and by module, and by ours; the verdicts by the raw one."""
    texts = lab.texts()
    by_text = {name: _scores(lab, corpus) for name, corpus in texts.items()}
    figures = {
        rule: _figures(lab, {name: found[rule] for name, found in by_text.items()}) for rule in by_text["forgotten"]
    }
    figures["paired"]["necessity"] = _necessity(lab, texts["forgotten"])
    return {"figures": figures, "verdicts": verdicts(figures["paired"], lab.other)}


def verdicts(figures: dict[str, Any], words: str) -> dict[str, list[Any]]:
    """For each claim: the figure that decides, and whether it holds; ``words`` say what the other ability is."""
    above, half = figures["above a tenth of the largest"], figures["mass in the top 5 %"]
    same, other, kept, chance = (figures[f"overlap, {name}"] for name in ("again", "other", "retained", "chance"))
    recovered, retained = figures["sufficiency"][str(TOP)]
    lost = figures["necessity"]
    mine, theirs, random = lost["forgotten"], lost["other"], lost["forgotten, random"]
    return {
        "concentration": [
            f"{above:.0%} of the channels exceed a tenth of the largest difference; the top 5 % have {half:.0%} of it",
            _word(above < TOP, above < 4 * TOP),
        ],
        "stability": [f"overlap {same:.2f} on other texts, {chance:.2f} by chance", _word(same > 0.8, same > 0.5)],
        "disentanglement": [
            f"overlap {other:.2f} with {words} and {kept:.2f} with what was trained, {same:.2f} with itself",
            _word(max(other, kept) < same / 2, min(other, kept) < same / 2),
        ],
        "sufficiency": [
            f"the top 5 % alone give back {recovered:.2f} and keep {retained:.2f}",
            _word(recovered > 0.5 and retained > 0.95, recovered > 0.25 and retained > 0.9),
        ],
        "necessity": [
            f"without the top 5 % the donor loses {mine:.2f} of it, {theirs:.2f} of {words}, and {random:.2f} "
            "without as many random ones",
            _word(mine > 2 * max(theirs, random), mine > 2 * random),
        ],
    }


def _word(holds: bool, partly: bool) -> str:
    return "holds" if holds else "holds in part" if partly else "does not hold"


def _scores(lab: Lab, corpus: Corpus) -> Scores:
    difference = profile_pair(lab.donor_model, lab.target_model, corpus).mean_abs_diff
    fall = -attribution(lab.donor_model, lab.target_model, corpus).mean
    for site in lab.space:
        if site.tied_to:  # its parameter moves with the other site
            difference[site.channels] = fall[site.channels] = torch.nan
    return {"paired": difference, "paired / std": lab.std(difference), "attribution": fall}


def _figures(lab: Lab, by_text: dict[str, torch.Tensor]) -> dict[str, Any]:
    score = by_text["forgotten"]
    spread = concentration(score.clamp_min(0))
    against = {name: other for name, other in by_text.items() if name != "forgotten"}
    against["weight difference"] = weight_diff(lab.donor_model, lab.target_model, lab.space)
    found = {
        name: overlap(top_channels(score, TOP), top_channels(other, TOP), len(score)) for name, other in against.items()
    }
    before, ceiling = (lab.point(model, "test") for model in (lab.target, lab.donor))
    moved = {
        share: lab.point(transferred(lab.target, [lab.donor], [lab.top(score, share)], lab.space), "test")
        for share in SHARES
    }
    return {
        "above a tenth of the largest": spread.above_tenth,
        "mass in the top 5 %": score_held(score, [TOP])[0],
        "Gini": spread.gini,
        "ccdf": [spread.thresholds[::10], spread.above[::10]],
        **{f"overlap, {name}": one.jaccard for name, one in found.items()},
        "overlap, chance": found["again"].chance,
        "sufficiency": {str(share): relative(point, before, ceiling) for share, point in moved.items()},
    }


def _loss(lab: Lab, role: str, model: nn.Module) -> float:
    return -lab.worth(model, role, "test")


def _necessity(lab: Lab, corpus: Corpus) -> dict[str, float]:
    """The share of what the donor is worth, above the target, that it loses as the means of channels replace them."""
    pair = profile_pair(lab.donor_model, lab.target_model, corpus)
    sets = {"": rank(pair, "paired", TOP), ", random": rank(pair, "random", TOP, seed=lab.seed)}
    found: dict[str, float] = {}
    for role in ("forgotten", "other"):
        whole, without = lab.worth(lab.donor_model, role, "test"), lab.worth(lab.target_model, role, "test")
        losses = necessity(lab.donor_model, sets, pair, partial(_loss, lab, role))
        found |= {f"{role}{name}": (losses[name] - losses["whole"]) / (whole - without) for name in sets}
    return found

"""The models, corpora and exams of one seed, the scores of every rule, and all settings of every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from act.data.corpus import Corpus
from act.lab.evaluate import Exam
from act.lab.frontier import Point
from act.lab.language import examples
from act.lab.mixing import Weights, dare, interpolated, put, ties, transferred
from act.lab.models import tiny_llama
from act.lab.regimes import ENGLISH, GERMAN, NEW_ENGLISH, SPANISH, Ability, Regime
from act.lab.tokenizer import build_tokenizer, corpus_of
from act.models.channels import ChannelSpace
from act.profiling.measure import profile_pair
from act.ranking.attribution import attribution, fall_per_cost
from act.ranking.granularity import units_of
from act.ranking.normalize import normalized
from act.ranking.selection import best
from act.ranking.weights import random_scores, weight_diff

Scores = dict[str, torch.Tensor]
Setting = Any  # a tuple: share and strength, or whatever a method takes
Candidates = dict[Setting, Callable[[], Weights]]
"""Settings of a method, each with a function that makes the weights."""


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
        records = examples(*ability, count or self.settings["localize_records"], seed)
        return corpus_of(records, self.tokenizer, ability[0])

    def solved(self, mixed: Weights, ability: Ability, split: str) -> float:
        """Exact match of an ability with these weights, on the records of a split."""
        if (ability, split) not in self._exams:
            records = examples(*ability, self.settings[f"{split}_records"], split=split)
            self._exams[ability, split] = Exam(self.tokenizer, records)
        put(mixed, self.model)
        return self._exams[ability, split](self.model)

    def point(self, mixed: Weights, split: str) -> Point:
        """Exact match of forgotten German and of the retained new skills."""
        return Point(self.solved(mixed, GERMAN, split), self.solved(mixed, NEW_ENGLISH, split))

    def top(self, score: torch.Tensor, share: float) -> torch.Tensor:
        """1 on the channels with the highest scores, 0 elsewhere; every score gets the same number of channels."""
        chosen = torch.zeros(len(self.space))
        chosen[best(score.nan_to_num(nan=-torch.inf), max(1, round(share * len(self.space))))] = 1
        return chosen

    def std(self, score: torch.Tensor) -> torch.Tensor:
        """The score divided by its standard deviation over each module."""
        return normalized(score, self.space, "std")

    def shuffled(self, score: torch.Tensor) -> torch.Tensor:
        """The scores shuffled within each module, which keeps how many of its channels lead, but not which."""
        generator = torch.Generator().manual_seed(self.seed)
        shuffled = score.clone()
        for site in self.space:
            shuffled[site.channels] = score[site.channels][torch.randperm(site.width, generator=generator)]
        return shuffled

    def by_unit(self, score: torch.Tensor) -> torch.Tensor:
        """Every channel's mean score over its neuron (gate and up row) or head (q, k and v rows)."""
        pooled = score.clone()
        for units in units_of(self.space, ["neuron", "head"]):
            pooled[units.channels_of(torch.arange(len(units)))] = units.scores(score).repeat_interleave(units.size)
        return pooled


def scores(lab: Lab, count: int | None = None) -> Scores:
    """Every rule's score for the recovery of German from the base, by name; ``count`` records are profiled."""
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


def candidates(
    lab: Lab,
    rules: dict[str, list[torch.Tensor]],
    moved: tuple[Weights, list[Weights]],
    merged: tuple[Weights, list[Weights]],
    tops: Sequence[float],
    strengths: Sequence[float],
) -> dict[str, Candidates]:
    """Every method with all its settings.

    Rules (one score per donor) and interpolation work on ``moved``, a target and its donors; TIES and DARE work on
    ``merged``, a base and its specialists.
    """
    settings, (target, donors), (base, specialists) = lab.settings, moved, merged

    def top_moved(scores: list[torch.Tensor], top: float, strength: float) -> Weights:
        return transferred(target, donors, [strength * lab.top(score, top) for score in scores], lab.space)

    methods: dict[str, Candidates] = {
        rule: {(top, strength): partial(top_moved, scores, top, strength) for top in tops for strength in strengths}
        for rule, scores in rules.items()
    }
    methods["interpolation"] = {(s,): partial(interpolated, target, donors, s) for s in settings["interpolations"]}
    pairs = [(density, scale) for density in settings["densities"] for scale in settings["scales"]]
    methods["TIES"] = {pair: partial(ties, base, specialists, *pair) for pair in pairs}
    methods["DARE"] = {pair: partial(dare, base, specialists, *pair, lab.seed) for pair in pairs}
    return methods

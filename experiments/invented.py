"""A run on the invented language: a specialist that forgot German, its base, and the scores of every rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from laboratory import Lab, Scores
from torch import nn
from transformers import PreTrainedModel

from act.data.corpus import Corpus
from act.lab.evaluate import Exam
from act.lab.frontier import Point
from act.lab.language import examples
from act.lab.mixing import Weights, put, weights
from act.lab.models import tiny_llama
from act.lab.regimes import (
    ENGLISH,
    GERMAN,
    NEW_ENGLISH,
    OLD_ENGLISH,
    SIBLINGS,
    SPANISH,
    SWAHILI,
    Ability,
    Regime,
)
from act.lab.tokenizer import build_tokenizer, corpus_of
from act.lab.train import tune
from act.profiling.measure import profile_pair
from act.ranking.attribution import attribution, fall_per_cost
from act.ranking.weights import random_scores, weight_diff

MERGED = {"old English": OLD_ENGLISH, "new English": NEW_ENGLISH, "German": GERMAN, "Swahili": SWAHILI}


class InventedLab(Lab):
    """The run of one seed; figures are exact matches."""

    def __init__(self, settings: dict[str, Any], cache: Path, seed: int) -> None:
        super().__init__(settings, cache, f"seed {seed}", seed)
        self.regime = Regime(cache, seed, settings["base_steps"], settings["sibling_steps"])
        self.tokenizer = build_tokenizer()
        self.model = tiny_llama(self.tokenizer, 0).eval()
        self._exams: dict[tuple[Ability, str], Exam] = {}

    @cached_property
    def donor_model(self) -> PreTrainedModel:
        return self.regime.base()

    @cached_property
    def target_model(self) -> PreTrainedModel:
        return self.regime.target()

    def siblings(self) -> Sequence[PreTrainedModel]:
        return [self.regime.sibling(language) for language in SIBLINGS]

    def corpus(self, ability: Ability, count: int | None = None, seed: int = 0) -> Corpus:
        """Training records of an ability; the positions that predict the answer count."""
        records = examples(*ability, count or self.settings["localize_records"], seed)
        return corpus_of(records, self.tokenizer, ability[0])

    def solved(self, mixed: Weights, ability: Ability, split: str) -> float:
        """Exact match of an ability with these weights, on the records of a split."""
        put(mixed, self.model)
        return self._exam(ability, split)(self.model)

    def _exam(self, ability: Ability, split: str) -> Exam:
        if (ability, split) not in self._exams:
            records = examples(*ability, self.settings[f"{split}_records"], split=split)
            self._exams[ability, split] = Exam(self.tokenizer, records)
        return self._exams[ability, split]

    def point(self, mixed: Weights, split: str) -> Point:
        """Exact match of forgotten German and of the retained new skills."""
        return Point(self.solved(mixed, GERMAN, split), self.solved(mixed, NEW_ENGLISH, split))

    def abilities(self, mixed: Weights, split: str) -> dict[str, float]:
        return {name: self.solved(mixed, ability, split) for name, ability in MERGED.items()}

    def worth(self, model: nn.Module, role: str, split: str) -> float:
        return self._exam(GERMAN if role == "forgotten" else SPANISH, split)(model)

    def texts(self) -> dict[str, Corpus]:
        count = self.settings["localize_records"]
        again = examples(*GERMAN, 2 * count)[count:]
        return {
            "forgotten": self.corpus(GERMAN),
            "again": corpus_of(again, self.tokenizer, "German"),
            "other": self.corpus(SPANISH),
            "retained": self.corpus(NEW_ENGLISH),
        }

    def tune(self, mixed: Weights, count: int, steps: int, rate: float) -> Weights:
        records = [*examples(*GERMAN, count), *examples(*NEW_ENGLISH, count)]
        put(mixed, self.model)
        return weights(tune(self.model, self.tokenizer, records, steps, rate, self.seed))

    def scores(self, count: int | None = None) -> Scores:
        """The score uses the first records of a tune on as many, since ``examples`` draws them in one order."""
        donor, target = self.donor_model, self.target_model
        lost, kept, other, whole = (
            profile_pair(donor, target, self.corpus(what, count), swap=True)
            for what in (GERMAN, NEW_ENGLISH, SPANISH, ENGLISH)
        )
        german, new, spanish, english = (pair.mean_abs_diff for pair in (lost, kept, other, whole))
        fall, wrong, cost = (
            attribution(donor, target, self.corpus(what, count)) for what in (GERMAN, SPANISH, NEW_ENGLISH)
        )
        std = self.std
        ours = fall_per_cost(fall, cost)
        return {
            "attribution / cost": ours,
            "attribution": -fall.mean,
            "match": self.ranked("match", lost, kept),
            "match-contrast": self.ranked("match-contrast", lost, kept),
            "paired": german,
            "paired / std": std(german),
            "contrast": german - english,
            "contrast, half": german - english / 2,
            "contrast / std": std(german) - std(english),
            "contrast / std, new skills": std(german) - std(new),
            "contrast / std, neurons and heads": self.by_unit(std(german) - std(english)),
            "random": random_scores(self.space, self.seed),
            "weight-diff": weight_diff(donor, target, self.space),
            "wrong ability: paired": spanish,
            "wrong ability: attribution / cost": fall_per_cost(wrong, cost),
            "wrong ability: match": self.ranked("match", other, kept),
            "rows shuffled: paired": self.shuffled(german),
            "rows shuffled: attribution / cost": self.shuffled(ours),
        }

    def merge_scores(self) -> Mapping[str, Sequence[torch.Tensor]]:
        into, *rest = self.siblings()
        donors = list(zip(rest, (self.corpus(GERMAN), self.corpus(SWAHILI)), strict=True))
        cost = [attribution(donor, into, self.corpus(ENGLISH)) for donor, _ in donors]
        fall = [attribution(donor, into, corpus) for donor, corpus in donors]
        pairs = [profile_pair(donor, into, corpus, swap=True) for donor, corpus in donors]
        keeps = [profile_pair(donor, into, self.corpus(ENGLISH), swap=True) for donor, _ in donors]
        paired, kept = ([one.mean_abs_diff for one in found] for found in (pairs, keeps))
        return {
            "attribution / cost": [fall_per_cost(one, other) for one, other in zip(fall, cost, strict=True)],
            "attribution": [-one.mean for one in fall],
            "match": [self.ranked("match", *both) for both in zip(pairs, keeps, strict=True)],
            "match-contrast": [self.ranked("match-contrast", *both) for both in zip(pairs, keeps, strict=True)],
            "paired": paired,
            "contrast, half": [one - other / 2 for one, other in zip(paired, kept, strict=True)],
            "weight-diff": [weight_diff(donor, into, self.space) for donor, _ in donors],
            "random": [random_scores(self.space, self.seed + 100 * number) for number in range(2)],
        }

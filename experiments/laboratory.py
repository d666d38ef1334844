"""What every experiment has: runs with a donor and a target, what weights are worth, and all settings of all methods.

A :class:`Lab` is one run of an experiment; its parts (:mod:`parts`, :mod:`claims`) know no more of it than this class.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from act.core.files import written_whole
from act.data.corpus import Corpus
from act.lab.frontier import Point
from act.lab.mixing import Weights, dare, interpolated, task_arithmetic, ties, transferred, weights
from act.models.channels import ChannelSpace
from act.profiles.profile import PairProfile
from act.ranking.granularity import units_of
from act.ranking.normalize import normalized
from act.ranking.rank import rank
from act.ranking.scores import ScoreName
from act.ranking.selection import best

Scores = dict[str, torch.Tensor]
Setting = Any  # a tuple: share and strength, or whatever a method takes
Candidates = dict[Setting, Callable[[], Weights]]
"""Settings of a method, each with a function that makes the weights."""


class Unmade(LookupError):
    """What would have to be made, while nothing is to be."""


class Lab(ABC):
    """One run: a donor that can give back what the target forgot, and specialists to merge.

    Args:
        settings: of the experiment; results are kept under a hash of them.
        cache: the folder that keeps them.
        run: the name of the run.
        seed: of what is drawn at random.

    Attributes:
        frozen: whether nothing is made, and only what the cache has is given.
        other: what the ``other`` ability is, in words.
    """

    frozen = False
    other = "another language"

    def __init__(self, settings: dict[str, Any], cache: Path, run: str, seed: int) -> None:
        self.settings, self.run, self.seed = settings, run, seed
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = cache / f"{_slug(run)}-{key}"

    @cached_property
    @abstractmethod
    def donor_model(self) -> PreTrainedModel:
        """The base."""

    @cached_property
    @abstractmethod
    def target_model(self) -> PreTrainedModel:
        """The specialist that forgot."""

    @abstractmethod
    def siblings(self) -> Sequence[PreTrainedModel]:
        """The specialists to merge; the first is the one that the channels of the others move into."""

    @abstractmethod
    def scores(self, count: int | None = None) -> Scores:
        """Every rule's score for the recovery, by name; ``count`` records of each text are read."""

    @abstractmethod
    def merge_scores(self) -> Mapping[str, Sequence[torch.Tensor]]:
        """Every rule's scores for the merge, one for each sibling but the first."""

    @abstractmethod
    def point(self, mixed: Weights, split: str) -> Point:
        """What these weights are worth: the forgotten and the retained ability, more is better."""

    @abstractmethod
    def abilities(self, mixed: Weights, split: str) -> dict[str, float]:
        """What these weights are worth after a merge, by ability, 0 to 1."""

    @abstractmethod
    def texts(self) -> dict[str, Corpus]:
        """Texts to localise on: of the ``forgotten`` ability, as many ``again``, an ``other`` and the ``retained``."""

    @abstractmethod
    def worth(self, model: nn.Module, role: str, split: str) -> float:
        """What a model is worth at what is ``forgotten`` or at an ``other`` ability; more is better."""

    @abstractmethod
    def tune(self, mixed: Weights, count: int, steps: int, rate: float) -> Weights:
        """These weights after a light tune on ``count`` records of the forgotten ability, and of the retained one."""

    def look(self, mixed: Weights) -> dict[str, Any]:
        """More figures of a method's best setting, on the test records."""
        return {}

    @cached_property
    def donor(self) -> Weights:
        """The weights of the donor."""
        return weights(self.donor_model)

    @cached_property
    def target(self) -> Weights:
        """The weights of the target."""
        return weights(self.target_model)

    @cached_property
    def space(self) -> ChannelSpace:
        """The channels of both."""
        return ChannelSpace.from_model(self.target_model)

    def kept(self, name: str, make: Callable[[], Any], *, of_kept: bool = False) -> Any:
        """What ``make`` gives, as JSON has it, from the cache if it was made before with these settings.

        Raises:
            Unmade: it was not, and nothing is to be made; ``of_kept``: it only puts together what is kept itself, which
                is done without keeping it.
        """
        path = self.folder / f"{_slug(name)}.json"
        if self.frozen and not path.exists():
            if of_kept:
                return json.loads(json.dumps(make()))
            raise Unmade(name)
        if not path.exists():
            made = json.dumps(make(), indent=1)
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                temporary.write_text(made, encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    def each_kept(self, prefix: str, makers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """What each of the functions gives, kept by prefix and name; without those that are unmade."""
        found = {}
        for name, make in makers.items():
            with contextlib.suppress(Unmade):
                found[name] = self.kept(f"{prefix}{name}", make)
        return found

    def top(self, score: torch.Tensor, share: float) -> torch.Tensor:
        """1 on the channels with the highest scores, 0 elsewhere; every score gets the same number of channels."""
        chosen = torch.zeros(len(self.space))
        chosen[best(score.nan_to_num(nan=-torch.inf), max(1, round(share * len(self.space))))] = 1
        return chosen

    def ranked(self, score: ScoreName, ability: PairProfile, keep: PairProfile | None = None) -> torch.Tensor:
        """What ``act.rank`` gives every channel, float64 ``[N]``, NaN where it gives none."""
        found = rank(ability, score, 1.0, keep=keep)
        scores = torch.full((len(self.space),), torch.nan, dtype=torch.float64)
        scores[found.index] = found.scores
        return scores

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

    def say(self, line: str) -> None:
        """Print a line of progress."""
        print(f"{self.run}: {line}", file=sys.stderr, flush=True)


def candidates(
    lab: Lab,
    rules: Mapping[str, Sequence[torch.Tensor]],
    moved: tuple[Weights, list[Weights]],
    merged: tuple[Weights, list[Weights]],
    tops: Sequence[float],
    strengths: Sequence[float],
) -> dict[str, Candidates]:
    """Every method with all its settings.

    Rules (one score per donor) and interpolation work on ``moved``, a target and its donors; task arithmetic, TIES and
    DARE work on ``merged``, a base and its specialists.
    """
    settings, (target, donors), (base, specialists) = lab.settings, moved, merged

    def top_moved(scores: Sequence[torch.Tensor], top: float, strength: float) -> Weights:
        return transferred(target, donors, [strength * lab.top(score, top) for score in scores], lab.space)

    methods: dict[str, Candidates] = {
        rule: {(top, strength): partial(top_moved, scores, top, strength) for top in tops for strength in strengths}
        for rule, scores in rules.items()
    }
    methods["interpolation"] = {(s,): partial(interpolated, target, donors, s) for s in settings["interpolations"]}
    methods["task arithmetic"] = {(s,): partial(task_arithmetic, base, specialists, s) for s in settings["scales"]}
    pairs = [(density, scale) for density in settings["densities"] for scale in settings["scales"]]
    methods["TIES"] = {pair: partial(ties, base, specialists, *pair) for pair in pairs}
    methods["DARE"] = {pair: partial(dare, base, specialists, *pair, lab.seed) for pair in pairs}
    return methods


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name)

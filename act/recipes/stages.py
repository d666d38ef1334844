"""The stages of a recipe, one method each, which returns a kept result or does the work and keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from act.core.errors import ActError
from act.core.files import written_whole
from act.data.corpus import Corpus
from act.data.encode import Count
from act.editing.donor import Donor as TransferDonor
from act.editing.interpolation import interpolate
from act.editing.provenance import TransferProvenance
from act.editing.trainer import remove_saved
from act.editing.transfer import transfer_many
from act.editing.tune import save_tuned, tune
from act.evaluation.evaluate import Evaluation, evaluate
from act.evaluation.harness import TaskFigure, run_tasks
from act.models.loading import load_model
from act.profiles.profile import Profile, load
from act.ranking.channel_set import ChannelSet
from act.ranking.measured import measured_for
from act.ranking.rank import rank
from act.ranking.scores import SCORES, ScoreName
from act.recipes.cache import Cache
from act.recipes.corpora import opened
from act.recipes.kept import Kept
from act.recipes.schema import Donor, Recipe, StageName, Tuning
from act.recipes.variants import Variant, compared, result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Say = Callable[[str], None]
"""Called with what is being done, one line per step."""


class Moved(NamedTuple):
    """What a transfer changed: values, parameters, and where they came from."""

    values: int
    parameters: int
    provenance: TransferProvenance


class Stages:
    """The work of a recipe; models that are only read are loaded once for all stages."""

    def __init__(
        self,
        recipe: Recipe,
        cache: Cache,
        tokenizer: PreTrainedTokenizerBase,
        say: Say,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self._recipe, self._cache, self._tokenizer, self._say = recipe, cache, tokenizer, say
        self._load = partial(load_model, device=recipe.device, trust_remote_code=trust_remote_code)
        self._loaded: dict[str, nn.Module] = {}
        self._kept = Kept()

    def until(self, last: StageName) -> None:
        """Do all work up to a stage, that of the controls included."""
        variants = dict.fromkeys([result(self._recipe), *compared(self._recipe)])
        made = [variant for variant in variants if variant.origin != "given"]
        if last == "profile":
            for donor in self._recipe.models:
                for corpus in (donor.corpus, *donor.kept):
                    self.profile(donor, corpus)
        elif last == "rank":
            for donor in self._recipe.models:
                for score in dict.fromkeys(one.score or self._recipe.score for one in made):
                    self.rank(donor, score)
        elif last in ("transfer", "tune"):
            for variant in made:
                (self.tune if last == "tune" else self.transfer)(variant)
        else:
            self.tune(result(self._recipe))
            for variant in compared(self._recipe):
                self.evaluate(variant)
                self.tasks(variant)

    def profile(self, donor: Donor, corpus: str) -> Profile:
        """What channels are ranked by, on a corpus: a profile of donor and target as a pair, or by attribution."""
        path, target = self._cache.profile(donor, corpus), self._recipe.base_model
        if not self._kept.has(path):
            doing = "attributing" if self._recipe.score == "attribution" else "profiling"
            self._say(f"{doing} {donor.model} and {target} on {corpus}")
            text = self._corpus(corpus, self._recipe.count)
            models = self._shared(donor.model), self._shared(target)
            measured_for(self._recipe.score, *models, text, token_budget=self._recipe.token_budget).save(path)
            self._kept.add(path)
        return load(path)

    def rank(self, donor: Donor, score: ScoreName) -> ChannelSet:
        """The channels to take from a donor."""
        path, recipe = self._cache.channels(donor, score), self._recipe
        if not self._kept.has(path):
            profile = self.profile(donor, donor.corpus)
            looks = SCORES[score].looks_at_activations
            kept = [self.profile(donor, corpus) for corpus in donor.kept] if looks else []
            self._say(f"ranking the channels for {donor.corpus} by {score}")
            by_weights = SCORES[score].needs_models
            rank(
                profile,
                score,
                donor.parameters.top_p,
                keep=[*kept] or None,
                normalize=recipe.normalize,
                scope=recipe.scope,
                granularity=recipe.granularity,
                include=recipe.include,
                exclude=recipe.exclude,
                seed=self._cache.seed(donor),
                cost=recipe.cost if SCORES[score].takes_cost else "auto",
                donor=self._shared(donor.model) if by_weights else None,
                target=self._shared(recipe.base_model) if by_weights else None,
            ).save(path)
            self._kept.add(path)
        return ChannelSet.load(path)

    def transfer(self, variant: Variant) -> Path:
        """The model folder of a variant before any tune."""
        path, recipe = self._cache.model(variant), self._recipe
        if self._kept.has(path):
            return path
        self._say(f"making the model: {variant.name}")
        target = self._load(recipe.base_model, dtype=recipe.dtype)
        if variant.origin == "interpolation":
            assert recipe.evaluate
            interpolate(target, [self._shared(donor.model) for donor in recipe.models], recipe.evaluate.interpolation)
        elif variant.origin == "transfer":
            patch = transfer_many([self._given(donor, variant) for donor in recipe.models], target, recipe.overlap)
            header = {key: value for key, value in patch.provenance.to_json().items() if key != "parameters"}
            moved = {"values": len(patch), "parameters": patch.parameters, "header": header}
            with written_whole(self._cache.moved(variant), force=True) as temporary:
                temporary.write_text(json.dumps(moved), encoding="utf-8")
            self._kept.add(self._cache.moved(variant))
        save_tuned(target, self._tokenizer, path, source=recipe.base_model)
        self._kept.add(path)
        return path

    def moved(self, variant: Variant) -> Moved:
        """What the transfer of a variant changed."""
        path = self._cache.moved(variant)
        if not self._kept.has(path):
            raise ActError(f"{path} is missing; delete {self._cache.model(variant)} too, so that both are made again")
        found = json.loads(path.read_text(encoding="utf-8"))
        return Moved(found["values"], found["parameters"], TransferProvenance.from_json(found["header"]))

    def tune(self, variant: Variant) -> Path:
        """The model folder of a variant after the tune, if the recipe has one."""
        source, settings = self.transfer(variant), self._recipe.tune
        if not settings:
            return source
        path = self._cache.tuned(variant)
        checkpoints = path.with_name(f"{path.name}.checkpoints")
        if self._kept.has(path):
            remove_saved(checkpoints)
            return path
        self._say(f"tuning: {variant.name}")
        self._loaded.clear()  # memory for the optimiser
        model = self._load(str(source))
        stored = next(model.parameters()).dtype
        tuned = tune(
            model if settings.mode == "rows" else model.float(),
            self._corpus(settings.corpus),
            settings.settings(),
            replay=self._corpus(settings.replay) if settings.replay else None,
            channels=self._rows(variant, settings),
            checkpoints=checkpoints,
        )
        save_tuned(
            tuned.model, self._tokenizer, path, dtype=stored, source=self._recipe.base_model, checkpoints=checkpoints
        )
        self._kept.add(path)
        return path

    def evaluate(self, variant: Variant) -> list[Evaluation]:
        """The evaluations of a variant, one per corpus, under the names that the recipe gives."""
        path, recipe, settings = self._cache.figures(variant), self._recipe, self._recipe.evaluate
        assert settings
        if not settings.corpora:
            return []
        if not self._kept.has(path):
            model = self._to_evaluate(variant)
            self._say(f"evaluating: {variant.name}")
            found = [
                evaluate(
                    model,
                    self._corpus(place),
                    settings.metric,
                    max_new_tokens=settings.max_new_tokens,
                    token_budget=recipe.token_budget,
                )
                for place in settings.corpora.values()
            ]
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps([one.to_json() for one in found]), encoding="utf-8")
            self._kept.add(path)
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            replace(Evaluation.from_json(row), model=variant.name, corpus=name)
            for row, name in zip(rows, settings.corpora, strict=True)
        ]

    def tasks(self, variant: Variant) -> list[TaskFigure]:
        """The figures of a variant in tasks of lm-evaluation-harness."""
        path, settings = self._cache.tasks(variant), self._recipe.evaluate
        assert settings
        if not settings.tasks:
            return []
        if not self._kept.has(path):
            model = self._to_evaluate(variant)
            self._say(f"running {', '.join(settings.tasks)}: {variant.name}")
            found = run_tasks(
                model,
                self._tokenizer,
                settings.tasks,
                folder=Path(settings.task_folder) if settings.task_folder else None,
                limit=settings.limit,
                fewshot=settings.fewshot,
                name=variant.name,
            )
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps([one.to_json() for one in found]), encoding="utf-8")
            self._kept.add(path)
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [replace(TaskFigure.from_json(row), model=variant.name) for row in rows]

    def _to_evaluate(self, variant: Variant) -> nn.Module:
        """The model of a variant, alone in memory."""
        folder = variant.folder or str(self.tune(variant))
        self._loaded.clear()
        return self._load(folder, dtype=self._recipe.dtype)

    def _given(self, donor: Donor, variant: Variant) -> TransferDonor:
        channels = self.rank(donor, variant.score or self._recipe.score)
        given = TransferDonor(self._shared(donor.model), channels, donor.parameters.weight, name=donor.model)
        if variant.name == "act" or not isinstance(given.strength, dict):
            return given
        # A control has other channels, which need not lie where each pattern applies.
        return replace(given, strength={key: value for key, value in given.strength.items() if given.matches(key)} or 0)

    def _rows(self, variant: Variant, settings: Tuning) -> ChannelSet | None:
        """The channels of all donors together, if only their rows are tuned."""
        if settings.mode != "rows":
            return None
        sets = [self.rank(donor, variant.score or self._recipe.score) for donor in self._recipe.models]
        index = torch.cat([one.index for one in sets]).unique()
        names = {name for one in sets for name in one.inputs}
        inputs = {name: torch.cat([one.inputs[name] for one in sets if name in one.inputs]) for name in names}
        return ChannelSet(sets[0].space, index, torch.zeros(len(index), dtype=torch.float64), inputs=inputs)

    def _shared(self, name: str) -> nn.Module:
        """A model that is only read, loaded once."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name, dtype=self._recipe.dtype)
        return self._loaded[name]

    def _corpus(self, place: str, count: Count = "answer") -> Corpus:
        return Corpus(
            opened(self._recipe.records(place)),
            self._tokenizer,
            max_length=self._recipe.max_length,
            count=count,
            ignore_columns=self._recipe.ignore_columns,
            name=place,
        )

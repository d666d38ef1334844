"""The stages of a recipe, one method each, which returns a kept result or does the work and keeps it."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from act.core.errors import ActError
from act.core.files import MANIFEST, written_whole
from act.core.progress import Progress, silent
from act.data.corpus import Corpus
from act.data.encoded import Count
from act.editing.donor import Donor as TransferDonor
from act.editing.interpolation import interpolate
from act.editing.patch import ChangedRows, Patch
from act.editing.provenance import TransferProvenance
from act.editing.row_tuning import rows_to_train
from act.editing.rows import matrix_of
from act.editing.trainer import remove_checkpoints
from act.editing.transfer import transfer_many
from act.editing.tune import adapter_of, save_tuned, tune, with_adapter, write_model
from act.evaluation.choice import choose, choose_controls
from act.evaluation.evaluate import Evaluation, evaluate
from act.evaluation.evaluations import Evaluations
from act.evaluation.harness import TaskFigure, run_tasks
from act.models.loading import load_model
from act.models.views import language_view
from act.profiles.profile import Profile, load
from act.profiling.dtype_speed import warn_of_half
from act.profiling.observer import Observer
from act.ranking.channel_set import ChannelSet
from act.ranking.measured import measured_for
from act.ranking.rank import rank
from act.ranking.scores import SCORES, ScoreName
from act.recipes.cache import Cache
from act.recipes.corpora import opened
from act.recipes.kept import Kept
from act.recipes.schema import Donor, Recipe, StageName
from act.recipes.variants import Variant, compared, result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from act.data.batching import Batch
    from act.profiling.job import Job
    from act.profiling.run import Run

LARGE = 0.25
"""The share of the bytes of a model above which what made a control is not kept."""

Say = Callable[[str], None]
"""Called with what is being done, one line per step."""


class _Told(Observer):
    """Tells how many records a run has read."""

    def __init__(self, doing: str, progress: Progress) -> None:
        self._doing, self._progress, self._records = doing, progress, 0

    def prepare(self, job: Job) -> None:
        """See :class:`act.Observer`."""
        self._records = job.records or 0

    def before_run(self, run: Run) -> None:
        """See :class:`act.Observer`."""
        self._progress(self._doing, run.total.records, self._records)

    def after_batch(self, run: Run, batch: Batch) -> None:
        """See :class:`act.Observer`."""
        self._progress(self._doing, run.total.records, self._records)


class Stages:
    """The work of a recipe; models that are only read are loaded once for all stages."""

    def __init__(
        self,
        recipe: Recipe,
        cache: Cache,
        tokenizer: PreTrainedTokenizerBase,
        say: Say,
        *,
        progress: Progress = silent,
        trust_remote_code: bool = False,
    ) -> None:
        self._recipe, self._cache, self._tokenizer, self._say = recipe, cache, tokenizer, say
        self._progress = progress
        self._trust_remote_code = trust_remote_code
        self._loaded: dict[str, nn.Module] = {}
        self._kept = Kept()
        self._weights = math.inf  # bytes of a model, once one was measured

    def until(self, last: StageName) -> None:
        """Do all work up to a stage, that of the controls included."""
        recipe = self._recipe
        variants = list(dict.fromkeys([*compared(recipe), result(recipe)]))
        if last == "profile":
            for donor in recipe.donor:
                for corpus in (donor.corpus, *donor.kept):
                    self.profile(donor, corpus)
        elif last == "sweep":
            self.sweep_controls()
        elif last == "rank":
            for donor in recipe.donor:
                for score in dict.fromkeys(one.score or recipe.score for one in variants if one.origin != "given"):
                    self.rank(donor, score)
        else:
            if last == "evaluate":
                self.sweep_controls()
            for variant in variants:  # while the donors are in memory
                if variant.origin == "transfer" and (last == "transfer" or variant.is_result or self.lacks(variant)):
                    self.patch(variant)
            if last == "transfer":
                return
            for variant in variants:
                if last == "tune" and variant.tuned:
                    self.tune(variant)
                elif last == "evaluate":
                    self.measure(variant)
            for variant in variants:
                if last == "evaluate" and variant.origin == "transfer":
                    self._spare(variant, self._cache.patch(variant))

    def lacks(self, control: Variant) -> bool:
        """Whether a control, tuned or not, has figures that are not known; else nothing that makes it is needed."""
        alike = [one for one in compared(self._recipe) if one.kind == control.kind]
        return not all(self._kept.has(path) for one in alike for path in self._cache.measured(one))

    def _spare(self, control: Variant, path: Path) -> None:
        """Remove what a control was made by if it takes much room: its figures are kept."""
        large = path.is_dir() or (path.is_file() and path.stat().st_size > LARGE * self._weights)
        if large and not control.is_result:
            self._kept.drop(path)

    def profile(self, donor: Donor, corpus: str) -> Profile:
        """What channels are ranked by, on a corpus: a profile of donor and target as a pair, or by attribution."""
        path, target = self._cache.profile(donor, corpus), self._recipe.target
        if not self._kept.has(path):
            doing = "attributing" if self._recipe.score == "attribution" else "profiling"
            self._say(f"{doing} {donor.model} and {target} on {corpus}")
            text = self.corpus(corpus, self._recipe.count)
            models = self._shared(donor.model), self._shared(target)
            told = [_Told(doing, self._progress)]
            budget = self._recipe.token_budget
            measured_for(self._recipe.score, *models, text, token_budget=budget, observers=told).save(path)
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
                self._chosen(donor)[0],
                keep=[*kept] or None,
                **self._rules(donor, score),
                donor=self._shared(donor.model) if by_weights else None,
                target=self._shared(recipe.target) if by_weights else None,
            ).save(path)
            self._kept.add(path)
        return ChannelSet.load(path)

    def _rules(self, donor: Donor, score: ScoreName) -> dict[str, Any]:
        """What rank and choose take of a recipe by the same names."""
        recipe = self._recipe
        return {
            "normalize": recipe.normalize,
            "scope": recipe.scope,
            "granularity": recipe.granularity,
            "include": recipe.include,
            "exclude": recipe.exclude,
            "seed": self._cache.seed(donor),
            "cost": recipe.cost if SCORES[score].takes_cost else "auto",
        }

    def sweep(self) -> dict[str, Any] | None:
        """What a sweep chose, with all that it tried, as plain data; None for a recipe without one."""
        recipe, sweep = self._recipe, self._recipe.sweep
        if not sweep:
            return None
        path, (donor,) = self._cache.sweep(), recipe.donor
        if not self._kept.has(path):
            evaluations = Evaluations(path.with_suffix(".evaluations"))
            profile, kept = self._profiles(donor)
            shares, strengths = len(sweep.top), len(sweep.strength)
            self._say(
                f"trying {shares} share{'s' if shares > 1 else ''} of the channels at "
                f"{strengths} strength{'s' if strengths > 1 else ''}"
            )
            total, tried = 1 + len(sweep.top) * len(sweep.strength), itertools.count(1)
            self._progress("trying", 0, total)
            choice = choose(
                self._shared(donor.model),
                self._shared(recipe.target),
                profile,
                self.corpus(sweep.corpus),
                [self.corpus(corpus) for corpus in sweep.kept],
                least_kept=sweep.least_kept,
                tops=sweep.top,
                strengths=sweep.strength,
                metric=sweep.metric,
                score=recipe.score,
                keep_profiles=kept or None,
                report=lambda setting: self._progress("trying", next(tried), total),
                ranked_on=self._ranked_on(donor),
                checkpoints=evaluations.folder,
                **self._rules(donor, recipe.score),
            )
            before = [[one.to_json() for one in each] for each in choice.before]
            self._write(path, {**choice.to_json(), "card": choice.card(), "before": before})
            evaluations.remove()
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def sweep_controls(self) -> dict[str, list[dict[str, Any]]]:
        """What each control recovers and keeps at the settings of the sweep, as plain data; empty without one."""
        recipe, sweep = self._recipe, self._recipe.sweep
        if not sweep:
            return {}
        swept = self.sweep() or {}
        paths = {one: self._cache.swept_control(one) for one in (recipe.evaluate.controls if recipe.evaluate else ())}
        if left := [control for control, path in paths.items() if not self._kept.has(path)]:
            (donor,) = recipe.donor
            evaluations = Evaluations(self._cache.sweep().with_suffix(".evaluations"))
            profile, kept = self._profiles(donor)
            self._say(f"trying the controls {', '.join(left)} at these shares and strengths")
            tried = itertools.count(1)
            shares = sum(1 if control == "interpolation" else len(sweep.top) for control in left)
            total = shares * len(sweep.strength)
            self._progress("trying", 0, total)
            found = choose_controls(
                left,
                self._shared(donor.model),
                self._shared(recipe.target),
                profile,
                self.corpus(sweep.corpus),
                [self.corpus(corpus) for corpus in sweep.kept],
                tops=sweep.top,
                strengths=sweep.strength,
                metric=sweep.metric,
                keep_profiles=kept,
                ranked_on=self._ranked_on(donor),
                before=[[Evaluation.from_json(one) for one in each] for each in swept.get("before", [])],
                checkpoints=evaluations.folder,
                report=lambda setting: self._progress("trying", next(tried), total),
                **self._rules(donor, "random"),  # controls take no cost
            )
            for control, candidates in found.items():
                self._write(paths[control], [candidate.to_json() for candidate in candidates])
            evaluations.remove()
        return {control: json.loads(path.read_text(encoding="utf-8")) for control, path in paths.items()}

    def _profiles(self, donor: Donor) -> tuple[Profile, list[Profile]]:
        """What a sweep ranks by: the profile of the ability, and those of what to keep if the score looks at any."""
        looks = SCORES[self._recipe.score].looks_at_activations
        return self.profile(donor, donor.corpus), [self.profile(donor, one) for one in donor.kept if looks]

    def _ranked_on(self, donor: Donor) -> list[Corpus]:
        """The texts that the channels of a donor are ranked on, as far as they are on this machine."""
        found = []
        for name in (donor.corpus, *donor.kept):
            with contextlib.suppress(ActError):
                found.append(self.corpus(name))
        return found

    def patch(self, variant: Variant) -> Patch:
        """What a transfer changes in the target."""
        path, recipe = self._cache.patch(variant), self._recipe
        if not self._kept.has(path):
            donors = [self._given(donor, variant) for donor in recipe.donor]  # profiled and ranked first
            self._say(f"transferring: {variant.kind}")
            patch = transfer_many(donors, self._load(recipe.target, dtype=recipe.dtype), recipe.overlap)
            patch.save(path)
            self._kept.add(path)
        return Patch.load(path)

    def tune(self, variant: Variant) -> Path:
        """A tuned model: what changes the untuned one if rows or adapters were trained, else a folder."""
        path, settings = self._cache.tuned(variant), self._recipe.tune
        assert settings
        checkpoints = path.with_name(f"{path.stem}.checkpoints")
        if self._kept.has(path):
            remove_checkpoints(checkpoints)
            return path
        model = self._untuned(variant)
        self._loaded.clear()  # memory for the optimiser
        self._say(f"tuning: {variant.name}")
        stored = next(model.parameters()).dtype
        channels = self._rows(variant) if settings.mode == "rows" else None
        weights = dict(language_view(model).named_parameters())
        rows = rows_to_train(channels) if channels else {}
        before = {part: matrix_of(part, weights)[index].detach().clone() for part, index in rows.items()}
        tuned = tune(
            model if channels else model.float(),
            self.corpus(settings.corpus),
            settings.settings(),
            replay=self.corpus(settings.replay) if settings.replay else None,
            channels=channels,
            keep_adapter=settings.mode == "lora",
            checkpoints=checkpoints,
            restart=True,
            progress=self._progress,
        )
        source = self._recipe.at(self._recipe.target)
        if channels:
            changes = [
                ChangedRows(part, index, before[part], matrix_of(part, weights)[index].detach().clone())
                for part, index in rows.items()
            ]
            Patch(changes, TransferProvenance()).save(path)
            remove_checkpoints(checkpoints)
        elif settings.mode == "lora":
            with written_whole(path) as temporary:
                save_file(adapter_of(tuned.model), temporary)
            remove_checkpoints(checkpoints)
        else:
            save_tuned(tuned.model, self._tokenizer, path, dtype=stored, source=source, checkpoints=checkpoints)
        self._kept.add(path)
        return path

    def measure(self, variant: Variant) -> None:
        """Evaluate a variant on every corpus and task; of a control, what takes much room is not kept afterwards."""
        settings, cache = self._recipe.evaluate, self._cache
        if not settings:
            if variant.tuned:
                self.tune(variant)
            return
        left = [corpus for corpus in settings.corpora.values() if not self._kept.has(cache.figures(variant, corpus))]
        tasks = settings.tasks and not self._kept.has(cache.tasks(variant))
        if left or tasks:
            model = self._made(variant)
            self._weights = sum(one.numel() * one.element_size() for one in model.parameters())
            self._loaded.clear()  # it is alone in memory
            if left:
                self._evaluate(model, variant, left)
            if tasks:
                self._run_tasks(model, variant)
        if variant.tuned:
            self._spare(variant, cache.tuned(variant))

    def figures(self, variant: Variant) -> list[Evaluation]:
        """The evaluations of a variant that was measured, under the names that the recipe gives the corpora."""
        assert self._recipe.evaluate
        return [
            replace(
                Evaluation.from_json(json.loads(self._cache.figures(variant, corpus).read_text(encoding="utf-8"))),
                model=variant.name,
                corpus=name,
            )
            for name, corpus in self._recipe.evaluate.corpora.items()
        ]

    def tasks(self, variant: Variant) -> list[TaskFigure]:
        """The figures of a variant that was measured in tasks of lm-evaluation-harness."""
        assert self._recipe.evaluate
        if not self._recipe.evaluate.tasks:
            return []
        rows = json.loads(self._cache.tasks(variant).read_text(encoding="utf-8"))
        return [replace(TaskFigure.from_json(row), model=variant.name) for row in rows]

    def write(self, variant: Variant, folder: Path) -> None:
        """Write the model of a variant into a folder."""
        if variant.tuned and (path := self.tune(variant)).is_dir():
            shutil.copytree(path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        else:
            write_model(self._made(variant), self._tokenizer, folder, source=self._recipe.at(self._recipe.target))

    def _evaluate(self, model: nn.Module, variant: Variant, corpora: list[str]) -> None:
        settings = self._recipe.evaluate
        assert settings
        self._say(f"evaluating: {variant.name}")
        for corpus in dict.fromkeys(corpora):
            found = evaluate(
                model,
                self.corpus(corpus),
                settings.metric,
                max_new_tokens=settings.max_new_tokens,
                token_budget=self._recipe.stated_budget,
                progress=self._progress,
            )
            self._write(self._cache.figures(variant, corpus), found.to_json())

    def _run_tasks(self, model: nn.Module, variant: Variant) -> None:
        settings = self._recipe.evaluate
        assert settings
        self._say(f"running {', '.join(settings.tasks)}: {variant.name}")
        found = run_tasks(
            model,
            self._tokenizer,
            settings.tasks,
            folder=Path(self._recipe.at(settings.task_folder)) if settings.task_folder else None,
            limit=settings.limit,
            fewshot=settings.fewshot,
            name=variant.name,
        )
        self._write(self._cache.tasks(variant), [one.to_json() for one in found])

    def _write(self, path: Path, data: Any) -> None:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(data), encoding="utf-8")
        self._kept.add(path)

    def _made(self, variant: Variant) -> nn.Module:
        """The model of a variant, made from what is kept."""
        if not variant.tuned:
            return self._untuned(variant)
        path, settings = self.tune(variant), self._recipe.tune
        assert settings
        if settings.mode == "full":
            return self._load(str(path), dtype=self._recipe.dtype)
        model = self._untuned(variant)
        if settings.mode == "lora":
            return with_adapter(model, settings.settings(), load_file(path))
        Patch.load(path).apply(model)
        return model

    def _untuned(self, variant: Variant) -> nn.Module:
        """The model of a variant before any tune."""
        recipe = self._recipe
        patch = self.patch(variant) if variant.origin == "transfer" else None
        model = self._load(variant.given or recipe.target, dtype=recipe.dtype)
        if patch:
            patch.apply(model)
        elif variant.origin == "interpolation":
            assert recipe.evaluate
            interpolate(model, [self._shared(donor.model) for donor in recipe.donor], recipe.evaluate.interpolation)
        return model

    def _chosen(self, donor: Donor) -> tuple[float | str, float | dict[str, float]]:
        """The share and strength for a donor: its own, or what the sweep chose."""
        found = self.sweep()
        return (found["chosen"]["top"], found["chosen"]["strength"]) if found else (donor.top, donor.strengths)

    def _given(self, donor: Donor, variant: Variant) -> TransferDonor:
        channels = self.rank(donor, variant.score or self._recipe.score)
        given = TransferDonor(self._shared(donor.model), channels, self._chosen(donor)[1], name=donor.model)
        if variant.is_result or not isinstance(given.strength, dict):
            return given
        # A control has other channels, which need not lie where each pattern applies.
        return replace(given, strength={key: value for key, value in given.strength.items() if given.matches(key)} or 0)

    def _rows(self, variant: Variant) -> ChannelSet:
        """The channels of all donors together, of which the rows are tuned."""
        sets = [self.rank(donor, variant.score or self._recipe.score) for donor in self._recipe.donor]
        index = torch.cat([one.index for one in sets]).unique()
        names = {name for one in sets for name in one.inputs}
        inputs = {name: torch.cat([one.inputs[name] for one in sets if name in one.inputs]) for name in names}
        return ChannelSet(sets[0].space, index, torch.zeros(len(index), dtype=torch.float64), inputs=inputs)

    def _shared(self, name: str) -> nn.Module:
        """A model that is only read, loaded once."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name, dtype=self._recipe.dtype)
        return self._loaded[name]

    def _load(self, name: str, *, dtype: str) -> nn.Module:
        model = load_model(
            self._recipe.at(name), dtype=dtype, device=self._recipe.device, trust_remote_code=self._trust_remote_code
        )
        warn_of_half(model, "dtype: float32")
        return model

    def corpus(self, place: str, count: Count = "answer") -> Corpus:
        """A text by the name that a section gives it, read as the recipe says."""
        return Corpus(
            opened(self._recipe, place),
            self._tokenizer,
            max_length=self._recipe.max_length,
            count=count,
            ignore_columns=self._recipe.ignore_columns,
            name=place,
        )

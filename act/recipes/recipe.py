"""Recipes: one YAML file that describes the whole run, from the corpora to the evaluated model folder.

``act.recipe`` is this module: :func:`read_recipe` reads a file, :func:`check` looks at its inputs without weights,
:func:`run` makes its output, :class:`Run` also plans, and makes some stages only.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import yaml

from act.core.errors import ActError, option
from act.core.files import require_folder_name, require_output, require_writable, written_whole
from act.core.hashes import hash_of
from act.core.plain_yaml import read_yaml
from act.core.progress import Progress, silent
from act.core.scratch import reserved, sweep
from act.core.versions import versions
from act.editing.card_texts import fingerprints_said
from act.editing.model_card import block, write_card
from act.editing.tuned_card import then_tuned
from act.evaluation.comparison import ComparisonSummary, compare
from act.evaluation.evaluate import Summary
from act.evaluation.harness import TaskChange, TaskSummary, compare_tasks
from act.evaluation.results_table import figure_of_task, figures_of, results_table, tasks_table
from act.models.loading import load_tokenizer, reading_named, tokenizer_if_any
from act.recipes.cache import SCHEMA, Cache, clean, earlier_stages_of, size_of, stages_of
from act.recipes.check import Needs, Room, check, room_for
from act.recipes.inputs import (
    require_decoder,
    require_encodable,
    require_known_tasks,
    require_metrics,
    require_other_models,
    require_other_texts,
    require_readable,
    require_tokens,
)
from act.recipes.kept import is_kept
from act.recipes.page import page_of
from act.recipes.reading import RUN, read_recipe
from act.recipes.reused import Reused
from act.recipes.schema import Donor, Evaluating, Recipe, Records, StageName, Sweeping, Tuning, require_recipe
from act.recipes.stages import Say, Stages
from act.recipes.variants import Variant, compared, contrasts, result
from act.recipes.words import in_words_of_the_file
from act.report.page import PAGE, put_page

__all__ = [
    "Donor",
    "Evaluating",
    "Needs",
    "Recipe",
    "Records",
    "Report",
    "Room",
    "Run",
    "Sweeping",
    "Tuning",
    "check",
    "clean",
    "read_recipe",
    "room_for",
    "run",
    "stages_of",
]

RESOLVED = "recipe.yaml"
REPORT = "report.json"


class Stage(TypedDict):
    """A stage of the plan, and whether the result of an earlier run is used."""

    stage: str
    what: str
    kept: bool


class DonorReport(TypedDict):
    """What was taken from a donor: how many channels, and the strength, or one per pattern."""

    donor: str | None
    channels: int
    strength: float | dict[str, float]


class MovedReport(TypedDict):
    """How much the transfer changed, and what it left out."""

    values: int
    parameters: int
    notes: list[str]


class Report(TypedDict):
    """``report.json`` of the output.

    ``comparisons`` and ``task_comparisons`` are of the target with every other model, and of each control with the
    transfer; ``sweep`` is what :class:`act.Choice` says, if the recipe has one, with the candidates of each
    control; ``warnings`` are of texts to evaluate on that other sections use, too.
    """

    output: str
    key: str
    donors: list[DonorReport]
    moved: MovedReport
    sweep: dict[str, Any] | None
    results: list[Summary]
    comparisons: list[ComparisonSummary]
    tasks: list[TaskSummary]
    task_comparisons: list[TaskChange]
    warnings: list[str]


def run(
    recipe: Recipe,
    *,
    force: bool = False,
    say: Say = lambda step: None,
    progress: Progress = silent,
    trust_remote_code: bool = False,
) -> Report:
    """Run the stages of a recipe that no earlier run has done, write its output, and return the report.

    Args:
        recipe: from :func:`read_recipe`.
        force: replace the output, even one that is up to date.
        say: told what is being done, one line per step.
        progress: told how far a step is.
        trust_remote_code: whether Python code that a model brings along may run.

    Raises:
        ActError: as :class:`Run` and its stages; the output exists, was not made by this recipe, and ``force`` is
            False.

    >>> from pathlib import Path
    >>> for name, one in {"donor": donor, "target": target}.items():
    ...     one.save_pretrained(name)
    ...     _ = tokenizer.save_pretrained(name)
    >>> _ = Path("sums.jsonl").write_text('{"prompt": "What is 1 plus 1?", "completion": " 2"}\\n' * 4)
    >>> lines = ["target: target", "donor: [{model: donor, corpus: sums.jsonl}]", "output: out"]
    >>> _ = Path("recipe.yaml").write_text("\\n".join(lines))
    >>> report = act.recipe.run(act.recipe.read_recipe("recipe.yaml"))
    >>> report["output"], [donor["strength"] for donor in report["donors"]]
    ('out', [0.4])
    """
    return Run(recipe, say, progress=progress, trust_remote_code=trust_remote_code).execute(force=force)


class Run:
    """A recipe with the contents of its inputs; stages are kept in a folder beside the output.

    Args:
        recipe: from :func:`act.recipe.read_recipe`.
        say: called with a sentence for every step.
        progress: called while something long is done.
        trust_remote_code: whether Python code that a model brings along may run.

    Raises:
        ActError: an input that does not exist, or lacks rows or columns that are named, or whose first records are none
            for the target; an output that cannot be
            written; an encoder to tune or evaluate; a donor that is the target; an
            ability that is also to be kept, in whole or in part; a sweep on records that the channels are ranked on; a
            metric that records do not fit; a donor whose tokenizer gives a token id to another
            token than the target's. No model is loaded.

    >>> from pathlib import Path
    >>> from act.recipes.example import example
    >>> _ = Path("my.yaml").write_text(example("recover"))
    >>> recipe = act.recipe.read_recipe("my.yaml")
    >>> run = act.recipe.Run(recipe)
    >>> [stage["stage"] for stage in run.plan()][:4]
    ['profile', 'profile', 'sweep', 'sweep']
    >>> run.room(), run.done(), len(run.key) > 8  # nothing is made yet
    (0, False, True)
    """

    @in_words_of_the_file()
    def __init__(
        self,
        recipe: Recipe,
        say: Say = lambda step: None,
        *,
        progress: Progress = silent,
        trust_remote_code: bool = False,
    ) -> None:
        require_recipe(recipe)
        self.recipe = recipe
        self.say = say
        self.output = recipe.folder
        require_folder_name(self.output)
        require_writable(self.output)
        self.cache = Cache(recipe)
        if (earlier := earlier_stages_of(recipe)).is_dir():
            say(f"{earlier} is of an earlier version of act-profile, and not used; --clean removes it")
        for name in self.cache.absent:
            say(f"{name} is not here; what was made of it elsewhere is used")
        for name in recipe.corpora_used():
            if recipe.records(name).place not in self.cache.absent:
                require_readable(recipe, name)
        require_other_models(recipe)
        require_other_texts(recipe, self.cache.corpora)
        reused = Reused(recipe, self.cache.corpora)
        reused.require_unseen()
        self.warnings = reused.warnings()
        require_decoder(recipe, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(recipe.at(recipe.target), trust_remote_code=trust_remote_code)
        self.stages = Stages(recipe, self.cache, tokenizer, say, progress=progress, trust_remote_code=trust_remote_code)
        reader, _ = reading_named(recipe.at(recipe.target), trust_remote_code=trust_remote_code)
        for name in recipe.corpora_used():
            if recipe.records(name).place not in self.cache.absent:
                require_encodable(recipe, self.stages.corpus(name, recipe.count), reader)
                require_metrics(recipe, name, tokenizer)
        for name in recipe.models()[1:]:
            if name in self.cache.absent:
                continue
            if (theirs := tokenizer_if_any(recipe.at(name), trust_remote_code=trust_remote_code)) is None:
                say(f"{name} has no tokenizer, so it is unknown whether it reads the same tokens")
            else:
                require_tokens(recipe, name, theirs, tokenizer)

    @property
    def key(self) -> str:
        """Hash of the recipe and of the contents of its inputs."""
        return self.cache.key

    def plan(self) -> list[Stage]:
        """The stages in order, and whether each uses the result of an earlier run."""
        recipe, cache = self.recipe, self.cache
        variants = list(dict.fromkeys([*compared(recipe), result(recipe)]))
        found = []
        for donor in recipe.donor:
            for corpus in (donor.corpus, *donor.kept):
                what = f"{Path(donor.model).name} and {Path(recipe.target).name} on {corpus}"
                found.append(("profile", what, cache.profile(donor, corpus)))
        if recipe.sweep:
            found.append(("sweep", f"shares and strengths, on {recipe.sweep.corpus}", cache.sweep()))
            for control in recipe.evaluate.controls if recipe.evaluate else ():
                what = f"{control} at these, on {recipe.sweep.corpus}"
                found.append(("sweep", what, cache.swept_control(control)))
        for donor in recipe.donor:
            share = "a share" if recipe.sweep else donor.top
            what = f"{share} of the channels for {donor.corpus}"
            found.append(("rank", what, cache.channels(donor, recipe.score)))
        for variant in variants:
            if variant.origin == "transfer":
                what = (
                    variant.kind
                    if not variant.is_result
                    else " + ".join(Path(donor.model).name for donor in recipe.donor)
                )
                found.append(("transfer", what, cache.patch(variant)))
        if recipe.tune:
            what = f"{recipe.tune.mode} on {recipe.tune.corpus}"
            found.append(("tune", what, cache.tuned(result(recipe))))
        if recipe.evaluate:
            for variant in compared(recipe):
                for corpus in recipe.evaluate.corpora.values():
                    found.append(("evaluate", f"{variant.name} on {corpus}", cache.figures(variant, corpus)))
                if recipe.evaluate.tasks:
                    what = f"{variant.name} in {', '.join(recipe.evaluate.tasks)}"
                    found.append(("evaluate", what, cache.tasks(variant)))
        found = list(dict.fromkeys(found))
        spared = {
            cache.patch(one)
            for one in variants
            if one.origin == "transfer" and not (one.is_result or self.stages.lacks(one))
        }
        return [{"stage": stage, "what": what, "kept": is_kept(path) or path in spared} for stage, what, path in found]

    def room(self) -> int:
        """Bytes that the stages take now."""
        return size_of(self.cache.folder)

    def done(self) -> bool:
        """Whether the output was made by this recipe from these inputs, and is complete."""
        return self._lacking() == []

    @in_words_of_the_file()
    def make(self, until: StageName) -> list[Stage]:
        """Do the stages up to one, and nothing after it; the output is not made.

        The files of the stages are all that the later ones need: copied to another machine, beside the place of the
        output there, they are used by the same recipe.

        Returns:
            The plan, with what is kept now.

        Raises:
            ActError: as the stages; a task that the installed lm-evaluation-harness does not know.
        """
        with reserved(self.output):
            self._begin(until)
            self.stages.until(until)
        return self.plan()

    @in_words_of_the_file()
    def execute(self, *, force: bool = False) -> Report:
        """See :func:`run`."""
        with reserved(self.output):
            return self._execute(force)

    def _execute(self, force: bool) -> Report:
        lacking = None if force else self._lacking()
        if lacking == []:
            self.say(f"{self.output} is up to date: inputs and recipe have not changed")
            report: Report = json.loads((self.output / REPORT).read_text(encoding="utf-8"))
            return report
        if lacking:
            raise ActError(
                f"{self.output} was made by this recipe, but {lacking[0]} is missing or was changed since; "
                f"pass {option('--force', 'force=True')} to write it again from the stages that are kept"
            )
        if not force:
            self._require_not_made()
        inputs = [*self.cache.models, *self.cache.places]
        require_output(self.output, force, [*map(self.recipe.at, inputs), self.cache.folder])
        self._begin()
        self.stages.until("evaluate")
        report = self._report()
        with written_whole(self.output, force=force, directory=True) as folder:
            self.stages.write(result(self.recipe), folder)
            (folder / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
            self._write_resolved(folder)
            self._write_card(folder, report)
            file = self.recipe.written.file
            command = f"act-profile recipe{f' {shlex.quote(str(file))}' if file else ''}{' --force' if force else ''}"
            put_page(page_of(self.recipe, self.stages, {**report}, command), folder / PAGE)
        return report

    def _begin(self, last: StageName = "evaluate") -> None:
        if last == "evaluate":
            require_known_tasks(self.recipe)
        self.cache.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.cache.folder)
        self.cache.record()

    def _lacking(self) -> list[str] | None:
        """Files of the output that are missing or have another size; None if this recipe did not make the output."""
        try:
            found = self._made()
            files = found["files"].items() if found["key"] == self.key else None
        except (KeyError, TypeError, AttributeError):
            return None
        if files is None:
            return None
        sizes = _sizes(self.output)
        changed = [name for name, size in files if sizes.get(name) != size]
        return changed or ([] if found.get("report") == hash_of(self.output / REPORT) else [REPORT])

    def _made(self) -> Any:
        """What the resolved recipe in the output says it was made from; None if there is none."""
        try:
            return read_yaml(self.output / RESOLVED, "a resolved recipe")[1][RUN]
        except (ActError, KeyError, TypeError):
            return None

    def _require_not_made(self) -> None:
        made = self._made()
        schema = made.get("schema") if isinstance(made, dict) else None
        if schema not in (None, SCHEMA):
            raise ActError(
                f"{self.output} was made by another version of act-profile ({schema}, this one writes {SCHEMA}), so "
                f"its stages cannot be reused; pass {option('--force', 'force=True')} to make it again, or choose "
                "another output"
            )
        if schema:
            raise ActError(
                f"{self.output} exists already, made by another recipe, or by this one before it or its inputs "
                f"changed; pass {option('--force', 'force=True')} to replace it, which repeats only what the change "
                "decides, or choose another output"
            )

    def _report(self) -> Report:
        moved = self.stages.patch(result(self.recipe))
        variants = compared(self.recipe)
        figures = {variant: self.stages.figures(variant) for variant in variants}
        tasks = {variant: self.stages.tasks(variant) for variant in variants}
        pairs: list[tuple[Variant, Variant]] = contrasts(variants) if variants else []
        swept = self.stages.sweep()
        return {
            "output": str(self.output),
            "key": self.key,
            "donors": [
                {"donor": donor.name, "channels": donor.channels, "strength": donor.strength}
                for donor in moved.provenance.donors
            ],
            "moved": {
                "values": len(moved),
                "parameters": moved.parameters,
                "notes": list(moved.provenance.notes),
            },
            "sweep": {
                **{key: value for key, value in swept.items() if key not in ("card", "before")},
                "controls": self.stages.sweep_controls(),
            }
            if swept
            else None,
            "results": [one.summary() for found in figures.values() for one in found],
            "comparisons": [
                compare(*both).summary()
                for before, after in pairs
                for both in zip(figures[before], figures[after], strict=True)
            ],
            "tasks": [one.summary() for found in tasks.values() for one in found],
            "task_comparisons": [row for before, after in pairs for row in compare_tasks(tasks[before], tasks[after])],
            "warnings": self.warnings,
        }

    def _write_resolved(self, folder: Path) -> None:
        """Write the recipe with every default and whole paths, so that it can be run again, and what it was run on."""
        made = {
            "schema": SCHEMA,
            "key": self.key,
            "models": self.cache.models,
            "versions": versions(),
            "files": _sizes(folder),
            "report": hash_of(folder / REPORT),
        }
        text = yaml.safe_dump({**self.recipe.resolved(), RUN: made}, sort_keys=False, allow_unicode=True)
        (folder / RESOLVED).write_text(text, encoding="utf-8")

    def _trained_on(self) -> dict[str, list[str]]:
        """The fingerprints of the texts of the tune, by the names of their files."""
        tune = self.recipe.tune
        texts = [text for text in (tune.corpus, tune.replay) if text] if tune else []
        return {Path(text).name: [self.stages.corpus(text).source.fingerprint] for text in texts}

    def _write_card(self, folder: Path, report: Report) -> None:
        recipe, swept = self.recipe, self.stages.sweep()
        found = self.stages.patch(result(recipe)).provenance
        donors = tuple(replace(donor, name=recipe.at(donor.name or "")) for donor in found.donors)
        said = [f"## Share and strength\n\n{swept['card']}"] if swept else []
        tune, made = recipe.tune, result(recipe).name
        texts = [Path(text).name for text in (tune.corpus, tune.replay) if text] if tune else []
        results = [results_table(report["results"], report["comparisons"], own=made)] if report["results"] else []
        results += [f"**Note:** {warning}." for warning in report["warnings"]]
        results += [tasks_table(report["tasks"], own=made)] if report["tasks"] else []
        if tune and (known := fingerprints_said("trained", self._trained_on())):
            said.append(f"## The tune\n\n{known}")
        written = json.loads(json.dumps(recipe.model_dump(exclude_defaults=True)))
        text = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
        said.append(f"## The recipe\n\n{block(text, 'yaml')}")
        write_card(
            folder,
            recipe.at(recipe.target),
            replace(found, donors=donors),
            command="act-profile recipe",
            afterwards="\n\n".join(said),
            results="\n\n".join(results) or None,
            corpora=[recipe.records(name).place for name in recipe.corpora_used()],
            figures=[
                *(figure for row in report["results"] if row["model"] == made for figure in figures_of(row)),
                *(figure for row in report["tasks"] if row["model"] == made for figure in figure_of_task(row)),
            ],
            tuned=then_tuned(tune.settings(), texts) if tune else "",
            commands=False,
        )


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}

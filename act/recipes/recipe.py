"""Recipes: one YAML file that describes the whole run, from the corpora to the evaluated model folder.

``act.recipe`` is this module: :func:`read_recipe` reads a file, :func:`check` looks at its inputs without weights,
:func:`run` makes its output, :class:`Run` also plans, and makes some stages only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TypedDict

import yaml

from act.core.errors import ActError
from act.core.files import MANIFEST, require_output, written_whole
from act.core.hashes import hash_of
from act.core.plain_yaml import read_yaml
from act.core.scratch import companion, reserved, sweep
from act.core.versions import versions
from act.editing.model_card import write_card
from act.evaluation.comparison import ComparisonSummary, compare
from act.evaluation.evaluate import Summary
from act.evaluation.harness import TaskChange, TaskSummary, compare_tasks
from act.models.loading import load_tokenizer
from act.recipes.cache import SCHEMA, Cache
from act.recipes.check import Needs, check
from act.recipes.inputs import require_decoder, require_known_tasks, require_other_texts, require_tokens
from act.recipes.kept import is_kept
from act.recipes.reading import read_recipe
from act.recipes.schema import Donor, Evaluating, Parameters, Recipe, Records, StageName, Tuning
from act.recipes.stages import Say, Stages
from act.recipes.variants import compared, result

__all__ = [
    "Donor",
    "Evaluating",
    "Needs",
    "Parameters",
    "Recipe",
    "Records",
    "Report",
    "Run",
    "Tuning",
    "check",
    "read_recipe",
    "run",
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
    """``report.json`` of the output."""

    output: str
    key: str
    donors: list[DonorReport]
    moved: MovedReport
    results: list[Summary]
    comparisons: list[ComparisonSummary]
    tasks: list[TaskSummary]
    task_comparisons: list[TaskChange]


def run(
    recipe: Recipe, *, force: bool = False, say: Say = lambda step: None, trust_remote_code: bool = False
) -> Report:
    """Run the stages of a recipe that no earlier run has done, write its output, and return the report.

    Args:
        recipe: from :func:`read_recipe`; paths are relative to the working directory.
        force: replace the output, even one that is up to date.
        say: told what is being done, one line per step.
        trust_remote_code: whether Python code that a model brings along may run.

    Raises:
        ActError: as :class:`Run` and its stages; the output exists, was not made by this recipe, and ``force`` is
            False.

    >>> from pathlib import Path
    >>> for name, one in {"donor": donor, "target": target}.items():
    ...     one.save_pretrained(name)
    ...     _ = tokenizer.save_pretrained(name)
    >>> _ = Path("sums.jsonl").write_text('{"prompt": "What is 1 plus 1?", "completion": " 2"}\\n' * 4)
    >>> lines = ["merge_method: act", "base_model: target", "output: out"]
    >>> lines += ["models: [{model: donor, corpus: sums.jsonl}]"]
    >>> _ = Path("recipe.yaml").write_text("\\n".join(lines))
    >>> report = act.recipe.run(act.recipe.read_recipe("recipe.yaml"))
    >>> report["output"], [donor["strength"] for donor in report["donors"]]
    ('out', [0.4])
    """
    return Run(recipe, say, trust_remote_code=trust_remote_code).execute(force=force)


class Run:
    """A recipe with the contents of its inputs; stages are kept in a folder beside the output.

    Raises:
        ActError: an input that does not exist; an encoder to tune or evaluate; an ability that is also to be kept; a
            donor whose tokenizer gives a token id to another token than the target's. No model is loaded.
    """

    def __init__(self, recipe: Recipe, say: Say = lambda step: None, *, trust_remote_code: bool = False) -> None:
        self.recipe = recipe
        self.say = say
        self.output = Path(recipe.output)
        parent = self.output.absolute().parent
        if not parent.is_dir():
            raise ActError(f"cannot write {self.output}: its folder does not exist; create it first")
        self.cache = Cache(recipe, companion(parent / f".{self.output.name}", ".stages"))
        for name in self.cache.absent:
            say(f"{name} is not here; what was made of it elsewhere is used")
        require_other_texts(recipe, self.cache.corpora)
        require_decoder(recipe, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(recipe.base_model, trust_remote_code=trust_remote_code)
        self.stages = Stages(recipe, self.cache, tokenizer, say, trust_remote_code=trust_remote_code)
        for name in dict.fromkeys(donor.model for donor in recipe.models):
            if name in self.cache.absent:
                continue
            try:
                theirs = load_tokenizer(name, trust_remote_code=trust_remote_code)
            except ActError:
                say(f"{name} has no tokenizer, so it is not known whether it reads the same tokens")
                continue
            require_tokens(recipe, name, theirs, tokenizer)

    @property
    def key(self) -> str:
        """Hash of the recipe and of the contents of its inputs."""
        return self.cache.key

    def plan(self) -> list[Stage]:
        """The stages in order, and whether each uses the result of an earlier run."""
        recipe, cache, act = self.recipe, self.cache, result(self.recipe)
        found = []
        for donor in recipe.models:
            for corpus in (donor.corpus, *donor.kept):
                what = f"{donor.model} and {recipe.base_model} on {corpus}"
                found.append(("profile", what, cache.profile(donor, corpus)))
            what = f"{donor.parameters.top_p} of the channels for {donor.corpus}"
            found.append(("rank", what, cache.channels(donor, recipe.score)))
        found.append(("transfer", " + ".join(donor.model for donor in recipe.models), cache.model(act)))
        if recipe.tune:
            found.append(("tune", f"{recipe.tune.mode} on {recipe.tune.corpus}", cache.tuned(act)))
        if recipe.evaluate and recipe.evaluate.corpora:
            found += [("evaluate", variant.name, cache.figures(variant)) for variant in compared(recipe)]
        if recipe.evaluate and recipe.evaluate.tasks:
            of = ", ".join(recipe.evaluate.tasks)
            found += [("evaluate", f"{variant.name} in {of}", cache.tasks(variant)) for variant in compared(recipe)]
        return [{"stage": stage, "what": what, "kept": is_kept(path)} for stage, what, path in found]

    def done(self) -> bool:
        """Whether the output was made by this recipe from these inputs, and is complete."""
        return self._lacking() == []

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
                "pass --force (force=True in Python) to write it again from the stages that are kept"
            )
        if not force:
            self._require_own_version()
        require_output(self.output, force, [*self.cache.models, *self.cache.places])
        self._begin()
        model = self.stages.tune(result(self.recipe))
        report = self._report()
        with written_whole(self.output, force=force, directory=True) as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
            (folder / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
            self._write_resolved(folder)
            self._write_card(folder)
        return report

    def _begin(self, last: StageName = "evaluate") -> None:
        if last == "evaluate":
            require_known_tasks(self.recipe)
        self.cache.folder.mkdir(exist_ok=True)
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
            return read_yaml(self.output / RESOLVED, "a resolved recipe")[1]["run"]
        except (ActError, KeyError, TypeError):
            return None

    def _require_own_version(self) -> None:
        made = self._made()
        schema = made.get("schema") if isinstance(made, dict) else None
        if schema not in (None, SCHEMA):
            raise ActError(
                f"{self.output} was made by another version of act-profile ({schema}, this one writes {SCHEMA}), so "
                "its stages cannot be reused; pass --force (force=True in Python) to make it again, or choose another "
                "output"
            )

    def _report(self) -> Report:
        moved = self.stages.moved(result(self.recipe))
        variants = compared(self.recipe)
        figures = [self.stages.evaluate(variant) for variant in variants]
        tasks = [self.stages.tasks(variant) for variant in variants]
        return {
            "output": str(self.output),
            "key": self.key,
            "donors": [
                {"donor": donor.name, "channels": donor.channels, "strength": donor.strength}
                for donor in moved.provenance.donors
            ],
            "moved": {
                "values": moved.values,
                "parameters": moved.parameters,
                "notes": list(moved.provenance.notes),
            },
            "results": [one.summary() for found in figures for one in found],
            "comparisons": [
                compare(before, after).summary()
                for found in figures[1:]
                for before, after in zip(figures[0], found, strict=True)
            ],
            "tasks": [one.summary() for found in tasks for one in found],
            "task_comparisons": [row for found in tasks[1:] for row in compare_tasks(tasks[0], found)],
        }

    def _write_resolved(self, folder: Path) -> None:
        """Write the recipe with every default, and what the output was made from."""
        made = {
            "schema": SCHEMA,
            "key": self.key,
            "models": self.cache.models,
            "versions": versions(),
            "files": _sizes(folder),
            "report": hash_of(folder / REPORT),
        }
        text = yaml.safe_dump({**self.recipe.model_dump(), "run": made}, sort_keys=False, allow_unicode=True)
        (folder / RESOLVED).write_text(text, encoding="utf-8")

    def _write_card(self, folder: Path) -> None:
        recipe = self.recipe
        tuned = recipe.tune and f"Afterwards it was tuned ({recipe.tune.mode}) on {Path(recipe.tune.corpus).name}."
        write_card(
            folder,
            recipe.base_model,
            self.stages.moved(result(recipe)).provenance,
            command="act-profile recipe",
            afterwards=tuned or "",
        )


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}

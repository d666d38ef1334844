"""Where the result of each stage is kept: a file or folder named by a hash of everything that decides it.

So an interrupted run continues where it stopped, and a change repeats only the stages that depend on it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from act.core.errors import ActError, Missing
from act.core.files import written_whole
from act.core.hashes import feed, hash_of
from act.core.near import is_local
from act.core.plain import checked, parsed_json
from act.core.scratch import companion, reserved
from act.data.encode import ENCODING
from act.data.records import open_source
from act.editing.copies import companions
from act.editing.weight_files import RenamedWeights, read_mapping, weight_files
from act.evaluation.sweep import Control
from act.models.hub import downloaded, identifier
from act.ranking.scores import SCORES, ScoreName
from act.recipes.corpora import Absent, chosen
from act.recipes.kept import ENDING, Kept
from act.recipes.schema import Donor, Recipe, require_recipe
from act.recipes.variants import Variant

SCHEMA = "act-recipe/4"
"""The schema of recipe.yaml in the output; part of every hash, so that stages of other versions are not used."""

WEIGHTS = (".safetensors", ".bin")
MODEL_FILES = (*WEIGHTS, ".json", ".jinja", ".py")

INPUTS = "inputs.json"
"""In the folder of the stages: what the inputs were on the machine that made them."""
_INPUTS = TypeAdapter(dict[str, str | dict[str, str]])
_OURS = re.compile(
    rf"(inputs\.json|(pair|attribution|sweep|channels|patch|moved|model|tuned|figures|tasks)-[0-9a-f]{{16}}(\.[a-z]+)?)({ENDING})?"
    r"|\..*\.act-(lock|tmp-.*)"
)


def stages_of(recipe: Recipe) -> Path:
    """The folder of a recipe's stages, beside its output.

    >>> from pathlib import Path
    >>> from act.recipes.example import example
    >>> _ = Path("my.yaml").write_text(example("recover"))
    >>> recipe = act.recipe.read_recipe("my.yaml")
    >>> act.recipe.stages_of(recipe).name
    'mended.stages'
    """
    require_recipe(recipe)
    return companion(recipe.folder, ".stages")


def earlier_stages_of(recipe: Recipe) -> Path:
    """Where earlier versions kept them."""
    return companion(recipe.folder, ".stages", hidden=True)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def clean(recipe: Recipe) -> int:
    """Remove the stages of a recipe, and return how many bytes these were; its output stays.

    Raises:
        ActError: the folder holds what no recipe made, or another process is using it.

    >>> from pathlib import Path
    >>> from act.recipes.example import example
    >>> _ = Path("my.yaml").write_text(example("recover"))
    >>> recipe = act.recipe.read_recipe("my.yaml")
    >>> act.recipe.clean(recipe)
    0
    """
    require_recipe(recipe)
    size = 0
    with reserved(recipe.folder):
        for folder in (stages_of(recipe), earlier_stages_of(recipe)):
            foreign = [path.name for path in sorted(folder.glob("*")) if not _OURS.fullmatch(path.name)]
            if foreign:
                raise ActError(f"{folder} holds {foreign[0]}, which no recipe made; move it elsewhere, or remove it")
            if folder.is_dir():
                size += size_of(folder)
                shutil.rmtree(folder)
    return size


class Cache:
    """The paths of a recipe's stages in one folder.

    An input that is not on this machine is known by what :meth:`record` wrote on the one that made the stages, so that
    later stages need only their own inputs.

    Attributes:
        models: the content hash of every model, by the name that the recipe gives it.
        places: the fingerprint of every corpus by its place.
        corpora: the hash of the content of every corpus and of how it is read, by the name that the recipe gives it.
        absent: the models and places that are not here.

    Raises:
        ActError: a model or corpus that does not exist; stages of another version of this package. No model is loaded,
            but every file is read once.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.folder = stages_of(recipe)
        self.absent: list[str] = []
        self._recipe, self._kept = recipe, Kept()
        self._recorded = self._read_inputs()
        used = {name: recipe.records(name) for name in recipe.corpora_used()}
        self.models = {name: self._found("models", name, _model_content) for name in recipe.models()}
        places = dict.fromkeys(records.place for records in used.values())
        self.places = {place: self._found("corpora", place, _corpus_content) for place in places}
        self.corpora = {
            name: _hash(
                content=chosen(Absent(records.place, self.places[records.place]), records).fingerprint,
                encoding=ENCODING,
                ignored=recipe.ignore_columns,
            )
            for name, records in used.items()
        }

    def _found(self, kind: str, name: str, look: Callable[[str], str]) -> str:
        """What identifies an input that is here, or that was where the stages were made."""
        try:
            return look(self._recipe.at(name))
        except ActError as error:
            known = self._recorded.get(kind, {}).get(name)
            if known is None:
                raise self._recipe.written.blamed(name, error, self._recipe.corpora) from error
            self.absent.append(name)
            return known

    def _read_inputs(self) -> dict[str, dict[str, str]]:
        path = self.folder / INPUTS
        if not self._kept.has(path):
            return {}
        found = checked(_INPUTS, parsed_json(path.read_bytes()))
        schema = found.pop("schema", "an older one")
        if schema != SCHEMA:
            raise ActError(
                f"{self.folder} holds stages of another version of act-profile ({schema}; this one makes {SCHEMA}), "
                "which cannot be used; remove them with --clean, or choose another output"
            )
        return {kind: known for kind, known in found.items() if isinstance(known, dict)}

    def record(self) -> None:
        """Write what the inputs are beside the stages, for other machines."""
        before = self._recorded
        found = {
            kind: {**before.get(kind, {}), **now} for kind, now in (("models", self.models), ("corpora", self.places))
        }
        if found != before:
            with written_whole(self.folder / INPUTS, force=True) as temporary:
                text = json.dumps({"schema": SCHEMA, **found}, ensure_ascii=False, indent=1)
                temporary.write_text(text, encoding="utf-8")
            self._kept.add(self.folder / INPUTS)

    @property
    def key(self) -> str:
        """The hash of the whole run: of what its inputs hold, not of how the recipe names them."""
        settings = self._recipe.model_dump(exclude={"output", "target", "corpora"})
        for section in (*settings["donor"], settings["sweep"] or {}, settings["tune"] or {}):
            for name in ("corpus", "keep", "replay"):
                if given := section.get(name):
                    contents = [self.corpora[one] for one in ([given] if isinstance(given, str) else given)]
                    section[name] = contents
        for donor in settings["donor"]:
            donor["model"] = self.models[donor["model"]]
        if evaluating := self._recipe.evaluate:
            settings["evaluate"]["corpus"] = [[name, self.corpora[place]] for name, place in evaluating.corpora.items()]
            settings["evaluate"]["task_folder"] = self._tasks_content()
        return _hash(recipe=settings, target=self.models[self._recipe.target])

    def profile(self, donor: Donor, corpus: str) -> Path:
        """What channels are ranked by, on a corpus: a profile of donor and target as a pair, or by attribution."""
        recipe = self._recipe
        decided = _hash(
            donor=self.models[donor.model],
            target=self.models[recipe.target],
            corpus=self.corpora[corpus],
            count=recipe.count,
            max_length=recipe.max_length,
            token_budget=recipe.token_budget,
            dtype=recipe.dtype,
            **({"swap": True} if recipe.swaps else {}),
        )
        kind = "attribution" if recipe.score == "attribution" else "pair"
        return self.folder / f"{kind}-{decided}.safetensors"

    def sweep(self) -> Path:
        """The share and strength that a sweep chose, with all that it tried."""
        recipe, sweep = self._recipe, self._recipe.sweep
        assert sweep
        (donor,) = recipe.donor
        decided = _hash(
            ranked=self._ranked(donor, recipe.score),
            sweep=sweep.model_dump(exclude={"corpus", "keep"}),
            corpora=[self.corpora[corpus] for corpus in (sweep.corpus, *sweep.kept)],
            max_length=recipe.max_length,
            dtype=recipe.dtype,
        )
        return self.folder / f"sweep-{decided}.json"

    def swept_control(self, control: Control) -> Path:
        """What a control recovers and keeps at the settings of a sweep."""
        recipe, sweep = self._recipe, self._recipe.sweep
        assert sweep
        (donor,) = recipe.donor
        decided = _hash(
            control=control,
            ranked="" if control == "interpolation" else self._ranked(donor, control),
            profiles=[self.profile(donor, corpus).name for corpus in (donor.corpus, *donor.kept)],  # and the models
            sweep=sweep.model_dump(exclude={"corpus", "keep", "least_kept"}),
            corpora=[self.corpora[corpus] for corpus in (sweep.corpus, *sweep.kept)],
            max_length=recipe.max_length,
            dtype=recipe.dtype,
        )
        return self.folder / f"sweep-{decided}.json"

    def channels(self, donor: Donor, score: ScoreName) -> Path:
        """The channel set of a donor by a score."""
        top = self.sweep().name if self._recipe.sweep else donor.top
        return self.folder / f"channels-{_hash(ranked=self._ranked(donor, score), top=top)}.safetensors"

    def _ranked(self, donor: Donor, score: ScoreName) -> str:
        """All that decides the order of a donor's channels."""
        recipe = self._recipe
        kept = donor.kept if SCORES[score].looks_at_activations else []
        return _hash(
            profile=self.profile(donor, donor.corpus).name,
            keep=[self.profile(donor, corpus).name for corpus in kept],
            score=score,
            **({"cost": recipe.cost} if SCORES[score].takes_cost else {}),
            normalize=recipe.normalize,
            scope=recipe.scope,
            granularity=recipe.granularity,
            include=recipe.include,
            exclude=recipe.exclude,
            seed=self.seed(donor) if SCORES[score].takes_seed else None,
        )

    def seed(self, donor: Donor) -> int:
        """The seed of a donor; one seed for all would draw the same channels from each, so fewer in all."""
        return self._recipe.seed + next(number for number, one in enumerate(self._recipe.donor) if one is donor)

    def patch(self, variant: Variant) -> Path:
        """What a transfer changes in the target."""
        recipe = self._recipe
        strengths = self.sweep().name if recipe.sweep else [donor.strengths for donor in recipe.donor]
        decided = _hash(
            target=self.models[recipe.target],
            dtype=recipe.dtype,
            control=not variant.is_result,
            channels=self._sets(variant.score or recipe.score),
            strengths=strengths,
            overlap=recipe.overlap,
        )
        return self.folder / f"patch-{decided}.safetensors"

    def tuned(self, variant: Variant) -> Path:
        """A tuned model: what the tune changed, if it trained rows or adapters, else a folder."""
        recipe = self._recipe
        assert recipe.tune
        rows = recipe.tune.mode == "rows"
        decided = _hash(
            model=self._untuned(variant),
            tune=recipe.tune.model_dump(exclude={"corpus", "replay", "save_steps"}),
            corpus=self.corpora[recipe.tune.corpus],
            replay=self.corpora[recipe.tune.replay] if recipe.tune.replay else None,
            rows=self._sets(variant.score or recipe.score) if rows else None,
            max_length=recipe.max_length,
        )
        return self.folder / f"tuned-{decided}{'' if recipe.tune.mode == 'full' else '.safetensors'}"

    def figures(self, variant: Variant, corpus: str) -> Path:
        """The evaluation of a variant on a corpus."""
        recipe = self._recipe
        assert recipe.evaluate
        decided = _hash(
            model=self._evaluated(variant),
            corpus=self.corpora[corpus],
            metric=recipe.evaluate.metric,
            max_new_tokens=recipe.evaluate.max_new_tokens,
            max_length=recipe.max_length,
            token_budget=recipe.token_budget,
            dtype=recipe.dtype,
        )
        return self.folder / f"figures-{decided}.json"

    def tasks(self, variant: Variant) -> Path:
        """The figures of a variant in tasks of lm-evaluation-harness."""
        recipe = self._recipe
        assert recipe.evaluate
        settings = recipe.evaluate.model_dump(include={"limit", "fewshot"})
        decided = _hash(
            model=self._evaluated(variant),
            dtype=recipe.dtype,
            tasks=recipe.evaluate.tasks,
            task_folder=self._tasks_content(),
            **settings,
        )
        return self.folder / f"tasks-{decided}.json"

    def measured(self, variant: Variant) -> list[Path]:
        """All figures of a variant."""
        evaluating = self._recipe.evaluate
        if not evaluating:
            return []
        found = [self.figures(variant, corpus) for corpus in evaluating.corpora.values()]
        return [*found, self.tasks(variant)] if evaluating.tasks else found

    def _tasks_content(self) -> str | None:
        assert self._recipe.evaluate
        given = self._recipe.evaluate.task_folder
        folder = Path(self._recipe.at(given)) if given else None
        return hash_of(folder) if folder and folder.is_dir() else given

    def _evaluated(self, variant: Variant) -> str:
        return self.tuned(variant).name if variant.tuned else self._untuned(variant)

    def _untuned(self, variant: Variant) -> str:
        """All that decides a variant before any tune."""
        recipe = self._recipe
        if variant.origin == "transfer":
            return self.patch(variant).name
        if variant.origin == "interpolation":
            assert recipe.evaluate
            donors = [self.models[donor.model] for donor in recipe.donor]
            return _hash(
                target=self.models[recipe.target],
                dtype=recipe.dtype,
                donors=donors,
                interpolation=recipe.evaluate.interpolation,
            )
        return self.models[variant.given or recipe.target]

    def _sets(self, score: ScoreName) -> list[str]:
        return [self.channels(donor, score).name for donor in self._recipe.donor]


def _hash(**named: Any) -> str:
    """A hash of settings as they stand, so that the order of patterns and corpora counts, too."""
    return hashlib.sha256(json.dumps({"schema": SCHEMA, **named}, default=str).encode()).hexdigest()[:16]


def _corpus_content(place: str) -> str:
    return open_source(place).fingerprint


def _model_content(name: str) -> str:
    folder = Path(name)
    if not folder.exists() and identifier(name).count("/") == 1 and not is_local(name):
        folder = downloaded(name)
    if not (folder / "config.json").is_file():
        raise Missing(f"no such model: {name}; expected a folder in Hugging Face format (with a config.json)")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    names |= {*companions(folder), *_shards(folder)}
    files = sorted(name for name in names if Path(name).suffix in MODEL_FILES and name != "report.json")
    if not any(Path(name).suffix in WEIGHTS for name in files):
        raise ActError(f"{name} holds no weights; expected .safetensors files")
    return _hash(files={name: _file_content(folder / name) for name in files})


def _shards(folder: Path) -> list[str]:
    """The files of the weights, which an index may place in sub-folders."""
    try:
        return weight_files(folder, read_mapping(folder / "config.json")).shards
    except RenamedWeights:
        return []


def _file_content(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        feed(digest, path)
    except OSError as error:
        raise ActError(f"cannot read {path}: {error.strerror}; download or save the model again") from error
    return digest.hexdigest()[:16]

"""Where the result of each stage is kept: a file or folder named by a hash of everything that decides it.

So an interrupted run continues where it stopped, and a change repeats only the stages that depend on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from act.core.errors import ActError
from act.core.files import written_whole
from act.core.hashes import feed
from act.core.plain import checked, parsed_json
from act.data.encode import ENCODING
from act.data.records import open_source
from act.editing.copies import companions
from act.editing.weight_files import RenamedWeights, read_mapping, weight_files
from act.models.hub import downloaded
from act.ranking.scores import SCORES, ScoreName
from act.recipes.corpora import Absent, chosen
from act.recipes.kept import Kept
from act.recipes.schema import Donor, Recipe
from act.recipes.variants import Variant

SCHEMA = "act-recipe/3"
"""The schema of recipe.yaml in the output; part of every hash, so that stages of other versions are not used."""

WEIGHTS = (".safetensors", ".bin")
MODEL_FILES = (*WEIGHTS, ".json", ".jinja", ".py")

INPUTS = "inputs.json"
"""In the folder of the stages: what the inputs were on the machine that made them."""
_INPUTS = TypeAdapter(dict[str, dict[str, str]])


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
        ActError: a model or corpus that does not exist. No model is loaded, but every file is read once.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.folder = folder
        self.absent: list[str] = []
        self._recipe, self._kept = recipe, Kept()
        self._recorded = self._read_inputs()
        used = {name: recipe.records(name) for name in recipe.corpora_used()}
        models = dict.fromkeys([recipe.base_model, *(donor.model for donor in recipe.models)])
        self.models = {name: self._found("models", name, _model_content) for name in models}
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
            return look(name)
        except ActError:
            known = self._recorded.get(kind, {}).get(name)
            if known is None:
                raise
            self.absent.append(name)
            return known

    def _read_inputs(self) -> dict[str, dict[str, str]]:
        path = self.folder / INPUTS
        if not self._kept.has(path):
            return {}
        return checked(_INPUTS, parsed_json(path.read_bytes()))

    def record(self) -> None:
        """Write what the inputs are beside the stages, for other machines."""
        before = self._recorded
        found = {
            kind: {**before.get(kind, {}), **now} for kind, now in (("models", self.models), ("corpora", self.places))
        }
        if found != before:
            with written_whole(self.folder / INPUTS, force=True) as temporary:
                temporary.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
            self._kept.add(self.folder / INPUTS)

    @property
    def key(self) -> str:
        """The hash of the whole run."""
        settings = self._recipe.settings()
        for donor in settings["models"]:
            donor["model"] = self.models[donor["model"]]
        return _hash(recipe=settings, base_model=self.models[self._recipe.base_model], corpora=self.corpora)

    def profile(self, donor: Donor, corpus: str) -> Path:
        """What channels are ranked by, on a corpus: a profile of donor and target as a pair, or by attribution."""
        recipe = self._recipe
        decided = _hash(
            donor=self.models[donor.model],
            target=self.models[recipe.base_model],
            corpus=self.corpora[corpus],
            count=recipe.count,
            max_length=recipe.max_length,
            token_budget=recipe.token_budget,
            dtype=recipe.dtype,
            **({"swap": True} if recipe.swaps else {}),
        )
        kind = "attribution" if recipe.score == "attribution" else "pair"
        return self.folder / f"{kind}-{decided}.safetensors"

    def channels(self, donor: Donor, score: ScoreName) -> Path:
        """The channel set of a donor by a score."""
        recipe = self._recipe
        decided = _hash(
            profile=self.profile(donor, donor.corpus).name,
            keep=[self.profile(donor, corpus).name for corpus in donor.kept],
            score=score,
            **({"cost": recipe.cost} if SCORES[score].takes_cost else {}),
            top_p=donor.parameters.top_p,
            normalize=recipe.normalize,
            scope=recipe.scope,
            granularity=recipe.granularity,
            include=recipe.include,
            exclude=recipe.exclude,
            seed=self.seed(donor) if SCORES[score].takes_seed else None,
        )
        return self.folder / f"channels-{decided}.safetensors"

    def seed(self, donor: Donor) -> int:
        """The seed of a donor; one seed for all would draw the same channels from each, so fewer in all."""
        return self._recipe.seed + next(number for number, one in enumerate(self._recipe.models) if one is donor)

    def model(self, variant: Variant) -> Path:
        """The model folder of a variant before any tune."""
        return self.folder / f"model-{self._making(variant)}"

    def moved(self, variant: Variant) -> Path:
        """What the transfer of a variant changed."""
        return self.folder / f"moved-{self._making(variant)}.json"

    def tuned(self, variant: Variant) -> Path:
        """The model folder of a variant after the tune."""
        recipe = self._recipe
        assert recipe.tune
        decided = _hash(
            model=self.model(variant).name,
            tune=recipe.tune.model_dump(exclude={"corpus", "replay"}),
            corpus=self.corpora[recipe.tune.corpus],
            replay=self.corpora[recipe.tune.replay] if recipe.tune.replay else None,
            rows=self._sets(variant.score or recipe.score) if recipe.tune.mode == "rows" else None,
            max_length=recipe.max_length,
        )
        return self.folder / f"tuned-{decided}"

    def figures(self, variant: Variant) -> Path:
        """The evaluations of a variant, on each corpus in order."""
        recipe = self._recipe
        assert recipe.evaluate
        decided = _hash(
            model=self._evaluated(variant),
            corpora=[self.corpora[place] for place in recipe.evaluate.corpora.values()],
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
        settings = recipe.evaluate.model_dump(include={"tasks", "task_folder", "limit", "fewshot"})
        decided = _hash(model=self._evaluated(variant), dtype=recipe.dtype, **settings)
        return self.folder / f"tasks-{decided}.json"

    def _evaluated(self, variant: Variant) -> str:
        if variant.folder is not None:
            return self.models[variant.folder]
        return (self.tuned(variant) if self._recipe.tune else self.model(variant)).name

    def _making(self, variant: Variant) -> str:
        recipe = self._recipe
        transferred, moved = variant.origin == "transfer", variant.origin == "interpolation"
        return _hash(
            origin=variant.origin,
            control=variant.name != "act",
            target=self.models[recipe.base_model],
            dtype=recipe.dtype,
            channels=self._sets(variant.score or recipe.score) if transferred else None,
            strengths=[donor.parameters.weight for donor in recipe.models] if transferred else None,
            overlap=recipe.overlap if transferred else None,
            donors=[self.models[donor.model] for donor in recipe.models] if moved else None,
            interpolation=recipe.evaluate.interpolation if moved and recipe.evaluate else None,
        )

    def _sets(self, score: ScoreName) -> list[str]:
        return [self.channels(donor, score).name for donor in self._recipe.models]


def _hash(**named: Any) -> str:
    """A hash of settings as they stand, so that the order of patterns and corpora counts, too."""
    return hashlib.sha256(json.dumps({"schema": SCHEMA, **named}, default=str).encode()).hexdigest()[:16]


def _corpus_content(place: str) -> str:
    return open_source(place).fingerprint


def _model_content(name: str) -> str:
    folder = Path(name)
    if not folder.exists() and name.count("/") == 1 and not name.startswith((".", "/")):
        folder = downloaded(name)
    if not (folder / "config.json").is_file():
        raise ActError(f"no such model: {name}; expected a folder in Hugging Face format (with a config.json)")
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

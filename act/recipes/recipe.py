"""Recipes: one YAML file that says the whole run; checked with the line of each mistake, every stage kept by content.

A stage's key is the hash of its inputs' contents and its settings, so a run that broke off goes on where it stopped,
and a recipe whose inputs have not changed has nothing to do.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from act.core.errors import ActError
from act.core.files import MANIFEST, require_output, written_whole
from act.core.versions import versions
from act.data.corpus import Corpus
from act.data.encode import Count
from act.data.records import open_source
from act.data.stream import DEFAULT_TOKEN_BUDGET
from act.editing.donor import Donor as TransferDonor
from act.editing.donor import require_strength
from act.editing.model_card import write_card
from act.editing.provenance import TransferProvenance
from act.editing.rows import Overlap
from act.editing.transfer import transfer_many
from act.editing.tune import TuneSettings, save_tuned, tune
from act.evaluation.evaluate import Evaluation, compare, evaluate
from act.models.loading import load_model, load_tokenizer, token_difference
from act.profiles.profile import load
from act.profiling.measure import profile_pair
from act.ranking.channel_set import ChannelSet
from act.ranking.granularity import Granularity
from act.ranking.normalize import Normalize
from act.ranking.rank import rank
from act.ranking.scores import SCORES, ScoreName
from act.ranking.selection import Scope, parse_top

SCHEMA = "act-recipe/2"
RESOLVED = "recipe.yaml"
MOST_SEED = 2**32 - 1  # what transformers takes
Say = Callable[[str], None]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Parameters(_Section):
    """mergekit's words: ``weight`` is the strength, or one for each pattern; ``top_p`` the share of the channels."""

    weight: float | dict[str, float] = 0.4
    top_p: float | str = 0.05


class Donor(_Section):
    """A donor, the corpus of the ability it gives, and the corpus, or corpora, of what is to be kept.

    A corpus, here and below, is whatever :func:`act.data.records.open_source` opens.
    """

    model: str
    corpus: str
    keep: str | list[str] | None = None
    parameters: Parameters = Parameters()

    @property
    def kept(self) -> list[str]:
        """The corpora of what is to be kept."""
        return [self.keep] if isinstance(self.keep, str) else self.keep or []


class Tuning(_Section):
    """A light fine-tune after the transfer; see :class:`act.TuneSettings`."""

    corpus: str
    replay: str | None = None
    mode: Literal["full", "rows", "lora"] = "full"
    steps: int | None = None
    batch_size: int = TuneSettings.batch_size
    learning_rate: float = TuneSettings.learning_rate
    replay_share: float = TuneSettings.replay_share
    lora_rank: int = TuneSettings.lora_rank
    seed: int = Field(0, ge=0, le=MOST_SEED)
    save_steps: int = TuneSettings.save_steps

    def settings(self) -> TuneSettings:
        """The same as :class:`act.TuneSettings`; raises ActError for a value out of range, or one without effect."""
        if self.replay_share != TuneSettings.replay_share and self.replay is None:
            raise ActError(f"replay_share {self.replay_share} is a share of nothing; give replay, or leave it out")
        if self.lora_rank != TuneSettings.lora_rank and self.mode != "lora":
            raise ActError(f"lora_rank has no effect in mode {self.mode}; leave it out, or choose mode lora")
        return TuneSettings(**self.model_dump(exclude={"corpus", "replay"}))


class Evaluating(_Section):
    """Corpora by name to evaluate target, donors, result and controls on; settings apply to all."""

    corpora: dict[str, str] = Field(min_length=1)
    metric: Literal["auto", "exact", "number", "choice", "nll"] = "auto"
    max_new_tokens: int | None = Field(None, ge=1)
    controls: list[Literal["random", "weight-diff", "interpolation"]] = []
    interpolation: float = Field(0.2, ge=0, le=1)


class Recipe(_Section):
    """The whole run; ``base_model`` is the target."""

    merge_method: Literal["act"]
    base_model: str
    models: list[Donor] = Field(min_length=1)
    output: str
    score: ScoreName = "paired"
    normalize: Normalize = "none"
    scope: Scope = "global"
    granularity: list[Granularity] = ["channel"]
    overlap: Overlap = "sum"
    include: list[str] = []
    exclude: list[str] = []
    count: Count = "answer"
    max_length: int | None = Field(None, ge=2)
    token_budget: int = Field(DEFAULT_TOKEN_BUDGET, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    seed: int = Field(0, ge=0, le=MOST_SEED)
    tune: Tuning | None = None
    evaluate: Evaluating | None = None


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ActError: no such file; not YAML; every mistake with its line, a misspelt key with the nearest one.
    """
    if not path.is_file():
        raise ActError(f"no such recipe: {path}; expected a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
        node, data = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ActError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ActError(f"{path} is empty or no mapping; expected keys such as merge_method, base_model and models")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found = [f"line {_line(node, one['loc'])}: {_mistake(one)}" for one in error.errors()]
        raise ActError(f"{path}, {'; '.join(found)}") from error
    for number, donor in enumerate(recipe.models):
        weight = donor.parameters.weight
        weights = weight.values() if isinstance(weight, dict) else [weight]
        checks = [("top_p", parse_top, donor.parameters.top_p), *(("weight", require_strength, one) for one in weights)]
        for key, check, value in checks:
            try:
                check(value)  # type: ignore[operator]
            except ActError as error:
                line = _line(node, ("models", number, "parameters", key))
                raise ActError(f"{path}, line {line}: {error}") from error
        for key, wrong in _without_effect(recipe, donor):
            raise ActError(f"{path}, line {_line(node, ('models', number, key))}: {wrong}")
    if recipe.tune:
        try:
            recipe.tune.settings()
        except ActError as error:
            raise ActError(f"{path}, line {_line(node, ('tune',))}: {error}") from error
    return recipe


def _without_effect(recipe: Recipe, donor: Donor) -> Iterator[tuple[str, str]]:
    """Keys of a donor that do not go with the score, and why."""
    if wrong := SCORES[recipe.score].wrong_keep(bool(donor.keep)):
        yield "keep" if donor.keep else "corpus", wrong


def _line(node: Any, place: tuple[Any, ...]) -> int:
    """The line of the key (or, where it is missing, of the section) that an error is about."""
    line = node.start_mark.line
    for step in place:
        if isinstance(node, yaml.MappingNode):
            match = next((pair for pair in node.value if pair[0].value == str(step)), None)
            if match is None:
                break
            line, node = match[0].start_mark.line, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _mistake(error: Any) -> str:
    place = [step for step in error["loc"] if isinstance(step, str)]
    key = error["loc"][-1]
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(key), _keys(error["loc"][:-1]), 1)
        advice = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(_keys(error['loc'][:-1]))}"
        return f"no key {key!r} here; {advice}"
    if error["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{'.'.join(place)} is {error['input']!r:.60}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(place: tuple[Any, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "models": Donor,
        "parameters": Parameters,
        "tune": Tuning,
        "evaluate": Evaluating,
    }
    names = [step for step in place if isinstance(step, str)]
    return list((sections[names[-1]] if names else Recipe).model_fields)


class Run:
    """A recipe with the contents of its inputs; stages are kept in a folder beside the output.

    Raises:
        ActError: an input that does not exist; a donor to whose tokenizer a token id is another token than to the
            target's. No weight is loaded.
    """

    def __init__(self, recipe: Recipe, say: Say = lambda step: None) -> None:
        self.recipe = recipe
        self.say = say
        self.output = Path(recipe.output)
        self.cache = self.output.absolute().parent / f".{self.output.name}.stages"
        if not self.output.absolute().parent.is_dir():
            raise ActError(f"cannot write {self.output}: its folder does not exist; create it first")
        names = [recipe.base_model, *(donor.model for donor in recipe.models)]
        self._models = {name: _model_content(name) for name in names}
        corpora: list[str | None] = [path for donor in recipe.models for path in (donor.corpus, *donor.kept)]
        corpora += [recipe.tune.corpus, recipe.tune.replay] if recipe.tune else []
        corpora += [*recipe.evaluate.corpora.values()] if recipe.evaluate else []
        self._corpora = {path: _corpus_content(path) for path in corpora if path}
        self._loaded: dict[str, nn.Module] = {}
        self._tokenizer = load_tokenizer(recipe.base_model)
        for name in dict.fromkeys(donor.model for donor in recipe.models):
            self._require_same_tokens(name)

    def _require_same_tokens(self, donor: str) -> None:
        try:
            theirs = load_tokenizer(donor)
        except ActError:
            return self.say(f"{donor} has no tokenizer, so nothing tells whether it reads the same tokens")
        difference = token_difference(theirs, self._tokenizer)
        if difference:
            raise ActError(
                f"{donor} cannot be a donor for {self.recipe.base_model}: {difference}, so the models would read "
                "different texts; give models with one vocabulary"
            )

    @property
    def key(self) -> str:
        """Hash of the whole run."""
        settings = self.recipe.model_dump(exclude={"output", "base_model"})
        for donor in settings["models"]:
            donor["model"] = self._models[donor["model"]]
        return _hash([SCHEMA, settings, self._models[self.recipe.base_model], self._corpora])

    def plan(self) -> list[dict[str, Any]]:
        """The stages in order, and whether each is kept from an earlier run."""
        stages = []
        for donor in self.recipe.models:
            for path in (donor.corpus, *donor.kept):
                stages.append(
                    ("profile", f"{donor.model} and {self.recipe.base_model} on {path}", self._pair(donor, path))
                )
            stages.append(("rank", f"{donor.parameters.top_p} of the channels for {donor.corpus}", self._set(donor)))
        stages.append(("transfer", " + ".join(d.model for d in self.recipe.models), self._path("model", "act")))
        if self.recipe.tune:
            stages.append(("tune", f"{self.recipe.tune.mode} on {self.recipe.tune.corpus}", self._path("tuned", "act")))
        for variant in self._variants():
            stages.append(("evaluate", variant, self._path("figures", variant, ".json")))
        return [{"stage": stage, "what": what, "kept": path.exists()} for stage, what, path in stages]

    def done(self) -> bool:
        """Whether the output is what this recipe makes of these inputs, and all of it is there."""
        return self._lacking() == []

    def _lacking(self) -> list[str] | None:
        """Files of the output that are gone or of another size; None where it is not what this recipe makes."""
        try:
            found = yaml.safe_load((self.output / RESOLVED).read_text(encoding="utf-8"))["run"]
            files = found["files"].items() if found["key"] == self.key else None
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            return None
        sizes = _sizes(self.output)
        return None if files is None else [name for name, size in files if sizes.get(name) != size]

    def execute(self, *, force: bool = False) -> dict[str, Any]:
        """Run the stages that are not kept, write the output, and return the report.

        Args:
            force: replace the output, also one that is up to date.

        Raises:
            ActError: as the stages do; the output exists, is not what this recipe makes, and ``force`` is False.
        """
        lacking = None if force else self._lacking()
        if lacking == []:
            self.say(f"{self.output} is up to date: inputs and recipe have not changed")
            return json.loads((self.output / "report.json").read_text(encoding="utf-8"))
        if lacking:
            raise ActError(
                f"{self.output} was made by this recipe, but {lacking[0]} is missing or was changed since; "
                "pass --force to write it again from the stages that are kept"
            )
        require_output(self.output, force, [*self._models, *self._corpora])
        self.cache.mkdir(exist_ok=True)
        result = self._settled("act")
        figures = {variant: self._figures(variant) for variant in self._variants()}
        report = self._report(figures)
        with written_whole(self.output, force=force, directory=True) as folder:
            shutil.copytree(result, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
            (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
            files = _sizes(folder)
            run = {"schema": SCHEMA, "key": self.key, "models": self._models, "versions": versions(), "files": files}
            resolved = {**self.recipe.model_dump(), "run": run}
            text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
            (folder / RESOLVED).write_text(text, encoding="utf-8")
            self._write_card(folder)
        return report

    def _write_card(self, folder: Path) -> None:
        recipe = self.recipe
        tuned = recipe.tune and f"Afterwards it was tuned ({recipe.tune.mode}) on {Path(recipe.tune.corpus).name}."
        made = TransferProvenance.from_json(self._moved()["header"])
        write_card(folder, recipe.base_model, made, command="act-profile recipe", afterwards=tuned or "")

    def _variants(self) -> list[str]:
        if not self.recipe.evaluate:
            return []
        donors = [f"donor {number}" for number in range(1, len(self.recipe.models) + 1)]
        alone = ["tune without transfer"] if self.recipe.tune else []
        return ["target", "act", *donors, *alone, *self.recipe.evaluate.controls]

    def _path(self, stage: str, variant: str, suffix: str = "") -> Path:
        recipe = self.recipe
        ingredients: list[Any] = [
            variant,
            *(self._set(donor).name for donor in recipe.models),
            recipe.seed,
            recipe.dtype,
            recipe.overlap,
            SCHEMA,
        ]
        ingredients += [donor.parameters.weight for donor in recipe.models]
        if recipe.evaluate:
            ingredients.append(recipe.evaluate.interpolation if variant == "interpolation" else None)
        if stage != "model" and recipe.tune:
            contents = [self._corpora.get(path) for path in (recipe.tune.corpus, recipe.tune.replay) if path]
            ingredients += [recipe.tune.model_dump(), contents]
        if stage == "figures":
            ingredients += [recipe.evaluate and recipe.evaluate.model_dump(), self._corpora]
        return self.cache / f"{stage}-{_hash([ingredients, recipe.max_length])}{suffix}"

    def _pair(self, donor: Donor, corpus: str) -> Path:
        recipe = self.recipe
        models = [self._models[donor.model], self._models[recipe.base_model], self._corpora[corpus]]
        settings = [recipe.count, recipe.max_length, recipe.token_budget, recipe.dtype]
        return self.cache / f"pair-{_hash([models, settings])}.safetensors"

    def _set(self, donor: Donor, score: str | None = None) -> Path:
        recipe = self.recipe
        pairs = [self._pair(donor, path).name for path in (donor.corpus, *donor.kept)]
        settings: list[Any] = [score or recipe.score, recipe.normalize, recipe.scope, recipe.granularity]
        settings += [recipe.include, recipe.exclude, self._seed(donor)]
        return self.cache / f"channels-{_hash([pairs, settings, donor.parameters.top_p])}.safetensors"

    def _seed(self, donor: Donor) -> int:
        """A seed for each donor: one for all would draw the same channels from each, a smaller set in all."""
        return self.recipe.seed + next(number for number, one in enumerate(self.recipe.models) if one is donor)

    def _model(self, name: str) -> nn.Module:
        if name not in self._loaded:
            self._loaded[name] = load_model(name, dtype=self.recipe.dtype, device=self.recipe.device)
        return self._loaded[name]

    def _corpus(self, path: str, **options: Any) -> Corpus:
        return Corpus.from_file(path, self._tokenizer, max_length=self.recipe.max_length, **options)

    def _profiled(self, donor: Donor, corpus: str) -> Any:
        path = self._pair(donor, corpus)
        if not path.exists():
            self.say(f"profiling {donor.model} and {self.recipe.base_model} on {corpus}")
            text = self._corpus(corpus, count=self.recipe.count)
            models = self._model(donor.model), self._model(self.recipe.base_model)
            profile_pair(*models, text, token_budget=self.recipe.token_budget).save(path)
        return load(path)

    def _channels(self, donor: Donor, score: str | None = None) -> ChannelSet:
        path = self._set(donor, score)
        if not path.exists():
            profile = self._profiled(donor, donor.corpus)
            record = SCORES[score or self.recipe.score]
            kept = [self._profiled(donor, path) for path in donor.kept] if record.looks_at_activations else []
            self.say(f"ranking the channels for {donor.corpus} by {record.name}")
            rank(
                profile,
                cast(ScoreName, record.name),
                donor.parameters.top_p,
                keep=kept or None,
                normalize=self.recipe.normalize,
                scope=self.recipe.scope,
                granularity=self.recipe.granularity,
                include=self.recipe.include,
                exclude=self.recipe.exclude,
                seed=self._seed(donor),
                donor=self._model(donor.model) if record.needs_models else None,
                target=self._model(self.recipe.base_model) if record.needs_models else None,
            ).save(path)
        return ChannelSet.load(path)

    def _transferred(self, variant: str) -> Path:
        """The model folder of a variant: the transfer itself, or a control."""
        path = self._path("model", variant)
        if path.exists():
            return path
        self.say(f"making the model: {variant}")
        target = load_model(self.recipe.base_model, dtype=self.recipe.dtype, device=self.recipe.device)
        if variant == "interpolation":
            assert self.recipe.evaluate
            models = [self._model(donor.model) for donor in self.recipe.models]
            _interpolate(target, models, self.recipe.evaluate.interpolation)
        elif variant != "tune without transfer":
            donors = [self._donor(donor, variant) for donor in self.recipe.models]
            patch = transfer_many(donors, target, self.recipe.overlap)
            header = {key: value for key, value in patch.provenance.to_json().items() if key != "parameters"}
            moved = {"values": len(patch), "parameters": len(patch.changes), "header": header}
            with written_whole(self._path("moved", variant, ".json"), force=True) as temporary:
                temporary.write_text(json.dumps(moved), encoding="utf-8")
        save_tuned(target, self._tokenizer, path)
        return path

    def _donor(self, donor: Donor, variant: str) -> TransferDonor:
        channels = self._channels(donor, None if variant == "act" else variant)
        made = TransferDonor(self._model(donor.model), channels, donor.parameters.weight, name=donor.model)
        if variant == "act" or not isinstance(made.strength, dict):
            return made
        # The channels of a control are others, and need not be where each pattern is for.
        return replace(made, strength={key: value for key, value in made.strength.items() if made.matches(key)} or 0)

    def _moved(self) -> dict[str, Any]:
        """What the transfer changed: values, parameters, and the header of its patch."""
        return json.loads(self._path("moved", "act", ".json").read_text(encoding="utf-8"))

    def _settled(self, variant: str) -> Path:
        """The model folder of a variant after the tune, if there is one."""
        recipe, source = self.recipe, self._transferred(variant)
        if not recipe.tune:
            return source
        path = self._path("tuned", variant)
        if path.exists():
            return path
        self.say(f"tuning: {variant}")
        model = load_model(str(source), device=recipe.device)
        stored = next(model.parameters()).dtype
        rows = None
        if recipe.tune.mode == "rows":
            score = variant if variant in ("random", "weight-diff") else None
            sets = [self._channels(donor, score) for donor in recipe.models]
            index = torch.cat([one.index for one in sets]).unique()
            names = {name for one in sets for name in one.inputs}
            inputs = {name: torch.cat([one.inputs[name] for one in sets if name in one.inputs]) for name in names}
            rows = ChannelSet(sets[0].space, index, torch.zeros(len(index), dtype=torch.float64), inputs=inputs)
        else:
            model = model.float()
        tuned = tune(
            model,
            self._corpus(recipe.tune.corpus),
            recipe.tune.settings(),
            replay=self._corpus(recipe.tune.replay) if recipe.tune.replay else None,
            channels=rows,
            checkpoints=path.with_name(f"{path.name}.checkpoints"),
        )
        save_tuned(tuned.model, self._tokenizer, path, dtype=stored)
        shutil.rmtree(path.with_name(f"{path.name}.checkpoints"))
        return path

    def _figures(self, variant: str) -> list[Evaluation]:
        settings = self.recipe.evaluate
        assert settings
        path = self._path("figures", variant, ".json")
        if not path.exists():
            if variant == "target":
                name = self.recipe.base_model
            elif variant.startswith("donor "):
                name = self.recipe.models[int(variant.split()[1]) - 1].model
            else:
                name = str(self._settled(variant))
            self.say(f"evaluating: {variant}")
            model = load_model(name, dtype=self.recipe.dtype, device=self.recipe.device)
            found = [
                evaluate(
                    model,
                    self._corpus(corpus),
                    settings.metric,
                    max_new_tokens=settings.max_new_tokens,
                    token_budget=self.recipe.token_budget,
                )
                for corpus in settings.corpora.values()
            ]
            rows = []
            for one in found:
                right = None if one.right is None else one.right.tolist()
                rows.append({**vars(one), "nll": one.nll.tolist(), "tokens": one.tokens.tolist(), "right": right})
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(rows), encoding="utf-8")
        read = []
        for row, corpus in zip(json.loads(path.read_text(encoding="utf-8")), settings.corpora, strict=True):
            row |= {"nll": torch.tensor(row["nll"], dtype=torch.float64), "tokens": torch.tensor(row["tokens"])}
            row |= {"right": None if row["right"] is None else torch.tensor(row["right"])}
            read.append(Evaluation(**{**row, "model": variant, "corpus": corpus}))
        return read

    def _report(self, figures: dict[str, list[Evaluation]]) -> dict[str, Any]:
        moved = self._moved()
        given = moved["header"]["grafts"]
        before = figures.get("target", [])
        return {
            "output": str(self.output),
            "key": self.key,
            "donors": [{key: donor[key] for key in ("donor", "channels", "strength")} for donor in given],
            "moved": {"values": moved["values"], "parameters": moved["parameters"], "notes": moved["header"]["notes"]},
            "results": [one.summary() for found in figures.values() for one in found],
            "comparisons": [
                compare(*both).summary()
                for variant, found in figures.items()
                if variant != "target"
                for both in zip(before, found, strict=True)
            ],
        }


@torch.no_grad()
def _interpolate(target: nn.Module, donors: Sequence[nn.Module], strength: float) -> None:
    """``target += strength * (mean of the donors - target)``, in place: all donors blended from where it was."""
    for mine, *theirs in zip(target.parameters(), *(donor.parameters() for donor in donors), strict=True):
        wide = mine.to(torch.promote_types(mine.dtype, torch.float32))
        mine.copy_(wide.lerp(torch.stack([one.to(wide) for one in theirs]).mean(0), strength))


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _model_content(name: str) -> str:
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ActError(f"no such model: {name}; expected a folder in Hugging Face format (with a config.json)")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin", ".jinja"))
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        raise ActError(f"{name} holds no weights; expected .safetensors files")
    return _hash([[path.name, _content(path)] for path in files if path.name not in ("report.json",)])


def _corpus_content(path: str) -> str:
    return open_source(path).fingerprint


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]

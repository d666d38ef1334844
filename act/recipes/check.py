"""What is wrong with a recipe, and what its run takes, before any weights are read.

Costs follow :mod:`act.profiling.plan`; beside them, with ``P`` parameters and a batch of ``t`` tokens::

    training  = 3 · forward of the tokens of all steps
    its memory = weights and gradients of what is trained, and 8 bytes of AdamW for each value of it
               + t · layers · what a layer keeps of a token
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypedDict, TypeVar

import torch
from torch import nn

from act.core.counted import counted
from act.core.errors import ActError, Unreachable
from act.core.files import require_output, require_writable
from act.core.near import is_local
from act.data.corpus import Corpus
from act.data.parts import Part
from act.data.records import is_cached, is_hub_id, open_source
from act.editing.tune import Mode
from act.evaluation.exercises import require_metric
from act.models.channels import ChannelSpace
from act.models.common import common_space
from act.models.hub import has_weights, is_here, reachable
from act.models.limits import default_token_budget
from act.models.loading import device_named, empty_model, load_config, load_tokenizer
from act.profiling.attribution import default_budget
from act.profiling.cluster import Cluster
from act.profiling.forward_speed import measure
from act.profiling.plan import Shape, attribution_forwards
from act.profiling.text_plan import tokens_of
from act.ranking.demands import rankable
from act.ranking.selection import parse_top
from act.recipes.corpora import SAMPLE, chosen, require_first_records
from act.recipes.inputs import (
    require_decoder,
    require_known_tasks,
    require_other_models,
    require_other_texts,
    require_tokens,
)
from act.recipes.reused import Reused
from act.recipes.schema import Recipe, Tuning, require_recipe
from act.recipes.variants import compared, result
from act.recipes.words import in_words_of_the_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
P = ParamSpec("P")
ADAM, GRADIENT = 8, 4  # bytes for each trained value


class ModelFound(TypedDict):
    """A model by its configuration: class, parameters, channels, and the share of parameters behind channels."""

    model: str
    architecture: str
    parameters: int
    channels: int
    coverage: float


class CorpusFound(TypedDict):
    """A corpus by its first records; numbers of tokens are scaled up to all of them."""

    corpus: str
    place: str
    columns: list[str]
    records: int | None
    tokens: int | None
    counted: int | None
    mean_length: float | None


class StageCost(TypedDict):
    """What a stage takes: tokens, seconds on one GPU, peak bytes of its memory, and bytes that it leaves on disk.

    ``seconds_here`` are those on this machine; None where its speed was not measured.
    """

    stage: str
    what: str
    tokens: int
    seconds: float
    seconds_here: float | None
    memory: int
    disk: int


class Here(TypedDict):
    """The speed of this machine."""

    device: str
    tokens_per_second: float


class Needs(TypedDict):
    """What was found out about a recipe.

    ``unchecked`` says what could not be checked, one sentence each, ``warnings`` what a run would do and its card say
    although it shows less than it seems to; ``gpu_flops`` is the rate assumed for the seconds;
    ``here`` is where, and at how many tokens per second, a profiled forward of the target was measured.
    """

    models: list[ModelFound]
    corpora: list[CorpusFound]
    stages: list[StageCost]
    seconds: float
    seconds_here: float | None
    memory: int
    disk: int
    download: int
    gpu_flops: float
    here: Here | None
    unchecked: list[str]
    warnings: list[str]


class Room(TypedDict):
    """Bytes on disk: what the stages leave, what is there beside them at times (a tuned control that waits to be
    measured, and the checkpoint of a tune), and the output; and of memory: donor and target, which are loaded side by
    side wherever something is measured."""

    stages: int
    meanwhile: int
    output: int
    models: int


@in_words_of_the_file()
def check(
    recipe: Recipe, *, gpu_flops: float = Cluster.flops, seconds: float = 0.0, trust_remote_code: bool = False
) -> Needs:
    """Look at configurations, tokenizers and first records, and predict the costs of a run; no weights are read.

    Args:
        recipe: from :func:`act.recipe.read_recipe`.
        gpu_flops: floating-point operations per second of the GPU to plan for.
        seconds: how long to measure the speed of this machine, with random weights; 0: it is left out.
        trust_remote_code: whether Python code that a model brings along may run.

    Raises:
        ActError: all that is wrong. What cannot be looked at, because the hub cannot be reached, is no mistake.

    >>> from pathlib import Path
    >>> from act.recipes.example import example
    >>> _ = Path("my.yaml").write_text(example("recover"))
    >>> recipe = act.recipe.read_recipe("my.yaml")
    >>> needs = act.recipe.check(recipe)
    >>> [one["records"] for one in needs["corpora"]], needs["stages"][-1]["stage"]
    ([128, 128, 128, 128, 128, 128], 'output')
    """
    require_recipe(recipe)
    run = _Check(recipe, trust_remote_code)
    run.look()
    if run.mistakes:
        raise ActError("; ".join(run.mistakes))
    stages = _costs(run, Cluster(flops=gpu_flops)) if run.shape else []
    here = run.speed(seconds) if run.shape and seconds else None
    if run.shape and here:
        rate = run.shape.flops(1, 1, 256) * here["tokens_per_second"]
        for one, same in zip(stages, _costs(run, Cluster(flops=rate)), strict=True):
            one["seconds_here"] = same["seconds"]
    return {
        "models": run.models,
        "corpora": list(run.corpora.values()),
        "stages": stages,
        "seconds": sum(one["seconds"] for one in stages),
        "seconds_here": sum(one["seconds_here"] or 0.0 for one in stages) if here else None,
        "memory": max((one["memory"] for one in stages), default=0),
        "disk": sum(one["disk"] for one in stages),
        "download": sum(run.weights(model) for model in run.spaces if not has_weights(model)),
        "gpu_flops": gpu_flops,
        "here": here,
        "unchecked": run.unchecked(),
        "warnings": run.warnings,
    }


@dataclass
class _Check:
    """What was found of one recipe, and what is wrong with it."""

    recipe: Recipe
    trust_remote_code: bool
    mistakes: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    models: list[ModelFound] = field(default_factory=list)
    empty: dict[str, nn.Module] = field(default_factory=dict)
    spaces: dict[str, ChannelSpace] = field(default_factory=dict)
    corpora: dict[str, CorpusFound] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hub: bool | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def look(self) -> None:
        """Look at everything that can be reached."""
        recipe = self.recipe
        names = recipe.models()
        self._tried("", self._output)
        self._tried("", require_other_models, recipe)
        self._tried(recipe.device, self._device)
        for name in names:
            self._tried(name, self.see, name)
        target = recipe.target
        if target in self.empty:
            self._tried(target, require_decoder, recipe, trust_remote_code=self.trust_remote_code)
        if target in self.spaces:
            options = recipe.granularity, recipe.include, recipe.exclude
            self._tried("", rankable, self.spaces[target], *options)
        ours = self._tokenizer(target)
        for name in names[1:]:
            if target in self.empty and name in self.empty:
                self._tried(name, common_space, self.empty[name], self.empty[target])
                self._tried(name, self._one_type, name)
            if ours is not None and (theirs := self._tokenizer(name)) is not None:
                self._tried(name, require_tokens, recipe, name, theirs, ours)
        contents: dict[str, str] = {}
        for name in recipe.corpora_used():
            self._tried(recipe.records(name).place, self._corpus, name, ours, contents)
        self._tried("", require_other_texts, recipe, contents)
        reused = Reused(recipe, contents)
        self._tried("", reused.require_unseen)
        self.warnings = reused.warnings()
        if recipe.token_budget == "auto":
            usual = f"{self.token_budget:,}"
            self.notes.append(
                f"token_budget auto follows the free memory of the GPU; costs are those of {usual} tokens"
            )
        self._tasks()

    @property
    def shape(self) -> Shape | None:
        """The figures of the target; None if its configuration was not seen."""
        target = self.recipe.target
        return Shape.of(self.empty[target], self.spaces[target]) if target in self.empty else None

    @property
    def token_budget(self) -> int:
        """Tokens per batch."""
        return self.recipe.stated_budget or default_token_budget(self.device)

    def weights(self, name: str) -> int:
        """Bytes of a model."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.empty[name].parameters())

    def unchecked(self) -> list[str]:
        """What could not be checked, one sentence each."""
        if not self.unseen:
            return self.notes
        names = ", ".join(dict.fromkeys(self.unseen))
        return [
            f"the hub cannot be reached and its cache does not have {names}, so their configurations, tokenizers and "
            "columns were not checked, nor what they would cost",
            *self.notes,
        ]

    def _tried(self, name: str, look: Callable[P, T], *given: P.args, **named: P.kwargs) -> T | None:
        """What looking at an input gives; None if that shows a mistake, or the input cannot be reached."""
        try:
            return look(*given, **named)
        except Unreachable:
            self.unseen.append(name)
        except ActError as error:
            said = str(self.recipe.written.blamed(name, error, self.recipe.corpora))
            if said not in self.mistakes:  # as of a file that several corpora are parts of
                self.mistakes.append(said)
        return None

    def _require_hub(self, name: str) -> None:
        """Raise :class:`Unreachable` if the hub, which alone has something, cannot be reached; it is asked once."""
        if self.hub is None:
            self.hub = reachable()
        if not self.hub:
            raise Unreachable(name)

    def _output(self) -> None:
        places = [self.recipe.records(name).place for name in self.recipe.corpora_used()]
        inputs = map(self.recipe.at, [*self.recipe.models(), *places])
        require_output(self.recipe.folder, True, inputs)  # what --force replaces is no mistake
        require_writable(self.recipe.folder)

    def _device(self) -> None:
        """Find the device that is asked for, which this machine need not have."""
        name = self.recipe.device
        try:
            self.device = device_named(name)
        except ActError as error:
            try:
                self.device = torch.device(name)
            except RuntimeError:
                raise error from None
            self.notes.append(f"this machine is not the one to run it on: {error}")

    def speed(self, seconds: float) -> Here | None:
        """The speed of the device that the recipe asks for; None, with the reason among the notes, if it is unknown."""
        recipe, trusted = self.recipe, self.trust_remote_code
        try:
            device = device_named(recipe.device)
            config = load_config(recipe.at(recipe.target), recipe.dtype, trust_remote_code=trusted)
            found = measure(config, device, seconds, trust_remote_code=trusted)
        except ActError as error:
            self.notes.append(f"how long a run takes on this machine was not measured: {error}")
            return None
        return {"device": str(device), "tokens_per_second": found["tokens_per_second"]}

    def _one_type(self, donor: str) -> None:
        """Raise :class:`ActError` if a donor is not loaded in the type of the target."""
        one, other = (next(self.empty[name].parameters()).dtype for name in (donor, self.recipe.target))
        if one != other:
            raise ActError(f"{donor} is {one}, the target {other}; load both in one type (dtype)")

    def see(self, name: str) -> None:
        """Read the configuration of a model."""
        place = self.recipe.at(name)
        if not is_here(place) and "/" in name and not Path(place).exists() and not is_local(place):
            self._require_hub(name)
        trusted = self.trust_remote_code
        empty = empty_model(load_config(place, self.recipe.dtype, trust_remote_code=trusted), trust_remote_code=trusted)
        space = ChannelSpace.from_model(empty)
        self.empty[name], self.spaces[name] = empty, space
        self.models.append(
            {
                "model": name,
                "architecture": type(empty).__name__,
                "parameters": sum(parameter.numel() for parameter in empty.parameters()),
                "channels": len(space),
                "coverage": space.coverage.share if space.coverage else 0.0,
            }
        )

    def _tokenizer(self, name: str) -> PreTrainedTokenizerBase | None:
        if name not in self.empty:
            return None
        return self._tried(name, load_tokenizer, self.recipe.at(name), trust_remote_code=self.trust_remote_code)

    def _corpus(self, name: str, tokenizer: PreTrainedTokenizerBase | None, contents: dict[str, str]) -> None:
        recipe, records = self.recipe, self.recipe.records(name)
        place = recipe.at(records.place)
        if is_hub_id(place) and not is_cached(place):
            self._require_hub(name)
        whole = open_source(place)
        first = next(whole.read(), None)
        if first is None:
            raise ActError(f"{records.place} has no records")
        source = chosen(whole, records)
        contents[name] = source.fingerprint
        require_first_records(source)
        size = source.count()
        found: CorpusFound = {
            "corpus": name,
            "place": records.place,
            "columns": list(first.record) if not isinstance(first.record, ActError) else [],
            "records": size,
            "tokens": None,
            "counted": None,
            "mean_length": None,
        }
        self.corpora[name] = found
        if tokenizer is None:
            return
        corpus = Corpus(
            Part(source, 0, SAMPLE),
            tokenizer,
            count=recipe.count,
            max_length=recipe.max_length,
            ignore_columns=recipe.ignore_columns,
            name=name,
        ).for_models(self.empty[recipe.target])
        for entry, encoded in corpus.numbered():
            if isinstance(encoded, ActError):
                raise ActError(f"{entry.place}: {encoded}")
        for metric in recipe.metrics(name):
            require_metric(corpus, metric)
        text = tokens_of({name: corpus}, 0, self.token_budget)
        scale = 1 if size is None else size / max(1, text["records"])
        found["tokens"], found["counted"] = round(scale * text["computed"]), round(scale * text["counted"])
        found["mean_length"] = text["mean_length"]
        self.lengths[name] = text["attended_length"]
        if size is None:
            self.notes.append(f"the hub does not say how many records {name} has, so its costs are those of {SAMPLE}")

    def _tasks(self) -> None:
        if tasks := self.recipe.evaluate and self.recipe.evaluate.tasks:
            said = f"task{'' if len(tasks) == 1 else 's'} {', '.join(tasks)} of lm-evaluation-harness"
            self.notes.append(f"the documents of {said} are not known here, so they are not among the costs")
        try:
            require_known_tasks(self.recipe)
        except ActError as error:
            if isinstance(error.__cause__, ModuleNotFoundError):
                self.notes.append(f"the tasks were not checked: {error}")
            else:
                self.mistakes.append(str(error))


def _costs(run: _Check, cluster: Cluster) -> list[StageCost]:
    """The stages in order, those of one kind together where they differ in nothing but the model."""
    recipe, shape = run.recipe, run.shape
    assert shape
    target, budget = recipe.target, run.token_budget
    weights = run.weights(target)
    variants = list(dict.fromkeys([result(recipe), *compared(recipe)]))
    disk = _disk(run)
    after = shape.afterwards(run.spaces[target], pair=True, swap=recipe.swaps)
    stages: list[StageCost] = []

    def known(name: str) -> tuple[int, int, float]:
        found = run.corpora.get(name)
        return (found["tokens"] or 0, found["counted"] or 0, run.lengths.get(name, 1.0)) if found else (0, 0, 1.0)

    def add(stage: str, what: str, tokens: float = 0, seconds: float = 0, memory: float = 0, disk: float = 0) -> None:
        stages.append(
            {
                "stage": stage,
                "what": what,
                "tokens": round(tokens),
                "seconds": float(f"{seconds:.4g}"),
                "seconds_here": None,
                "memory": round(memory),
                "disk": round(disk),
            }
        )

    profiles = dict.fromkeys((one.model, corpus) for one in recipe.donor for corpus in (one.corpus, *one.kept))
    for donor, corpus in profiles:
        wall, memory = _measurement(run, cluster, *known(corpus))
        add(
            "profile",
            f"{Path(donor).name} on {_called(recipe, corpus)}",
            2 * known(corpus)[0],
            wall,
            memory,
            disk["profile"],
        )
    if recipe.sweep:
        texts = [known(corpus) for corpus in (recipe.sweep.corpus, *recipe.sweep.kept)]
        strengths, controls = len(recipe.sweep.strength), recipe.evaluate.controls if recipe.evaluate else []
        settings = [strengths * (one == "interpolation" or len(recipe.sweep.top)) for one in ("act", *controls)]
        tries = 2 + 2 * bool(controls) + sum(settings)
        seconds = tries * sum(shape.flops(*each) for each in texts) / cluster.flops
        memory = 2 * weights + shape.memory(budget)["activations"]
        add("sweep", f"{sum(settings)} settings", tries * sum(each[0] for each in texts), seconds, memory)
    add("rank", counted(len(recipe.donor), "donor"), memory=after["rank"])
    donors = len({donor.model for donor in recipe.donor})
    patches = len({variant.kind for variant in variants if variant.origin == "transfer"})
    memory = (1 + donors) * weights
    add("transfer", "1 patch" if patches == 1 else f"{patches} patches", memory=memory, disk=patches * disk["patch"])
    if recipe.tune:
        made = sum(variant.tuned for variant in variants)
        trained, batch = _trained_tokens(run, recipe.tune)
        training = _training_memory(run.empty[target], shape, recipe.tune, _share(recipe), batch)
        seconds = made * 3 * shape.flops(trained, trained, run.lengths.get(recipe.tune.corpus, 1.0)) / cluster.flops
        add("tune", f"{counted(made, 'model')}, {recipe.tune.mode}", made * trained, seconds, training, disk["tuned"])
    if recipe.evaluate and recipe.evaluate.corpora:
        count = len(compared(recipe))
        texts = [known(corpus) for corpus in recipe.evaluate.corpora.values()]
        tokens = count * sum(each[0] for each in texts)
        seconds = count * sum(shape.flops(*each) for each in texts) / cluster.flops
        memory = weights + shape.memory(budget)["activations"]
        add("evaluate", counted(count, "model"), tokens, seconds, memory)
    add("output", recipe.output, disk=weights)
    return stages


def _measurement(run: _Check, cluster: Cluster, tokens: int, counted: int, length: float) -> tuple[float, float]:
    """Seconds and peak bytes of measuring a donor and the target, which share a device, as the score needs it."""
    recipe, shape = run.recipe, run.shape
    assert shape
    if recipe.score == "attribution":
        budget = recipe.stated_budget or default_budget(run.device)
        work = attribution_forwards() * shape.work(tokens, counted, length)
        load = 2 * shape.parameters * shape.itemsize / cluster.load
        donor = shape.parameters * shape.itemsize
        return load + work / cluster.flops, donor + sum(shape.attributing(budget, length).values())
    seconds = cluster.seconds(shape, tokens, counted, length=length, pair=True, swap=recipe.swaps)
    return seconds["wall"], sum(shape.memory(run.token_budget, pair=True, swap=recipe.swaps).values())


def room_for(recipe: Recipe, *, trust_remote_code: bool = False) -> Room:
    """Predict from the target's configuration what a recipe leaves on disk.

    Args:
        recipe: from :func:`act.recipe.read_recipe`.
        trust_remote_code: whether Python code that a model brings along may run.

    Returns:
        Bytes: of the ``stages``, of what these need ``meanwhile``, of the ``output``, and of two ``models`` beside.

    Raises:
        ActError: no such model.

    >>> from pathlib import Path
    >>> from act.recipes.example import example
    >>> _ = Path("my.yaml").write_text(example("recover"))
    >>> recipe = act.recipe.read_recipe("my.yaml")
    >>> room = act.recipe.room_for(recipe)
    >>> 0 < room["output"] < room["models"]
    True
    """
    require_recipe(recipe)
    run = _Check(recipe, trust_remote_code)
    run.see(recipe.target)
    disk, variants = _disk(run), list(dict.fromkeys([result(recipe), *compared(recipe)]))
    profiles = {(one.model, corpus) for one in recipe.donor for corpus in (one.corpus, *one.kept)}
    patches = {variant.kind for variant in variants if variant.origin == "transfer"}
    weights = run.weights(recipe.target)
    waits = recipe.tune and recipe.tune.mode == "full" and any(one.tuned and not one.is_result for one in variants)
    return {
        "stages": round(len(profiles) * disk["profile"] + len(patches) * disk["patch"] + disk["tuned"]),
        "meanwhile": (weights if waits else 0) + _checkpoint(run),
        "output": weights,
        "models": 2 * weights,
    }


def _checkpoint(run: _Check) -> int:
    """Bytes of the checkpoint of a tune: the trained values in float32, and what AdamW keeps of them."""
    recipe, shape = run.recipe, run.shape
    assert shape
    if not recipe.tune:
        return 0
    return round((GRADIENT + ADAM) * _trained_values(run.empty[recipe.target], shape, recipe.tune, _share(recipe)))


def _disk(run: _Check) -> dict[str, float]:
    """Bytes that stay among the stages: of a profile, of a patch, and of all tuned models."""
    recipe, shape = run.recipe, run.shape
    assert shape
    target = recipe.target
    patch = 2 * _share(recipe) * run.weights(target)  # each row as it was and as it is
    tuned = 0.0
    if recipe.tune:
        count = len({one for one in (result(recipe), *compared(recipe)) if one.tuned})
        tuned = {
            "rows": count * patch,
            "lora": count * 4.0 * _adapters(run.empty[target], recipe.tune.lora_rank),
            "full": float(run.weights(target)),
        }[recipe.tune.mode]
    pair = recipe.score != "attribution"
    profile = shape.afterwards(run.spaces[target], pair=pair, swap=recipe.swaps)["profile"]
    return {"profile": profile, "patch": patch, "tuned": tuned}


def _called(recipe: Recipe, corpus: str) -> str:
    """The name of a corpus; of one that is given by its place alone, the last part of that."""
    return corpus if corpus in recipe.corpora else Path(corpus).name


def _share(recipe: Recipe) -> float:
    """The share of the channels that all donors give, at most."""
    tops = recipe.sweep.top if recipe.sweep else [donor.top for donor in recipe.donor]
    shares = [parse_top(top) for top in tops]
    return max(shares) if recipe.sweep else min(1.0, sum(shares))


def _trained_tokens(run: _Check, tune: Tuning) -> tuple[float, float]:
    """Tokens of all steps of one tune, and of a batch."""
    found = run.corpora.get(tune.corpus)
    length = (found["mean_length"] if found else None) or 0.0
    share = tune.replay_share if tune.replay else 0.0
    records = (found["records"] if found else None) or 0
    steps = tune.steps or max(1, round(records / (1 - share) / tune.batch_size))
    return steps * tune.batch_size * length, tune.batch_size * length


def _training_memory(model: nn.Module, shape: Shape, tune: Tuning, share: float, batch: float) -> float:
    """Bytes at the peak of a tune."""
    stored: dict[Mode, int] = {"full": 4, "rows": shape.itemsize, "lora": 4}
    kept = batch * shape.layers * stored[tune.mode] * (4 * shape.widest + 12 * shape.stream)
    rows = 2 * shape.itemsize * shape.parameters if tune.mode == "rows" else 0  # changed weights, and their gradients
    trained = _trained_values(model, shape, tune, share)
    return shape.parameters * stored[tune.mode] + trained * (GRADIENT + ADAM) + rows + kept


def _trained_values(model: nn.Module, shape: Shape, tune: Tuning, share: float) -> float:
    """How many values a tune trains."""
    adapters = _adapters(model, tune.lora_rank)
    return {"full": shape.parameters, "rows": share * shape.parameters, "lora": adapters}[tune.mode]


def _adapters(model: nn.Module, rank: int) -> int:
    """Values of low-rank adapters of all linears."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return rank * sum(module.in_features + module.out_features for module in linears)

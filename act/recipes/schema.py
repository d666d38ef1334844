"""The schema of a recipe: the keys of its YAML file, with types, ranges and defaults.

The text below a key is its entry in the reference of keys (:mod:`act.recipes.reference`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from act.core.errors import require_type
from act.core.plain import Label, Location, Natural, Positive
from act.data.encoded import Count
from act.editing.rows import Overlap
from act.editing.tune import Mode, TuneSettings
from act.evaluation.exercises import Metric
from act.evaluation.kept import KEPT
from act.evaluation.sweep import STRENGTHS, TOPS, Control
from act.ranking.attributed import Cost
from act.ranking.granularity import Granularity
from act.ranking.normalize import Normalize
from act.ranking.scores import SCORES, ScoreName
from act.ranking.selection import Scope
from act.recipes.written import Written

MAX_SEED = 2**32 - 1  # the largest that transformers accepts

StageName = Literal["profile", "sweep", "rank", "transfer", "tune", "evaluate"]
"""The stages of a recipe, in order."""

Place = Annotated[Location, Field(min_length=1)]
"""A path, from the folder of the recipe, or a hub id."""


class Section(BaseModel):
    """A mapping of the YAML file; a key that it does not know is an error.

    Attributes:
        old: names that keys had in earlier versions, and what they are called now.
        unfolded: sections of earlier versions whose keys are now those of this one.
        short: the key whose value alone may stand for the whole section.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    old: ClassVar[dict[str, str]] = {}
    unfolded: ClassVar[tuple[str, ...]] = ()
    short: ClassVar[str | None] = None


class Records(Section):
    """A corpus: where it is, which of its rows, and how its columns become those that are read."""

    short = "place"

    place: Place
    """A file, folder, glob or hub id (`org/name`, `org/name:split` or `org/name:config:split`)."""

    rows: Annotated[list[Natural], Field(min_length=2, max_length=2)] | None = None
    """The first row and the one after the last, such as `[0, 600]`; all by default."""

    columns: dict[str, str] = {}
    """Column that is read -> template of those that are there, such as `completion: " {answer:letter}"`."""


class Donor(Section):
    """A donor, and the abilities by which its channels are chosen."""

    old = {"weight": "strength", "top_p": "top"}
    unfolded = ("parameters",)

    model: Place
    """A folder in Hugging Face format, or a hub id."""

    corpus: Place
    """The text of the ability that it gives: a name of `corpora`, or a place."""

    keep: Place | list[Place] | None = None
    """The text, or texts, of what the target should keep."""

    top: float | str = 0.05
    """The share of the channels, such as `5%`."""

    strength: float | dict[str, float] = 0.4
    """How far they move (1: all the way), or one number per pattern of site names: the first that matches counts."""

    strength_of: dict[str, float] = {}
    """Another strength for sites that match a pattern, such as `"*.mlp.*": 0.2`."""

    @property
    def kept(self) -> list[str]:
        """The corpora of what the target should keep."""
        return _listed(self.keep)

    @property
    def strengths(self) -> float | dict[str, float]:
        """One number, or one per pattern."""
        if not self.strength_of:
            return self.strength
        rest = {} if isinstance(self.strength, dict) else {"*": self.strength}
        return {**self.strength_of, **(rest if "*" not in self.strength_of else {})}


class Sweeping(Section):
    """Shares and strengths to try, of which the best is transferred: the most recovered that keeps enough."""

    corpus: Place
    """Records of the ability to choose on, others than the donor's: a name of `corpora`, or a place."""

    keep: Place | list[Place]
    """Records, or several corpora, of what the target should keep, to choose on."""

    top: list[float | str] = list(TOPS)
    """Shares of the channels to try."""

    strength: list[float] = list(STRENGTHS)
    """Strengths to try."""

    least_kept: float = Field(KEPT, gt=0, le=1)
    """The share of what is to be kept that must be left."""

    metric: Metric = "auto"
    """What is measured; see `evaluate`."""

    @property
    def kept(self) -> list[str]:
        """The corpora of what the target should keep."""
        return _listed(self.keep)


class Tuning(Section):
    """A light fine-tune after the transfer; see :class:`act.TuneSettings`."""

    corpus: Place
    """What to train on: a name of `corpora`, or a place."""

    replay: Place | None = None
    """Records of what the model should retain, mixed in."""

    mode: Mode = "full"
    """What is trained: all weights, the transferred rows, or low-rank adapters."""

    steps: Positive | None = None
    """Optimiser steps; by default those of one pass over the corpus."""

    batch_size: Positive = TuneSettings.batch_size
    """Records per step."""

    learning_rate: float = Field(TuneSettings.learning_rate, gt=0, allow_inf_nan=False)
    """Of AdamW; it falls linearly to 0."""

    replay_share: float = Field(TuneSettings.replay_share, ge=0, lt=1)
    """Share of the records that are drawn from `replay`."""

    lora_rank: Positive = TuneSettings.lora_rank
    """Rank of the adapters of mode `lora`."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Decides the order of the records."""

    save_steps: Positive = TuneSettings.save_steps
    """Steps between checkpoints."""

    def settings(self) -> TuneSettings:
        """The same as :class:`act.TuneSettings`."""
        return TuneSettings(**self.model_dump(exclude={"corpus", "replay"}))


class Evaluating(Section):
    """What target, donors, result and controls are compared on: records, and tasks of lm-evaluation-harness."""

    old = {"corpora": "corpus", "tasks": "task"}

    corpus: Place | list[Place] | dict[Label, Place] = {}
    """Records to answer: names of `corpora`, or places; or name in the report -> one of these."""

    metric: Metric = "auto"
    """What makes an answer right; `auto`: the metric that all records fit."""

    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer in tokens; by default from the answers of the records."""

    task: Label | list[Label] = []
    """Task, or tasks, of lm-evaluation-harness by name (`pip install 'act-profile[eval]'`)."""

    task_folder: Place | None = None
    """A folder with task files of your own."""

    limit: Positive | None = None
    """At most so many documents of each task."""

    fewshot: Natural | None = None
    """Examples in each prompt of a task; by default the task's own number."""

    controls: list[Control] = []
    """What the transfer is compared with, and a sweep tries, too: other channels, or all parameters moved a little."""

    interpolation: float = Field(0.2, ge=0, le=1)
    """How far the control `interpolation` moves all parameters towards the donors."""

    @property
    def corpora(self) -> dict[str, str]:
        """Name in the report -> a name of the recipe's corpora, or a place."""
        return self.corpus if isinstance(self.corpus, dict) else {name: name for name in _listed(self.corpus)}

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return _listed(self.task)


class Recipe(Section):
    """The whole run. Paths start at the folder of the recipe."""

    old = {"base_model": "target", "models": "donor", "donors": "donor"}

    target: Place
    """The model that lacks the ability: a folder in Hugging Face format, or a hub id. It is only read."""

    donor: list[Donor] = Field(min_length=1)
    """The models that have it."""

    output: Place
    """The folder of the resulting model."""

    merge_method: Literal["act"] = "act"
    """Always `act`."""

    corpora: dict[Label, Records] = {}
    """Corpora by the names that the other sections give them: each a section, or its `place` alone."""

    score: ScoreName = "paired"
    """What channels are ranked by; see `act-profile rank --help`."""

    cost: Cost = "auto"
    """What a score is divided by, if it takes a cost; see `act-profile rank --help`."""

    normalize: Normalize = "none"
    """What scores are divided by."""

    scope: Scope = "global"
    """Rank all channels together, or those of each kind, layer or site."""

    granularity: list[Granularity] = ["channel"]
    """What is ranked as one unit."""

    overlap: Overlap = "sum"
    """What happens to rows that several donors give."""

    include: list[str] = []
    """Rank only these module kinds, or patterns of site names."""

    exclude: list[str] = []
    """Do not rank these module kinds, or patterns of site names."""

    count: Count = "answer"
    """Which tokens count in a profile."""

    ignore_columns: list[str] = []
    """Columns to leave out of the prompt on purpose."""

    max_length: int | None = Field(None, ge=2)
    """Longest sequence in tokens; by default the positions of the model, at most 2,048."""

    token_budget: Positive | Literal["auto"] | None = None
    """Tokens per batch; by default 2,048 on a CPU and 8,192 on a GPU, where attribution takes 4,096; `auto`: in
    measurements what the free memory holds."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type in which models are loaded; `auto`: as they are stored."""

    device: str = "auto"
    """A torch device; `auto`: the first GPU, else the CPU."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of the control `random`, or the score of that name."""

    sweep: Sweeping | None = None
    """Shares and strengths to choose from, instead of `top` and `strength` of the donor."""

    tune: Tuning | None = None
    """A light fine-tune after the transfer."""

    evaluate: Evaluating | None = None
    """What is measured of the result, and what it is compared with."""

    _written: Written = PrivateAttr(default_factory=Written)

    @property
    def written(self) -> Written:
        """The file that it was read from: where its paths start, and its lines."""
        return self._written

    @property
    def stated_budget(self) -> int | None:
        """Tokens per batch as a number; None where the device decides."""
        return None if self.token_budget == "auto" else self.token_budget

    @property
    def swaps(self) -> bool:
        """Whether its pair runs need swapped outputs."""
        return SCORES[self.score].needs_swap

    @property
    def folder(self) -> Path:
        """The folder of the output."""
        return Path(os.path.normpath(self._written.folder / self.output))

    def at(self, place: str) -> str:
        """Where a path of the recipe is; a hub id as it is."""
        return self._written.at(place)

    def models(self) -> list[str]:
        """Every model that is read, once, as the recipe names it: the target first."""
        return list(dict.fromkeys([self.target, *(donor.model for donor in self.donor)]))

    def corpora_used(self) -> list[str]:
        """Every corpus that is read, once, by the name or place that a section gives."""
        found: list[str | None] = [path for donor in self.donor for path in (donor.corpus, *donor.kept)]
        found += [self.sweep.corpus, *self.sweep.kept] if self.sweep else []
        found += [self.tune.corpus, self.tune.replay] if self.tune else []
        found += [*self.evaluate.corpora.values()] if self.evaluate else []
        return list(dict.fromkeys(path for path in found if path))

    def metrics(self, corpus: str) -> list[Metric]:
        """What is measured on a corpus, by the sections that do so."""
        swept = self.sweep and corpus in (self.sweep.corpus, *self.sweep.kept)
        evaluated = self.evaluate and corpus in self.evaluate.corpora.values()
        sections = [one for one, reads in ((self.sweep, swept), (self.evaluate, evaluated)) if one and reads]
        return [one.metric for one in sections]

    def unread(self) -> list[str]:
        """The names of `corpora` that no section reads."""
        used = self.corpora_used()
        return [name for name in self.corpora if name not in used]

    def records(self, corpus: str) -> Records:
        """The corpus that a section gives by its name, or by its place."""
        return self.corpora.get(corpus) or Records(place=corpus)

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default and no path that depends on where it stands, as plain data."""

        def whole(place: str) -> str:
            return place if place in self.corpora else self._written.whole(place)

        def moved(section: dict[str, Any]) -> dict[str, Any]:
            for key in ("model", "target", "output", "corpus", "keep", "replay", "place", "task_folder"):
                match section.get(key):
                    case str() as place:
                        section[key] = whole(place)
                    case list() as places:
                        section[key] = [whole(place) for place in places]
                    case dict() as named:
                        section[key] = {name: whole(place) for name, place in named.items()}
            return section

        chosen = (
            {"donor": {"__all__": {"top", "strength", "strength_of"}}} if self.sweep else None
        )  # none is given there
        found = moved(self.model_dump(exclude=chosen))
        if self.evaluate:
            found["evaluate"]["corpus"] = dict(self.evaluate.corpora)  # whose names would change with their places
        sections = [*found["donor"], *found["corpora"].values(), found["sweep"], found["tune"], found["evaluate"]]
        for section in sections:
            if section:
                moved(section)
        return {key: value for key, value in found.items() if value not in (None, {}, [])}


def _listed(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else given or []


def require_recipe(given: object) -> None:
    """Raise :class:`ActError` unless this is a :class:`Recipe`."""
    require_type("the recipe", given, Recipe, "a recipe; read a file with act.recipe.read_recipe")

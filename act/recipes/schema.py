"""The schema of a recipe: the keys of its YAML file, with types, ranges and defaults.

The text below a key is its entry in the reference of keys (:mod:`act.recipes.reference`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from act.core.errors import ActError
from act.core.plain import Label, Location, Natural, Positive
from act.data.encode import Count
from act.editing.rows import Overlap
from act.editing.tune import Mode, TuneSettings
from act.evaluation.exercises import Metric
from act.ranking.attributed import Cost
from act.ranking.granularity import Granularity
from act.ranking.normalize import Normalize
from act.ranking.scores import SCORES, ScoreName
from act.ranking.selection import Scope

MAX_SEED = 2**32 - 1  # the largest that transformers accepts

Control = Literal["random", "weight-diff", "interpolation"]
"""What the transfer is compared with: as many other channels, or all parameters moved a little."""

StageName = Literal["profile", "rank", "transfer", "tune", "evaluate"]
"""The stages of a recipe, in order."""


class Section(BaseModel):
    """A mapping of the YAML file; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Records(Section):
    """A corpus: where it is, which of its rows, and how its columns become those that are read."""

    place: Location
    """A file, folder, glob or hub id (`org/name`, `org/name:split` or `org/name:config:split`)."""

    rows: Annotated[list[Natural], Field(min_length=2, max_length=2)] | None = None
    """The first row and the one after the last, such as `[0, 600]`; all by default."""

    columns: dict[str, str] = {}
    """Column that is read -> template of those that are there, such as `completion: " {answer:letter}"`."""


class Parameters(Section):
    """What is taken of a donor, named as in mergekit."""

    weight: float | dict[str, float] = 0.4
    """The strength, or one per pattern of site names, of which the first that matches counts."""

    top_p: float | str = 0.05
    """The share of the channels, such as `5%`."""


class Donor(Section):
    """A donor, and the abilities by which its channels are chosen."""

    model: Location
    """A folder in Hugging Face format, or a hub id."""

    corpus: Location
    """The text of the ability that it gives: a name of `corpora`, or a place."""

    keep: str | list[str] | None = None
    """The text, or texts, of what the target should keep."""

    parameters: Parameters = Parameters()
    """How much is taken."""

    @property
    def kept(self) -> list[str]:
        """The corpora of what the target should keep."""
        return [self.keep] if isinstance(self.keep, str) else self.keep or []


class Tuning(Section):
    """A light fine-tune after the transfer; see :class:`act.TuneSettings`."""

    corpus: Location
    """What to train on: a name of `corpora`, or a place."""

    replay: Location | None = None
    """Records of what the model should retain, mixed in."""

    mode: Mode = "full"
    """What is trained: all weights, the transferred rows, or low-rank adapters."""

    steps: int | None = None
    """Optimiser steps; by default those of one pass over the corpus."""

    batch_size: int = TuneSettings.batch_size
    """Records per step."""

    learning_rate: float = TuneSettings.learning_rate
    """Of AdamW; it falls linearly to 0."""

    replay_share: float = TuneSettings.replay_share
    """Share of the records that are drawn from `replay`."""

    lora_rank: int = TuneSettings.lora_rank
    """Rank of the adapters of mode `lora`."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Decides the order of the records."""

    save_steps: int = TuneSettings.save_steps
    """Steps between checkpoints."""

    def settings(self) -> TuneSettings:
        """The same as :class:`act.TuneSettings`; raises ActError for a value out of range or without effect."""
        if self.replay_share != TuneSettings.replay_share and self.replay is None:
            raise ActError(f"replay_share {self.replay_share} is a share of nothing; give replay, or leave it out")
        if self.lora_rank != TuneSettings.lora_rank and self.mode != "lora":
            raise ActError(f"lora_rank has no effect in mode {self.mode}; leave it out, or choose mode lora")
        return TuneSettings(**self.model_dump(exclude={"corpus", "replay"}))


class Evaluating(Section):
    """What target, donors, result and controls are compared on: records, and tasks of lm-evaluation-harness."""

    corpora: dict[Label, Location] = {}
    """Name in the report -> a name of `corpora`, or a place."""

    metric: Metric = "auto"
    """What makes an answer right; `auto`: the metric that all records fit."""

    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer in tokens; by default from the answers of the records."""

    tasks: list[Label] = []
    """Tasks of lm-evaluation-harness by name (`pip install 'act-profile[eval]'`)."""

    task_folder: Location | None = None
    """A folder with task files of your own."""

    limit: Positive | None = None
    """At most so many documents of each task."""

    fewshot: Natural | None = None
    """Examples in each prompt of a task; by default the task's own number."""

    controls: list[Control] = []
    """What the transfer is compared with: other channels (as many), or all parameters moved a little."""

    interpolation: float = Field(0.2, ge=0, le=1)
    """How far the control `interpolation` moves all parameters towards the donors."""


class Recipe(Section):
    """The whole run."""

    merge_method: Literal["act"]
    """Always `act`."""

    base_model: Location
    """The target: a folder in Hugging Face format, or a hub id. It is only read."""

    models: list[Donor] = Field(min_length=1)
    """The donors."""

    output: Location
    """The folder of the resulting model."""

    corpora: dict[Label, Records] = {}
    """Corpora by the names that the other sections give them."""

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

    token_budget: int | None = Field(None, ge=1)
    """Tokens per batch; by default 2,048 on a CPU and 8,192 on a GPU."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type in which models are loaded; `auto`: as they are stored."""

    device: str = "auto"
    """A torch device; `auto`: the first GPU, else the CPU."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of the control `random`, or the score of that name."""

    tune: Tuning | None = None
    """A light fine-tune after the transfer."""

    evaluate: Evaluating | None = None
    """What is measured of the result, and what it is compared with."""

    @property
    def swaps(self) -> bool:
        """Whether its pair runs need swapped outputs."""
        return SCORES[self.score].needs_swap

    def corpora_used(self) -> list[str]:
        """Every corpus that is read, once, by the name or place that a section gives."""
        found: list[str | None] = [path for donor in self.models for path in (donor.corpus, *donor.kept)]
        found += [self.tune.corpus, self.tune.replay] if self.tune else []
        found += [*self.evaluate.corpora.values()] if self.evaluate else []
        return list(dict.fromkeys(path for path in found if path))

    def records(self, corpus: str) -> Records:
        """The corpus that a section gives by its name, or by its place."""
        return self.corpora.get(corpus) or Records(place=corpus)

    def settings(self) -> dict[str, Any]:
        """What decides the result besides models and the content of corpora, as plain data.

        Keys that earlier versions did not have are left out where they say nothing.
        """
        found = self.model_dump(exclude={"output", "base_model"})
        for name, nothing in (("corpora", {}), ("cost", "auto")):
            if found[name] == nothing:
                del found[name]
        if self.evaluate and not self.evaluate.tasks:
            for name in ("tasks", "task_folder", "limit", "fewshot"):
                del found["evaluate"][name]
        return found

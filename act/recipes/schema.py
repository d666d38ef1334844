"""The schema of a recipe: the keys of its YAML file, with types, ranges and defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from act.core.errors import ActError
from act.core.plain import Label, Location
from act.data.encode import Count
from act.editing.rows import Overlap
from act.editing.tune import Mode, TuneSettings
from act.evaluation.exercises import Metric
from act.ranking.attributed import Cost
from act.ranking.granularity import Granularity
from act.ranking.normalize import Normalize
from act.ranking.scores import ScoreName
from act.ranking.selection import Scope

MAX_SEED = 2**32 - 1  # the largest that transformers accepts

Control = Literal["random", "weight-diff", "interpolation"]
"""What the transfer is compared with: as many other channels, or all parameters moved a little."""


class Section(BaseModel):
    """A mapping of the YAML file; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid")


class Parameters(Section):
    """Named as in mergekit: ``weight`` is the strength, or one per pattern; ``top_p`` the share of the channels."""

    weight: float | dict[str, float] = 0.4
    top_p: float | str = 0.05


class Donor(Section):
    """A donor, the corpus of the ability that it gives, and the corpus or corpora of what the target should keep.

    A corpus, here and below, is whatever :func:`act.data.records.open_source` opens.
    """

    model: Location
    corpus: Location
    keep: str | list[str] | None = None
    parameters: Parameters = Parameters()

    @property
    def kept(self) -> list[str]:
        """The corpora of what the target should keep."""
        return [self.keep] if isinstance(self.keep, str) else self.keep or []


class Tuning(Section):
    """A light fine-tune after the transfer; see :class:`act.TuneSettings`."""

    corpus: Location
    replay: Location | None = None
    mode: Mode = "full"
    steps: int | None = None
    batch_size: int = TuneSettings.batch_size
    learning_rate: float = TuneSettings.learning_rate
    replay_share: float = TuneSettings.replay_share
    lora_rank: int = TuneSettings.lora_rank
    seed: int = Field(0, ge=0, le=MAX_SEED)
    save_steps: int = TuneSettings.save_steps

    def settings(self) -> TuneSettings:
        """The same as :class:`act.TuneSettings`; raises ActError for a value out of range or without effect."""
        if self.replay_share != TuneSettings.replay_share and self.replay is None:
            raise ActError(f"replay_share {self.replay_share} is a share of nothing; give replay, or leave it out")
        if self.lora_rank != TuneSettings.lora_rank and self.mode != "lora":
            raise ActError(f"lora_rank has no effect in mode {self.mode}; leave it out, or choose mode lora")
        return TuneSettings(**self.model_dump(exclude={"corpus", "replay"}))


class Evaluating(Section):
    """Corpora by name to evaluate target, donors, result and controls on; the settings apply to all."""

    corpora: dict[Label, Location] = Field(min_length=1)
    metric: Metric = "auto"
    max_new_tokens: int | None = Field(None, ge=1)
    controls: list[Control] = []
    interpolation: float = Field(0.2, ge=0, le=1)


class Recipe(Section):
    """The whole run; ``base_model`` is the target."""

    merge_method: Literal["act"]
    base_model: Location
    models: list[Donor] = Field(min_length=1)
    output: Location
    score: ScoreName = "paired"
    cost: Cost = "auto"
    normalize: Normalize = "none"
    scope: Scope = "global"
    granularity: list[Granularity] = ["channel"]
    overlap: Overlap = "sum"
    include: list[str] = []
    exclude: list[str] = []
    count: Count = "answer"
    ignore_columns: list[str] = []
    max_length: int | None = Field(None, ge=2)
    token_budget: int | None = Field(None, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    seed: int = Field(0, ge=0, le=MAX_SEED)
    tune: Tuning | None = None
    evaluate: Evaluating | None = None

    def corpora(self) -> list[str]:
        """Every corpus that is read, once."""
        found: list[str | None] = [path for donor in self.models for path in (donor.corpus, *donor.kept)]
        found += [self.tune.corpus, self.tune.replay] if self.tune else []
        found += [*self.evaluate.corpora.values()] if self.evaluate else []
        return list(dict.fromkeys(path for path in found if path))

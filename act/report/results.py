"""What models answered on texts, and how they differ: the part of evaluations and recipes that a report reads."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from act.core.places import last_parts
from act.evaluation import kept
from act.evaluation.comparison import ComparisonSummary
from act.evaluation.evaluate import Summary
from act.evaluation.harness import TaskChange, TaskSummary
from act.evaluation.kept import KEPT
from act.evaluation.sweep import Setting

Role = Literal["target", "donor", "method", "control"]
"""What a model is in a comparison: before the change, the one that has the ability, the change, a simpler change."""

CLEAR = 0.05
"""The p-value below which a difference is called clear."""


@dataclass(frozen=True)
class Figure:
    """What one model reached on one text; more is better.

    Attributes:
        model, text: names.
        value: the share of right answers, 0 to 1, or the mean log-likelihood per token in nats.
        error: its standard error; None if it is unknown.
        records: how many records there were.
        share: whether ``value`` is a share of right answers.
    """

    model: str
    text: str
    value: float
    error: float | None
    records: int
    share: bool

    def __str__(self) -> str:
        return shown(self.value, self.error, self.share)


@dataclass(frozen=True)
class Gain:
    """By how much one model is better than another on a text.

    Attributes:
        one, other, text: names.
        value: the difference of their figures; above 0, ``one`` is better.
        error: its standard error, paired over records where the records were compared one by one.
        p: of the paired test; None where the records were not compared one by one.
        share: as in :class:`Figure`.
    """

    one: str
    other: str
    text: str
    value: float
    error: float | None
    p: float | None
    share: bool

    @property
    def clear(self) -> bool:
        """Whether a paired test tells the difference from chance."""
        return self.p is not None and self.p < CLEAR

    @property
    def seems(self) -> bool:
        """Whether ``one`` is better, as far as is known: by the paired test or, without one, by two errors."""
        far = self.error is not None and self.value > 2 * self.error
        return self.value > 0 and (self.clear if self.p is not None else far)

    @property
    def size(self) -> str:
        """The difference with its unit and error."""
        return shown(self.value, self.error, self.share, difference=True)

    @property
    def certainty(self) -> str:
        """The p-value as a phrase, or why there is none."""
        return "not compared record by record" if self.p is None else p_shown(self.p)

    def __str__(self) -> str:
        return f"{self.size}, {self.certainty}"


@dataclass(frozen=True)
class Kept:
    """The share that a model keeps of what the target has, with its standard error, None if that is unknown.

    ``what`` says of what it is a share, as a phrase; empty for right answers.
    """

    share: float
    error: float | None
    what: str

    def below(self, least: float) -> bool:
        """Whether less than ``least`` is kept, by more than two errors."""
        return self.share + 2 * (self.error or 0.0) < least

    def __str__(self) -> str:
        return f"{shown(self.share, self.error, True)}{self.what}"


@dataclass(frozen=True)
class Results:
    """Figures of models on texts.

    Attributes:
        figures: the summaries of evaluations (:meth:`act.Evaluation.summary`), model by model.
        comparisons: the summaries of comparisons (:meth:`act.evaluation.comparison.Comparison.summary`), in either
            direction. A verdict over a control needs that of the method with the control.
        roles: what each model is; a model without a role is only shown.
        keep: which texts are of what is to be kept; all others are of the ability.
        chance: the share of right answers by guessing, or by the commonest answer alone, by text, where it is known.
        warnings: what a reader should know of the texts, one sentence each.
        least_kept: the share of what is to be kept below which a change is called costly.
        tasks: figures of tasks of lm-evaluation-harness.
        task_changes: how these differ between two models.
    """

    figures: Sequence[Summary]
    comparisons: Sequence[ComparisonSummary] = ()
    roles: Mapping[str, Role] = field(default_factory=dict)
    keep: Collection[str] = ()
    chance: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    least_kept: float = KEPT
    tasks: Sequence[TaskSummary] = ()
    task_changes: Sequence[TaskChange] = ()

    @property
    def models(self) -> list[str]:
        """Names of the models, in order."""
        return list(dict.fromkeys(one["model"] for one in (*self.figures, *self.tasks)))

    def by_last_parts(self) -> Results:
        """The same with models and texts that are named by their places called by the last parts of these."""
        called = last_parts(self.models) | last_parts(dict.fromkeys(one["corpus"] for one in self.figures))

        def renamed(row: Any) -> Any:
            told = ("model", "corpus", "before", "after")
            return {name: called.get(value, value) if name in told else value for name, value in row.items()}

        return replace(
            self,
            figures=[*map(renamed, self.figures)],
            comparisons=[*map(renamed, self.comparisons)],
            roles={called.get(name, name): role for name, role in self.roles.items()},
            keep=[called.get(name, name) for name in self.keep],
            chance={called.get(name, name): level for name, level in self.chance.items()},
            tasks=[*map(renamed, self.tasks)],
            task_changes=[*map(renamed, self.task_changes)],
        )

    @property
    def texts(self) -> list[str]:
        """Names of the texts, those of the ability first."""
        return sorted(dict.fromkeys(one["corpus"] for one in self.figures), key=lambda text: text in self.keep)

    def named(self, role: Role) -> list[str]:
        """The models of a role."""
        return [model for model in self.models if self.roles.get(model) == role]

    def of(self, model: str, text: str) -> Figure | None:
        """The figure of a model on a text; None if there is none."""
        for one in self.figures:
            if (one["model"], one["corpus"]) == (model, text):
                if one["match"] is not None:
                    return Figure(model, text, one["match"], one["match_se"], one["records"], True)
                if one["nll_per_token"] is not None:
                    return Figure(model, text, -one["nll_per_token"], one["nll_per_token_se"], one["records"], False)
        return None

    def gain(self, one: str, other: str, text: str) -> Gain | None:
        """How much better ``one`` is than ``other``; None where a figure is missing, or they are of two metrics."""
        mine, theirs = self.of(one, text), self.of(other, text)
        if mine is None or theirs is None or mine.share != theirs.share:
            return None
        for found in self.comparisons:
            if found["corpus"] != text or {found["before"], found["after"]} != {one, other}:
                continue
            sign = 1.0 if found["after"] == one else -1.0
            if mine.share:
                value, error, p = found["match_difference"], found["match_difference_se"], found["match_p"]
            else:
                sign = -sign  # of a loss, less is better
                value, error, p = (
                    found["nll_per_token_difference"],
                    found["nll_per_token_difference_se"],
                    found["nll_p"],
                )
            if value is not None:
                return Gain(one, other, text, sign * value, error, p, mine.share)
        unknown = mine.error is None or theirs.error is None
        error = None if unknown else math.hypot(mine.error or 0.0, theirs.error or 0.0)
        return Gain(one, other, text, mine.value - theirs.value, error, None, mine.share)

    def kept(self, model: str, text: str) -> Kept | None:
        """The share that a model keeps of what the target has; None where that cannot be told.

        As :mod:`act.evaluation.kept` has it, by the figures of summaries.
        """
        for target in self.named("target"):
            before, gain = self.of(target, text), self.gain(model, target, text)
            if before is None or gain is None or (gain.share and before.value <= 0):
                continue
            if gain.share:
                share = kept.Keeping(before.value, 0.0).share(before.value + gain.value)
                return Kept(share, gain.error and gain.error / before.value, "")
            for donor in self.named("donor"):
                over = self.gain(target, donor, text)
                if over and over.error is not None and over.value > kept.CLEAR * over.error:
                    share = kept.Keeping(before.value, before.value - over.value).share(before.value + gain.value)
                    error = gain.error and gain.error / over.value
                    return Kept(share, error, f" {kept.OF_GAIN.format(donor)}")
            share = kept.Keeping(before.value, None).share(before.value + gain.value)
            return Kept(share, gain.error and gain.error * share, f" {kept.OF_TOKEN}")
        return None


def is_share(settings: Iterable[Setting], name: str) -> bool:
    """Whether a figure of a sweep is a share, such as of right answers; else a log-likelihood, below 0 at the target.

    A share may fall below 0 where a change recovers less than nothing, but not at the unchanged target.
    """
    every = [*settings]
    before = [one for one in every if not one.top] or every
    return all(one.figures[name] >= 0 for one in before)


def shown(value: float, error: float | None, share: bool, *, difference: bool = False) -> str:
    """A figure or a difference with its unit and error, such as ``35.9 ± 2.1 %`` or ``+0.12 ± 0.01 nats per token``."""
    scale, digits = (100.0, 1) if share else (1.0, 3)
    unit = (" points" if difference else " %") if share else " nats per token"
    sign = "+" if difference else ""
    number = f"{scale * value:{sign}.{digits}f}".replace("-", "−")
    return number + ("" if error is None else f" ± {scale * error:.{digits}f}") + unit


def p_shown(p: float) -> str:
    """A p-value as a phrase."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"

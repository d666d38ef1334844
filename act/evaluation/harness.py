"""Tasks of lm-evaluation-harness by name, through its Python API."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from act.core.errors import ActError, brief
from act.core.extras import optional
from act.evaluation.significance import finite, sign_flip
from act.models.loading import name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TaskSummary(TypedDict):
    """One metric of one task as plain data; None where there is no finite number."""

    model: str
    task: str
    metric: str
    value: float | None
    se: float | None
    chance: float | None
    documents: int


class TaskChange(TypedDict):
    """One metric of one task in two models: the difference and, for a mean, its standard error and p-value."""

    before: str
    after: str
    task: str
    metric: str
    difference: float | None
    se: float | None
    p: float | None


@dataclass(frozen=True)
class TaskFigure:
    """One metric of one task.

    Attributes:
        standard_error: None where the harness gives none.
        per_document: the values that the metric is the mean of, by document number; empty if it is not a mean.
        chance: the share that guesses among the choices would find; None for other metrics, and tasks without choices.
    """

    model: str
    task: str
    metric: str
    value: float
    standard_error: float | None
    per_document: dict[int, float]
    chance: float | None = None

    def summary(self) -> TaskSummary:
        """Plain data, without the documents."""
        return {
            "model": self.model,
            "task": self.task,
            "metric": self.metric,
            "value": finite(self.value),
            "se": finite(self.standard_error),
            "chance": self.chance,
            "documents": len(self.per_document),
        }

    def to_json(self) -> dict[str, Any]:
        """The figure with its documents as plain data; :meth:`from_json` reads it back."""
        return {**vars(self), "per_document": list(self.per_document.items())}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskFigure:
        """The inverse of :meth:`to_json`."""
        return cls(**{**data, "per_document": dict(data["per_document"])})


def require_tasks(names: Sequence[str], folder: Path | None = None) -> Any:
    """Check the names of tasks and return the harness's task manager.

    Args:
        folder: your own task files, in addition to those of the harness.

    Raises:
        ActError: the package is missing; no such folder; an unknown task, with the names closest to it.
    """
    tasks = optional("lm_eval.tasks", "eval", "a task of lm-evaluation-harness")
    if folder is not None and not folder.is_dir():
        raise ActError(f"no such folder of tasks: {folder}")
    manager = tasks.TaskManager(include_path=str(folder) if folder else None)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            advice = f"did you mean {' or '.join(near)}?" if near else "run lm-eval ls tasks to list them"
            raise ActError(f"no task called {name!r} in lm-evaluation-harness; {advice}")
    return manager


def run_tasks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 8,
    name: str | None = None,
) -> list[TaskFigure]:
    """Run tasks on a loaded model and return every metric of every task and subtask.

    Args:
        limit: at most so many documents per task; all by default.
        fewshot: examples in each prompt; the task's own number by default.
        name: what to call the model; by default the name it was loaded by.

    Raises:
        ActError: as :func:`require_tasks`; a task that cannot be run, such as one whose data cannot be downloaded.
    """
    manager = require_tasks(names, folder)
    evaluator = optional("lm_eval.evaluator", "eval", "a task of lm-evaluation-harness")
    wrapper = optional("lm_eval.models.huggingface", "eval", "a task of lm-evaluation-harness").HFLM
    try:
        with _quiet():
            wrapped = wrapper(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            found = evaluator.simple_evaluate(
                wrapped, tasks=list(names), task_manager=manager, limit=limit, num_fewshot=fewshot, bootstrap_iters=0
            )
    except Exception as error:  # data sets, templates and metrics may raise anything
        raise ActError(f"cannot run {', '.join(names)}: {brief(error)}") from error
    name = name or name_of(model)
    return [
        TaskFigure(
            name,
            task,
            metric,
            float(value),
            _standard_error(values, key),
            _documents(found, task, key),
            _chance(found, task, key),
        )
        for task, values in found["results"].items()
        for key, value in values.items()
        if isinstance(value, (int, float)) and "," in key and "_stderr" not in key
        for metric in [key.removesuffix(",none")]
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """During the block, the harness says no more than errors: its warnings are for authors of tasks and of models."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def compare_tasks(before: Sequence[TaskFigure], after: Sequence[TaskFigure]) -> list[TaskChange]:
    """The difference of every figure that both have; if it is a mean over documents, with a paired sign-flip test."""
    old = {(figure.task, figure.metric): figure for figure in before}
    rows: list[TaskChange] = []
    for new in after:
        was = old.get((new.task, new.metric))
        if was is None:
            continue
        shared = sorted(was.per_document.keys() & new.per_document.keys())
        change = [new.per_document[document] - was.per_document[document] for document in shared]
        test = sign_flip(torch.tensor(change)) if shared else None
        rows.append(
            {
                "before": was.model,
                "after": new.model,
                "task": new.task,
                "metric": new.metric,
                "difference": finite(new.value - was.value),
                "se": finite(test.standard_error if test else None),
                "p": finite(test.p if test else None),
            }
        )
    return rows


def _standard_error(values: dict[str, Any], key: str) -> float | None:
    metric, _, name = key.partition(",")
    found = values.get(f"{metric}_stderr,{name}")
    return float(found) if isinstance(found, (int, float)) else None


def _chance(found: dict[str, Any], task: str, key: str) -> float | None:
    """What guesses among the choices of each document would find, where an accuracy is that of the likeliest choice."""
    config = found.get("configs", {}).get(task, {})
    metric, _, name = key.partition(",")
    if config.get("output_type") != "multiple_choice" or not metric.startswith("acc") or config.get("process_results"):
        return None  # a task's own function may make anything of the likelihoods
    asked = 2 if any(one.get("metric") == "acc_mutual_info" for one in config.get("metric_list") or ()) else 1
    levels = [
        (len({*sample["target"]}) if isinstance(sample["target"], list) else 1) * asked / len(sample["arguments"])
        for sample in found.get("samples", {}).get(task, [])
        if sample.get("filter", name) == name and sample["arguments"]
    ]
    return sum(levels) / len(levels) if levels else None


def _documents(found: dict[str, Any], task: str, key: str) -> dict[int, float]:
    metric, _, name = key.partition(",")
    return {
        sample["doc_id"]: float(sample[metric])
        for sample in found.get("samples", {}).get(task, [])
        if isinstance(sample.get(metric), (int, float)) and sample.get("filter", name) == name
    }

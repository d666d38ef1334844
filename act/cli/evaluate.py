"""``act-profile evaluate``: likelihood and right answers of one model, or before and after of several."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from act.cli import console, options
from act.core.errors import ActError
from act.core.files import require_output, written_whole
from act.data.corpus import Corpus
from act.data.stream import DEFAULT_TOKEN_BUDGET
from act.evaluation.evaluate import Comparison, Evaluation, compare, evaluate
from act.evaluation.harness import TaskFigure, compare_tasks, require_tasks, run_tasks
from act.evaluation.significance import finite, mean_and_error
from act.models.loading import load_model, load_tokenizer


def command(
    model: Annotated[list[str], typer.Option(help="The model to evaluate (repeatable).")],
    corpus: Annotated[list[str] | None, typer.Option(help="Records to answer (repeatable).")] = None,
    before: Annotated[str | None, typer.Option(help="The model that the others are compared with.")] = None,
    metric: Annotated[str, typer.Option(help="auto, exact, number, choice or nll.")] = "auto",
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer; by default from the records'.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Task of lm-evaluation-harness (repeatable).")] = None,
    task_folder: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Documents of each task at most.")] = None,
    fewshot: Annotated[int | None, typer.Option(help="Examples in each prompt of a task.")] = None,
    details: Annotated[Path | None, typer.Option(help="Write every record's figures and answer, as JSONL.")] = None,
    max_length: options.MaxLength = None,
    token_budget: Annotated[int, typer.Option(help="Tokens a batch, padding included.")] = DEFAULT_TOKEN_BUDGET,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Answer likelihood and right answers on a corpus; with --before, what changed and whether it is luck."""
    console.quiet_transformers()
    if not corpus and not task:
        raise ActError("nothing to evaluate on; give --corpus or --task")
    if details:
        require_output(details, force, [*model, *(corpus or []), *([before] if before else [])])
    if task:
        require_tasks(task, task_folder)
    evaluations: dict[str, list[Evaluation]] = {}
    figures: dict[str, list[TaskFigure]] = {}
    names = list(dict.fromkeys([*([before] if before else []), *model]))
    for name in names:
        tokenizer = load_tokenizer(name)
        corpora = [Corpus.from_file(path, tokenizer, max_length=max_length) for path in corpus or ()]
        loaded = load_model(name, dtype=dtype, device=device)
        with console.counter(name) as progress:
            settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "token_budget": token_budget, "name": name}
            evaluations[name] = [evaluate(loaded, text, metric, **settings, progress=progress) for text in corpora]  # type: ignore[arg-type]
        options: dict[str, Any] = {"folder": task_folder, "limit": limit, "fewshot": fewshot, "name": name}
        figures[name] = run_tasks(loaded, tokenizer, task, **options) if task else []
        del loaded
    later = names[1:] if before else []
    comparisons = [
        compare(*both) for name in later for both in zip(evaluations[names[0]], evaluations[name], strict=True)
    ]
    task_changes = [row for name in later for row in compare_tasks(figures[names[0]], figures[name])]
    if details:
        with written_whole(details, force=force) as path:
            _write_details(path, [one for name in names for one in evaluations[name]])
    everything = [one for name in names for one in evaluations[name]]
    for one in everything:
        if bad := int((~one.nll.isfinite()).sum()):
            console.warn(
                f"{one.model} gives NaN or infinity for {bad} of {len(one.nll)} records of {one.corpus}: "
                "its likelihood is unknown there, and its answers are chance; look for NaN in its weights"
            )
    task_figures = [one.summary() for name in names for one in figures[name]]
    if as_json:
        return console.print_json(
            {
                "results": [one.summary() for one in everything],
                "comparisons": [one.summary() for one in comparisons],
                "tasks": task_figures,
                "task_comparisons": task_changes,
            }
        )
    print_evaluations(everything, comparisons)
    if task_figures:
        called = _names(f["model"] for f in task_figures)
        rows = [[called[f["model"]], f["task"], f["metric"], _pm(f["value"], f["se"], 3)] for f in task_figures]
        console.print_table("Tasks of lm-evaluation-harness", ["model", "task", "metric", "value"], rows)
    if task_changes:
        called = _names(row["after"] for row in task_changes)
        rows = [
            [called[row["after"]], row["task"], row["metric"], _pm(row["difference"], row["se"], 3, "+"), _p(row["p"])]
            for row in task_changes
        ]
        console.print_table(f"Tasks, against {before}", ["model", "task", "metric", "difference", "p"], rows)


def print_evaluations(evaluations: list[Evaluation], comparisons: list[Comparison]) -> None:
    """Tables of figures, and of differences with their paired tests."""
    rows = []
    called = _names(one.model for one in evaluations) | _names(one.corpus for one in evaluations)
    for one in evaluations:
        it = one.summary()
        mean, error = (math.nan, None) if one.right is None else mean_and_error(100 * one.right.double())
        match = "" if one.right is None else _pm(mean, error, 1)
        nll = _pm(it["nll_per_token"], it["nll_per_token_se"], 3)
        rows.append([called[one.model], called[one.corpus], one.metric, f"{it['records']:,}", match, nll])
    if rows:
        names = ["model", "corpus", "metric", "records", "right, %", "NLL a token"]
        console.print_table("Figures, ± standard error", names, rows)
    if cut := sum(one.cut for one in evaluations):
        console.warn(f"{cut} answers were cut at the limit of new tokens; --max-new-tokens raises it")
    rows = []
    for change in comparisons:
        solved, likelihood = change.match, change.nll
        rows.append(
            [
                called[change.after],
                called[change.corpus],
                _pm(100 * solved.difference, 100 * solved.standard_error, 1, "+") if solved else "",
                f"+{change.gained} -{change.lost}" if solved else "",
                _p(solved.p) if solved else "",
                _pm(likelihood.difference, likelihood.standard_error, 3, "+") if likelihood else "other tokens",
                _p(likelihood.p) if likelihood else "",
            ]
        )
    if rows:
        names = ["model", "corpus", "right, %", "records", "McNemar p", "NLL a token", "sign-flip p"]
        console.print_table(f"Against {called[comparisons[0].before]}", names, rows)


def _write_details(path: Path, evaluations: list[Evaluation]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for one in evaluations:
            for record in range(len(one.nll)):
                row = {
                    "model": one.model,
                    "corpus": one.corpus,
                    "record": record,
                    "nll": finite(one.nll[record].item()),
                    "tokens": int(one.tokens[record]),
                    "right": None if one.right is None else bool(one.right[record]),
                    "output": one.outputs and one.outputs[record],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _names(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each path, or all of it where that would call two of them alike."""
    short = {path: Path(path).name or path for path in paths}
    counts = Counter(short.values())
    return {path: name if counts[name] == 1 else path for path, name in short.items()}


def _pm(value: float | None, error: float | None, digits: int, sign: str = "") -> str:
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:{sign}.{digits}f}" + ("" if error is None or math.isnan(error) else f" ± {error:.{digits}f}")


def _p(p: float | None) -> str:
    return "" if p is None or math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"

"""``act-profile evaluate``: likelihoods and right answers of models, and their changes against one of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act.cli import console, options
from act.cli.grouped import with_options
from act.cli.progress import counter
from act.cli.reading import ReadingRecords
from act.cli.tables import GUESSES, NLL, RIGHT, P, filled, guesses, print_tasks
from act.core.counted import counted
from act.core.errors import ActError, require_choice
from act.core.files import require_ending, reserve_output, written_whole
from act.core.places import last_parts

if TYPE_CHECKING:
    from torch import nn

    from act.data.corpus import Corpus
    from act.editing.card_texts import Use
    from act.evaluation.comparison import Comparison
    from act.evaluation.evaluate import Evaluation
    from act.evaluation.harness import TaskChange, TaskFigure


CLEAR = 0.05
"""The p-value below which a change is called better or worse."""
TASKS = "Tasks of lm-evaluation-harness"
EXAMPLES = """
act-profile evaluate --before specialist/ --model mended/ \\
    --corpus german=test-de.jsonl --keep mathematics=test-math.jsonl
act-profile evaluate --model mended/ --corpus test.jsonl \\
    --details answers.jsonl
"""


@with_options
def command(
    reading: ReadingRecords,
    model: Annotated[
        list[str], typer.Option(rich_help_panel=options.MODELS, help="The model to evaluate (repeatable).")
    ],
    before: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=options.MODELS,
            help="The model with which each --model is compared, such as what it was made of.",
        ),
    ] = None,
    revision: options.Revision = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=options.TEXT, help="Records to answer (repeatable, also as NAME=PLACE)."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=options.TEXT,
            help="Records of what is to be kept, answered as those of --corpus: a report then tells what was recovered "
            "from what was kept (repeatable, also as NAME=PLACE).",
        ),
    ] = None,
    metric: options.Metric = "auto",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=options.TEXT, help="Longest answer in tokens. Default: from the answers of the records."
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(rich_help_panel=TASKS, help="Task of lm-evaluation-harness (repeatable).")
    ] = None,
    task_folder: Annotated[
        Path | None, typer.Option(rich_help_panel=TASKS, help="Folder with your task files.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=options.TEXT,
            help="Only this many records of each corpus, the first ones, and documents of each task: for a quick look.",
        ),
    ] = None,
    fewshot: Annotated[
        int | None, typer.Option(rich_help_panel=TASKS, help="Examples in each prompt of a task.")
    ] = None,
    details: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=options.OUTPUT,
            help="Write every record's figures, answer and right answer to this file, which ends with .jsonl, .csv or "
            ".parquet.",
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            rich_help_panel=options.OUTPUT,
            help="Put the figures into the model card of each --model, a folder that transfer, tune or a recipe wrote; "
            "they replace those of the same text, model and metric, but a look by --limit replaces no whole result.",
        ),
    ] = False,
    token_budget: options.RecordBudget = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Answer likelihood and right answers on a corpus; with --before, the change and whether it may be chance."""
    _require_effect(
        bool(corpus or keep),
        bool(task),
        {"metric": None if metric == "auto" else metric, "max-new-tokens": max_new_tokens, "details": details}
        | {"token-budget": token_budget, "columns": reading.columns, "ignore-columns": reading.ignore_columns}
        | {"max-length": reading.max_length, "skip-bad-records": reading.skip_bad_records or None},
        {"task-folder": task_folder, "fewshot": fewshot},
    )
    require_choice("metric", metric, options.METRICS)
    for what, number, least in (
        ("max new tokens", max_new_tokens, 1),
        ("token budget", token_budget, 1),
        ("limit", limit, 1),
        ("fewshot", fewshot, 0),
    ):
        if number is not None and number < least:
            raise ActError(f"{what} is {number}; expected at least {least}")
    if max_new_tokens is not None:
        _require_written(metric)
    _require_others(model, before)
    from act.editing.card_results import require_place
    from act.evaluation.comparison import compare
    from act.evaluation.details import ENDINGS, write_details
    from act.evaluation.evaluate import evaluate
    from act.evaluation.exercises import exercises_of, fitting_metric
    from act.evaluation.harness import compare_tasks, require_tasks, run_tasks
    from act.models.hub import at_revision
    from act.models.loading import load_model
    from act.profiling.dtype_speed import warn_of_half

    console.quiet_transformers()
    texts = [*(corpus or []), *(keep or [])]
    places = console.named(corpus or [], keep or [])
    model = [at_revision(name, revision) for name in model]
    names = list(dict.fromkeys([*([before] if before else []), *model]))
    console.require_models(names)
    if details:
        require_ending(details, "the table of records", ENDINGS)
        reserve_output(details, force, [*names, *places.values(), *([task_folder] if task_folder else [])])
    for name in model if card else ():
        require_place(name)
    if task:
        require_tasks(task, task_folder)
    evaluations: dict[str, list[Evaluation]] = {}
    figures: dict[str, list[TaskFigure]] = {}
    tokenizers = {name: reading.tokenizer_of(name, trust_remote_code=trust_remote_code) for name in names}
    opened = reading.open_all(texts, tokenizers, limit=limit, trust_remote_code=trust_remote_code)
    used = {name: _uses(name, opened[name]) for name in names}
    _warn_of_used(used)
    for name in names:
        corpora = [*opened[name].values()]
        loaded = load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if max_new_tokens is not None and metric == "auto":
            _require_written(*(fitting_metric(exercises_of(text.for_models(loaded))) for text in corpora))
        warn_of_half(loaded)
        if card and name == before:
            _warn_of_other_parents(model, name, loaded)
        with counter(name, as_json) as progress:
            evaluations[name] = [
                evaluate(
                    loaded,
                    text,
                    metric,  # type: ignore[arg-type]  # checked by evaluate
                    max_new_tokens=max_new_tokens,
                    token_budget=token_budget,
                    name=name,
                    progress=progress,
                )
                for text in corpora
            ]
        figures[name] = (
            run_tasks(loaded, tokenizers[name], task, folder=task_folder, limit=limit, fewshot=fewshot, name=name)
            if task
            else []
        )
        del loaded
    later = names[1:] if before else []
    comparisons = [
        compare(*both) for name in later for both in zip(evaluations[names[0]], evaluations[name], strict=True)
    ]
    task_changes = [row for name in later for row in compare_tasks(figures[names[0]], figures[name])]
    if details:
        with written_whole(details, force=force) as path:
            write_details(path, [one for name in names for one in evaluations[name]], details.suffix.lower())
        console.note(f"written to {details}: every record of every model, with its figures")
    for name in model if card else ():
        shown = [one for one in names if one in (before, name)]
        _put_on_card(
            name,
            [one for each in shown for one in evaluations[each]],
            [one for one in comparisons if one.after == name],
            [one for each in shown for one in figures[each]],
            used[name],
            limit,
        )
    everything = [one for name in names for one in evaluations[name]]
    for one in everything:
        if bad := int((~one.nll.isfinite()).sum()):
            console.warn(
                f"{one.model} gives NaN or infinity for {bad} of {counted(len(one.nll), 'record')} of {one.corpus}: "
                "their likelihood is unknown, and their answers are arbitrary; look for NaN in the weights"
            )
    few = _too_few(comparisons, everything)
    if as_json:
        for sentence in few:
            console.note(sentence)
        return console.print_json(
            {
                "results": [one.summary() for one in everything],
                "comparisons": [one.summary() for one in comparisons],
                "keep": list(console.named(keep or [])),
                "limit": limit,
                "tasks": [one.summary() for name in names for one in figures[name]],
                "task_comparisons": task_changes,
            }
        )
    _print_figures(everything)
    _print_comparisons(comparisons)
    for sentence in few:
        print(sentence)
    print_tasks([one.summary() for name in names for one in figures[name]], last_parts(names))
    _print_task_changes(task_changes)
    _print_legend(everything, comparisons, task_changes, limit)


def _require_effect(texts: bool, tasks: bool, of_texts: Mapping[str, object], of_tasks: Mapping[str, object]) -> None:
    """Raise :class:`ActError` for options of texts where only tasks were given, and the other way round."""
    if not (texts or tasks):
        raise ActError("nothing to evaluate on; give --corpus or --task")
    for given, needed, names in ((texts, "--corpus or --keep", of_texts), (tasks, "--task", of_tasks)):
        for name, value in names.items():
            if not given and value is not None:
                raise ActError(f"--{name} has no effect without {needed}; leave it out, or give one")


def _require_written(*metrics: str) -> None:
    """Raise :class:`ActError` if a limit of new tokens was given where no metric lets the model write."""
    if all(one in ("nll", "choice") for one in metrics):
        judged = " and ".join(dict.fromkeys(metrics))
        raise ActError(
            f"--max-new-tokens has no effect with the metric {judged}, which writes no answers; leave it out, or "
            "choose --metric exact or number"
        )


def _require_others(models: Sequence[str], before: str | None) -> None:
    """Raise :class:`ActError` if one model is given twice, however it is written."""
    seen: dict[str, str] = {}
    for name in [*([before] if before else []), *models]:
        place = os.path.realpath(name) if os.path.exists(name) else name
        if place in seen:
            raise ActError(
                f"{name} is given twice (the first time as {seen[place]}), so a model would be compared with itself; "
                "give --model what was changed, and --before what it was made of"
            )
        seen[place] = name


_USED: dict[Use, str] = {
    "ranked": "to find channels",
    "chosen": "to choose share and strength",
    "trained": "to train on",
}


def _uses(model: str, texts: Mapping[str, Corpus]) -> dict[str, list[Use]]:
    """What texts, by their names, were used for when a model was made, as its card says; those that were used."""
    from act.editing.card_texts import uses_of
    from act.editing.model_card import card_of

    card = card_of(model)
    return {name: uses for name, text in texts.items() if (uses := uses_of(card, text.source))}


def _warn_of_used(used: Mapping[str, Mapping[str, Sequence[Use]]]) -> None:
    """Warn of texts that models were made by, in one sentence for all that were made by the same ones."""
    alike: dict[tuple[str, str], list[str]] = {}
    for model, texts in used.items():
        for uses in dict.fromkeys(map(tuple, texts.values())):
            names = " and ".join(name for name, found in texts.items() if tuple(found) == uses)
            alike.setdefault((names, " and ".join(_USED[use] for use in uses)), []).append(model)
    for (names, how), models in alike.items():
        console.warn(
            f"{names}: used {how}, by the card of {' and '.join(models)}, so figures there flatter it and tell little "
            "of other text; evaluate on records that were used for nothing else"
        )


def _warn_of_other_parents(models: Sequence[str], before: str, loaded: nn.Module) -> None:
    """Warn of models that were made of another model, by their cards, than of that with which they are compared."""
    from act.editing.card_history import other_parent
    from act.models.fingerprint import fingerprint

    found = fingerprint(loaded)
    for model in models:
        if parent := other_parent(model, before, found):
            console.warn(
                f"the card of {model} says that it was made of {parent}, and the figures there will compare it with "
                f"{before}, which does not tell what the change did; for that, give {parent} as --before"
            )


def _put_on_card(
    model: str,
    evaluations: Sequence[Evaluation],
    comparisons: Sequence[Comparison],
    tasks: Sequence[TaskFigure],
    used: Mapping[str, Sequence[Use]],
    limit: int | None,
) -> None:
    """Put the figures of a model, beside those of the one that it is compared with, into its model card.

    A look at the first records does not take the place of a result.
    """
    from act.editing.card_results import CARD, has_whole, put_results
    from act.evaluation.results_table import figure_of_task, figures_of, results_table, tasks_table

    called = last_parts([*(one.model for one in evaluations), *(one.model for one in tasks)]) | last_parts(
        one.corpus for one in evaluations
    )
    looks = dict.fromkeys(called[one.corpus] for one in evaluations if len(one.nll) == limit)
    if whole := has_whole(Path(model), [*looks]):
        console.note(
            f"{Path(model, CARD)} keeps its figures of all records of {' and '.join(whole)}: those of the first "
            f"{limit:,} do not take their place; leave --limit out for that"
        )
        evaluations = [one for one in evaluations if called[one.corpus] not in whole]
        comparisons = [one for one in comparisons if called[one.corpus] not in whole]
        if not (evaluations or tasks):
            return
    rows = [replace(one, model=called[one.model], corpus=called[one.corpus]).summary() for one in evaluations]
    pairs = [
        replace(one, before=called[one.before], after=called[one.after], corpus=called[one.corpus]).summary()
        for one in comparisons
    ]
    against = pairs[0]["before"] if pairs else ""
    results = []
    if rows:
        results.append(
            results_table(
                rows,
                pairs,
                against,
                own=called[model],
                limit=limit,
                used={called.get(name, name): uses for name, uses in used.items()},
            )
        )
    judged = [replace(one, model=called[one.model]).summary() for one in tasks]
    results += [tasks_table(judged, own=called[model])] if tasks else []
    own = [figure for row in rows if row["model"] == called[model] for figure in figures_of(row, limit)]
    own += [figure for row in judged if row["model"] == called[model] for figure in figure_of_task(row)]
    replaced = put_results(Path(model), "\n\n".join(results), own)
    place = ", in the place of those of the same text and metric" if replaced else ""
    console.note(f"written to {Path(model, CARD)}: these figures{place}")


def _print_figures(evaluations: list[Evaluation]) -> None:
    from act.evaluation.results_table import METRICS
    from act.evaluation.significance import mean_and_error, with_error

    rows = []
    called = last_parts(one.model for one in evaluations) | last_parts(one.corpus for one in evaluations)
    for one in evaluations:
        it = one.summary()
        match = "" if one.right is None else with_error(*mean_and_error(100 * one.right.double()), 1)
        nll = with_error(it["nll_per_token"], it["nll_per_token_se"], 3)
        levels = [guesses(it["chance"], it["majority"])]
        rows.append(
            [called[one.model], called[one.corpus], METRICS[one.metric], f"{it['records']:,}", match, *levels, nll]
        )
    if rows:
        names = ["model", "corpus", "metric", "records", "right, %", GUESSES, "NLL per token"]
        console.print_table("Figures, ± standard error", *filled(names, rows))
    if cut := sum(one.cut for one in evaluations):
        console.warn(f"cut at the limit of new tokens: {counted(cut, 'answer')}; raise it with --max-new-tokens")


def _print_comparisons(comparisons: list[Comparison]) -> None:
    from act.evaluation.significance import with_error

    rows = []
    called = last_parts(name for one in comparisons for name in (one.before, one.after))
    called |= last_parts(one.corpus for one in comparisons)
    for one in comparisons:
        match, nll = one.match, one.nll
        rows.append(
            [
                called[one.after],
                called[one.corpus],
                with_error(100 * match.difference, 100 * match.standard_error, 1, "+") if match else "",
                f"+{one.gained} -{one.lost}" if match else "",
                _p(match.p) if match else "",
                with_error(nll.difference, nll.standard_error, 3, "+") if nll else "other tokens",
                _p(nll.p) if nll else "",
                _change(one),
            ]
        )
    if rows:
        names = [
            "model",
            "corpus",
            "right, %",
            "answers won, lost",
            "McNemar p",
            "NLL per token",
            "sign-flip p",
            "change",
        ]
        console.print_table(f"Against {called[comparisons[0].before]}", *filled(names, rows))


def _change(one: Comparison) -> str:
    """What a comparison says in a word: of right answers, or of likelihoods where none are judged."""
    test = one.match or one.nll
    if test is None or math.isnan(test.p):
        return ""
    gained = test.difference if one.match else -test.difference
    return "unclear" if test.p >= CLEAR else "better" if gained > 0 else "worse"


def _too_few(comparisons: Sequence[Comparison], evaluations: Sequence[Evaluation]) -> list[str]:
    """Where nothing could have been clear, however much better or worse a model is: one sentence each."""
    from act.evaluation.comparison import too_few

    records = {one.corpus: len(one.nll) for one in evaluations}
    called = last_parts(one.after for one in comparisons) | last_parts(records)
    several = len({one.after for one in comparisons}) > 1
    said = []
    for one in comparisons:
        if why := too_few(one, records[one.corpus], CLEAR):
            model = f"{called[one.after]} on " if several and "answers" in why else ""
            said.append(f"{model}{called[one.corpus]}: {why}")
    return list(dict.fromkeys(said))


def _print_task_changes(changes: list[TaskChange]) -> None:
    from act.evaluation.significance import with_error

    called = last_parts(row["after"] for row in changes)
    rows = [
        [
            called[row["after"]],
            row["task"],
            row["metric"],
            with_error(row["difference"], row["se"], 3, "+"),
            _p(row["p"]),
        ]
        for row in changes
    ]
    if rows:
        names = ["model", "task", "metric", "difference", "p"]
        console.print_table(f"Tasks, against {changes[0]['before']}", names, rows)


def _print_legend(
    evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison], tasks: Sequence[TaskChange], limit: int | None
) -> None:
    """What the columns of the tables are."""
    if any(one.right is not None for one in evaluations):
        print(RIGHT)
    if evaluations:
        print(NLL)
    tests = [
        *(["McNemar's exact test, of answers won and lost"] if any(one.match for one in comparisons) else []),
        *(["sign-flip, of likelihoods record by record"] if any(one.nll for one in comparisons) else []),
        *(["of tasks, sign-flip document by document"] if tasks else []),
    ]
    # As _change judges: of right answers, where there are any.
    judged = " (McNemar's, where answers are judged right or wrong)" if any(one.match for one in comparisons) else ""
    if tests:
        print(f"{P} ({'; '.join(tests)}); better, worse: p{judged} is below {CLEAR:g}; unclear: it is not")
    if comparisons:
        print("for a page of this, add --json > evaluation.json, and give that to act-profile report")
    if limit:
        print(f"only the first {limit:,} of each corpus and task: a look, no result")


def _p(p: float | None) -> str:
    return "" if p is None or math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"

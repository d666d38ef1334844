"""``act-profile recipe``: the whole method from one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from act.cli import console, options
from act.core.errors import ActError, require_choice
from act.core.inputs import require_not_input

if TYPE_CHECKING:
    from act.recipes.recipe import Needs, Recipe, Report, Run, Stage
    from act.recipes.schema import StageName


def command(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Check configurations, tokenizers, columns and coverage without weights, and print what a run takes.",
        ),
    ] = False,
    gpu_tflops: Annotated[
        float | None, typer.Option(min=1e-6, help="With --check: TFLOP/s of the GPU to plan for. Default: 400.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check the recipe and its inputs, and print the plan.")] = False,
    until: Annotated[
        str | None,
        typer.Option(help="Stop after the stage profile, rank, transfer, tune or evaluate; the output is not made."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the keys of a recipe, and stop.")] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Profile, rank, transfer, tune and evaluate as a recipe says; finished stages are not repeated."""
    if schema:
        return _print_schema(as_json)
    if recipe is None:
        raise ActError("no recipe was given; expected a YAML file, whose keys --schema prints")
    if gpu_tflops and not check:
        raise ActError("--gpu-tflops has no effect without --check; leave it out")
    if check + dry_run + (until is not None) > 1:
        raise ActError("give one of --check, --dry-run and --until")
    from act.recipes.recipe import Run, read_recipe

    console.quiet_transformers()
    described = read_recipe(recipe)
    if check:
        return _check(described, recipe, gpu_tflops, trust_remote_code, as_json)
    last = None if until is None else _stage(until)
    require_not_input(Path(described.output), [recipe])
    run = Run(
        described,
        lambda step: print(f"… {step}", file=sys.stderr),
        trust_remote_code=trust_remote_code,
    )
    if dry_run or last:
        return _print_plan(run, run.make(last) if last else run.plan(), as_json)
    report = run.execute(force=force)
    for note in report["moved"]["notes"]:
        console.warn(note)
    if as_json:
        return console.print_json({**report})
    return _print_report(report)


def _stage(name: str) -> StageName:
    from act.recipes.schema import StageName

    require_choice("the stage to stop after", name, get_args(StageName))
    return cast("StageName", name)


def _print_plan(run: Run, plan: list[Stage], as_json: bool) -> None:
    stages = str(run.cache.folder)
    if as_json:
        described = {"recipe": run.recipe.model_dump(), "key": run.key, "done": run.done(), "plan": plan}
        return console.print_json({**described, "stages": stages})
    rows = [[row["stage"], row["what"], "kept" if row["kept"] else "to do"] for row in plan]
    console.print_table(f"{run.output}: {'up to date' if run.done() else 'to make'}", ["stage", "of", ""], rows)
    if any(row["kept"] for row in plan):
        print(f"stages are kept in {stages}")


def _print_report(report: Report) -> None:
    from act.evaluation.significance import with_error

    moved = report["moved"]
    changes = {(row["after"], row["corpus"]): row for row in report["comparisons"]}
    rows = []
    for row in report["results"]:
        change = changes.get((row["model"], row["corpus"]))
        match = "" if row["match"] is None else f"{100 * row['match']:.1f}"
        p = "" if change is None or change["match_p"] is None else f"{change['match_p']:.3g}"
        rows.append([row["model"], row["corpus"], match, p, with_error(row["nll_per_token"], None, 3)])
    if rows:
        console.print_table("Figures", ["model", "corpus", "right, %", "p against target", "NLL per token"], rows)
    tasks = [
        [one["model"], one["task"], one["metric"], with_error(one["value"], one["se"], 3)] for one in report["tasks"]
    ]
    if tasks:
        console.print_table("Tasks of lm-evaluation-harness", ["model", "task", "metric", "value"], tasks)
    for donor in report["donors"]:
        print(f"{donor['channels']:,} channels of {donor['donor']} at strength {_strength(donor['strength'])}")
    print(f"{moved['values']:,} values of {moved['parameters']:,} parameters transferred")
    print(f"written to {report['output']}, with recipe.yaml and report.json")


def _strength(strength: float | dict[str, float]) -> str:
    """One number, or the number of each pattern."""
    if not isinstance(strength, dict):
        return f"{strength:g}"
    return ", ".join(f"{value:g} for {pattern}" for pattern, value in strength.items())


def _print_schema(as_json: bool) -> None:
    if as_json:
        from act.recipes.schema import Recipe

        return console.print_json(Recipe.model_json_schema())
    from act.recipes.reference import reference

    print(reference(), end="")


def _check(described: Recipe, path: Path, gpu_tflops: float | None, trust_remote_code: bool, as_json: bool) -> None:
    from act.recipes.recipe import check

    rate = {} if gpu_tflops is None else {"gpu_flops": gpu_tflops * 1e12}
    needs = check(described, trust_remote_code=trust_remote_code, **rate)
    for sentence in needs["unchecked"]:
        console.warn(sentence)
    if as_json:
        return console.print_json({**needs})
    _print_inputs(needs)
    _print_costs(needs, path)


def _print_inputs(needs: Needs) -> None:
    from act.profiles.coverage import percent

    models = [
        [one["model"], one["architecture"], f"{one['parameters']:,}", f"{one['channels']:,}", percent(one["coverage"])]
        for one in needs["models"]
    ]
    if models:
        columns = ["model", "class", "parameters", "channels", "of parameters"]
        console.print_table("Models, by their configuration", columns, models)
    corpora = [
        [
            one["corpus"],
            ", ".join(one["columns"]),
            _number(one["records"]),
            _number(one["tokens"]),
            _number(one["counted"]),
        ]
        for one in needs["corpora"]
    ]
    if corpora:
        console.print_table(
            "Corpora, by their first records", ["corpus", "columns", "records", "tokens", "counted"], corpora
        )


def _print_costs(needs: Needs, path: Path) -> None:
    rows = [
        [
            one["stage"],
            one["what"],
            _number(one["tokens"] or None),
            f"{one['seconds']:,.0f} s" if one["tokens"] else "",
            _size(one["memory"]),
            _size(one["disk"]),
        ]
        for one in needs["stages"]
    ]
    if rows:
        rows.append(["all", "", "", f"{needs['seconds']:,.0f} s", _size(needs["memory"]), _size(needs["disk"])])
        rate = needs["gpu_flops"] / 1e12
        columns = ["stage", "of", "tokens", f"on one GPU of {rate:g} TFLOP/s", "memory of a device", "disk"]
        console.print_table("What a run takes (the rate is an assumption)", columns, rows)
    if needs["download"]:
        print(f"{_size(needs['download'])} of weights are to be downloaded first")
    print(f"{path}: nothing is wrong{' with what could be checked' if needs['unchecked'] else ''}")


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _size(value: int) -> str:
    if not value:
        return ""
    return f"{value / 2**30:,.1f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"

"""``act-profile recipe``: the whole method from one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from act.cli import console, options
from act.cli.going_on import noted_at_the_end
from act.cli.progress import counter, step
from act.cli.tables import GUESSES, NLL, RIGHT, P, filled, guesses, print_tasks
from act.core.counted import counted
from act.core.errors import ActError, require_choice
from act.core.inputs import require_not_input
from act.core.places import last_parts
from act.core.units import duration, rate, size

SECONDS = 0.5

if TYPE_CHECKING:
    from act.evaluation.comparison import ComparisonSummary
    from act.recipes.recipe import Needs, Recipe, Report, Room, Run, Stage
    from act.recipes.schema import StageName
    from act.report.verdict import Verdict


WITH_CHECK = "Only with --check, the machine to plan for"
EXAMPLES = """
act-profile recipe --example > my.yaml
act-profile recipe my.yaml --check && act-profile recipe my.yaml
"""


def _example_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """With --example, the names that complete; else nothing, so that the shell completes the names of files."""
    from act.recipes.example import EXAMPLES

    return [name for name in EXAMPLES if name.startswith(incomplete)] if ctx.params.get("example") else []


def command(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            help="The recipe, a YAML file; with --example, recover, merge or sweep.", autocompletion=_example_names
        ),
    ] = None,
    example: Annotated[
        bool,
        typer.Option(
            "--example",
            help="Print a recipe to begin with, which runs as it is: recover (the default), merge or sweep. "
            "Redirect it: act-profile recipe --example > my.yaml",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Check configurations, tokenizers, columns and coverage without weights, and print what a run takes.",
        ),
    ] = False,
    gpu: Annotated[str | None, options.gpu(WITH_CHECK)] = None,
    gpu_tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            rich_help_panel=WITH_CHECK,
            help="TFLOP/s of one GPU during a forward. Default: 40 % of what is published of --gpu, or 400.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            rich_help_panel=WITH_CHECK,
            help="Length of the measurement on this machine; 0: none. Default: 0.5.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check the recipe and its inputs, and print the plan, and the room that it takes."
        ),
    ] = False,
    until: Annotated[
        str | None,
        options.choice(None, options.STAGES, "Stop after this stage; the output is not made."),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove the folder of the recipe's stages, OUTPUT.stages, and stop.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the keys of a recipe (with --json, for editors), and stop.")
    ] = False,
    push_to_hub: options.PushToHub = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Profile, rank, transfer, tune and evaluate as a recipe says; finished stages are not repeated.

    Begin with: act-profile recipe --example > my.yaml, then: act-profile recipe my.yaml
    """
    if schema:
        return _print_schema(as_json)
    if example:
        return _print_example(str(recipe or "recover"), as_json)
    if recipe is None:
        raise ActError("no recipe was given; expected a YAML file, such as --example prints")
    for name, given in (("gpu", gpu), ("gpu-tflops", gpu_tflops), ("seconds", seconds)):
        if given is not None and not check:
            raise ActError(f"--{name} has no effect without --check; leave it out")
    if check + dry_run + clean + (until is not None) > 1:
        raise ActError("give one of --check, --dry-run, --until and --clean")
    from act.editing import publishing
    from act.recipes.recipe import RESOLVED, Run, read_recipe, room_for

    console.quiet_transformers()
    described = read_recipe(recipe)
    for name in described.unread():
        console.warn(f"{recipe}: no section reads the corpus {name}")
    if check:
        flops = _flops(described, gpu, gpu_tflops)
        return _check(described, recipe, flops, SECONDS if seconds is None else seconds, trust_remote_code, as_json)
    if push_to_hub:
        if dry_run or clean or until:
            raise ActError("--push-to-hub has no effect without the whole run; leave it out")
        publishing.require_repository(push_to_hub)
    if clean:
        return _clean(described, as_json)
    last = None if until is None else _stage(until)
    if recipe.resolve() != (described.folder / RESOLVED).resolve():  # the recipe that a run has kept with its output
        require_not_input(described.folder, [recipe])
    with noted_at_the_end(lambda: _kept(described)), counter("recipe", as_json) as progress:
        run = Run(described, step, progress=progress, trust_remote_code=trust_remote_code)
        for warning in run.warnings:
            console.warn(warning)
        plan = run.make(last) if last else run.plan() if dry_run else None
        report = run.execute(force=force) if plan is None else None
    if plan is not None:
        return _print_plan(run, plan, room_for(described, trust_remote_code=trust_remote_code), as_json)
    assert report
    if push_to_hub:
        report_of_push = publishing.push(run.output, push_to_hub)
        print(f"pushed to {report_of_push}", file=sys.stderr)
    for note in report["moved"]["notes"]:
        console.warn(note)
    if as_json:
        return console.print_json({**report})
    _print_report(report, described)
    print(f"stages, for a run with something changed: {run.cache.folder} ({_size(run.room())}; see --clean)")


def _kept(described: Recipe) -> str:
    """What an interruption has left, and where."""
    from act.recipes.recipe import stages_of

    folder = stages_of(described)
    kept = f"what is done is kept in {folder}; the same command goes on there (--clean removes it)"
    return kept if folder.is_dir() else ""


def _print_example(name: str, as_json: bool) -> None:
    from act.recipes.example import EXAMPLES, example

    require_choice("the example", name, EXAMPLES)
    if as_json:
        return console.print_json({"example": name, "recipe": example(name)})
    print(example(name), end="")


def _clean(described: Recipe, as_json: bool) -> None:
    from act.recipes.recipe import clean, stages_of

    freed, folder = clean(described), str(stages_of(described))
    if as_json:
        return console.print_json({"removed": folder, "bytes": freed})
    print(f"removed {folder} ({_size(freed)})" if freed else f"there is nothing to remove: no {folder}")


def _stage(name: str) -> StageName:
    from act.recipes.schema import StageName

    require_choice("the stage to stop after", name, get_args(StageName))
    return cast("StageName", name)


def _print_plan(run: Run, plan: list[Stage], room: Room, as_json: bool) -> None:
    stages = str(run.cache.folder)
    if as_json:
        described = {"recipe": run.recipe.model_dump(), "key": run.key, "done": run.done(), "plan": plan}
        return console.print_json({**described, "stages": stages, "room": {**room, "now": run.room()}})
    rows = [[row["stage"], row["what"], "kept" if row["kept"] else "to do"] for row in plan]
    console.print_table(f"{run.output.name}: {'up to date' if run.done() else 'to make'}", ["stage", "of", ""], rows)
    more = f", and {_size(room['meanwhile'])} more while it tunes" if room["meanwhile"] else ""
    together = _size(room["models"])
    print(f"a donor is loaded beside the target, {together} together on device {run.recipe.device} (see --check)")
    print(f"the output takes about {_size(room['output'])}: {run.output}")
    print(f"the stages take about {_size(room['stages'])}, now {_size(run.room()) or 'nothing'}{more}: {stages}")


def _print_report(report: Report, described: Recipe) -> None:
    from act.evaluation.significance import with_error

    moved = report["moved"]
    against = {
        (row["before"], row["after"], row["corpus"]): row["nll_p"] if row["match_p"] is None else row["match_p"]
        for row in report["comparisons"]
    }
    for corpus in dict.fromkeys(row["corpus"] for row in report["results"]):
        rows = []
        for row in report["results"]:
            if row["corpus"] == corpus:
                name = row["model"]
                right = "" if row["match"] is None else with_error(100 * row["match"], _percent(row["match_se"]), 1)
                levels = [guesses(row["chance"], row["majority"])]
                nll = with_error(row["nll_per_token"], row["nll_per_token_se"], 3)
                act = "act + tune" if name.endswith(("+ tune", "tune only")) else "act"
                rows.append(
                    [
                        name,
                        right,
                        *levels,
                        nll,
                        _p(against.get(("target", name, corpus))),
                        _p(against.get((name, act, corpus))),
                    ]
                )
        columns = ["model", "right, %", GUESSES, "NLL per token", "p vs target", "p vs act"]
        console.print_table(f"{corpus}, ± standard error", *filled(columns, rows))
    if report["results"]:
        _print_legend([row["model"] for row in report["results"]], described)
    print_tasks(report["tasks"])
    for pair in report["comparisons"]:
        if pair["after"].startswith("act") and pair["before"] != "target" and (beaten := _beaten(pair)):
            print(f"{pair['before']} does better than {pair['after']} on {pair['corpus']} (p {beaten})")
    if swept := report["sweep"]:
        _print_sweep(swept, described)
    if report["results"] and (verdict := _verdict(report, described)):
        print("\n".join([verdict.headline, *verdict.advice]))
    several = len(described.donor) == len(report["donors"]) > 1
    abilities = [f" for {donor.corpus}" for donor in described.donor] if several else [""] * len(report["donors"])
    for donor, ability in zip(report["donors"], abilities, strict=True):
        name = Path(donor["donor"] or "").name
        print(f"{counted(donor['channels'], 'channel')} of {name}{ability} at strength {_strength(donor['strength'])}")
    print(f"transferred: {counted(moved['values'], 'value')} of {counted(moved['parameters'], 'parameter')}")
    print(f"written to {report['output']}, with recipe.yaml, report.json and the page {report['output']}/index.html")


def _verdict(report: Report, described: Recipe) -> Verdict | None:
    """What the page of a recipe says first."""
    from act.report.sources import results_of
    from act.report.verdict import verdict_on

    return verdict_on(results_of({**report}), described.score, swept=described.sweep is not None)


def _print_legend(models: list[str], described: Recipe) -> None:
    """What the rows and columns of the figures are."""
    share = described.evaluate.interpolation if described.evaluate else 0.0
    rows = {
        "target": "as it was",
        "act": f"with the channels of the donor{'s' * (len(described.donor) > 1)}",
        "random": "with as many others at random",
        "weight-diff": "with as many whose weights differ most",
        "interpolation": f"with all parameters moved by {share:g}",
        "tune only": "tuned without a transfer",
        **{f"donor {number}": Path(one.model).name for number, one in enumerate(described.donor, start=1)},
    }
    said = [f"{name}: {what}" for name, what in rows.items() if name in models]
    if any(name.endswith(" + tune") for name in models):
        said.append("+ tune: tuned afterwards, all in the same way")
    print("; ".join(said))
    tuned = any(name == "act + tune" for name in models)
    print(RIGHT)
    print(NLL)
    print(
        f"{P}, of a row against the target, and against act, the transfer"
        + tuned * " (of rows that are tuned, against act + tune)"
    )


def _beaten(row: ComparisonSummary) -> str:
    """The p-value, if what comes after is clearly worse than what came before."""
    judged = row["match_p"] is not None
    p = row["match_p"] if judged else row["nll_p"]
    worse = (row["match_difference"] or 0) < 0 if judged else (row["nll_per_token_difference"] or 0) > 0
    return _p(p) if worse and p is not None and p < 0.05 else ""


def _print_sweep(swept: dict[str, Any], described: Recipe) -> None:
    assert described.sweep
    rows = [
        [
            "chosen" if one == swept["chosen"] else "",
            f"{100 * one['top']:g}%",
            f"{one['strength']:g}",
            f"{one['channels']:,}",
            f"{100 * one['recovered']:.1f}",
            f"{100 * one['kept']:.1f}",  # 94.9 is not the 95 that must be left
        ]
        for one in swept["frontier"]
    ]
    ability, kept = described.sweep.corpus, " and ".join(described.sweep.kept)
    title = f"The frontier of {len(swept['candidates'])} shares and strengths: recovered of {ability}, kept of {kept}"
    console.print_table(title, ["", "top", "strength", "channels", "recovered, %", "kept, %"], rows)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _p(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _strength(strength: float | dict[str, float]) -> str:
    """One number, or the number of each pattern."""
    if not isinstance(strength, dict):
        return f"{strength:g}"
    return ", ".join(f"{value:g} for {pattern}" for pattern, value in strength.items())


def _print_schema(as_json: bool) -> None:
    from act.recipes.reference import reference, schema

    if as_json:
        return console.print_json(schema())
    print(reference(), end="")


def _check(
    described: Recipe, path: Path, flops: float | None, seconds: float, trust_remote_code: bool, as_json: bool
) -> None:
    from act.recipes.recipe import check

    rate = {} if flops is None else {"gpu_flops": flops}
    needs = check(described, seconds=seconds, trust_remote_code=trust_remote_code, **rate)
    for sentence in (*needs["warnings"], *needs["unchecked"]):
        console.warn(sentence)
    if as_json:
        return console.print_json({**needs})
    _print_inputs(needs)
    _print_costs(needs, path)


def _flops(described: Recipe, gpu: str | None, gpu_tflops: float | None) -> float | None:
    """The rate of the GPU to plan for; None: the usual assumption."""
    from act.profiling.accelerators import accelerator_named

    if gpu_tflops is not None:
        return gpu_tflops * 1e12
    return None if gpu is None else accelerator_named(gpu).flops(described.dtype)


def _print_inputs(needs: Needs) -> None:
    from act.profiles.coverage import percent

    called = last_parts([one["model"] for one in needs["models"]])
    models = [
        [
            called[one["model"]],
            one["architecture"],
            f"{one['parameters']:,}",
            f"{one['channels']:,}",
            percent(one["coverage"]),
        ]
        for one in needs["models"]
    ]
    if models:
        columns = ["model", "class", "parameters", "channels", "of parameters"]
        console.print_table("Models, by their configuration", columns, models)
    called = last_parts([one["corpus"] for one in needs["corpora"]])
    corpora = [
        [
            called[one["corpus"]],
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
    here = needs["here"]
    rows = [
        [
            f"{one['stage']} {one['what']}",
            _number(one["tokens"] or None),
            *([_seconds(one["seconds_here"] if one["tokens"] else None)] if here else []),
            _seconds(one["seconds"] if one["tokens"] else None),
            _size(one["memory"]),
            _size(one["disk"]),
        ]
        for one in needs["stages"]
    ]
    if rows:
        times = [*([_seconds(needs["seconds_here"])] if here else []), _seconds(needs["seconds"])]
        rows.append(["all", "", *times, _size(needs["memory"]), _size(needs["disk"])])
        columns = ["stage", "tokens", *(["here"] if here else []), "on a GPU", "memory", "disk"]
        console.print_table("What a run takes, each donor with its target, but for what models write", columns, rows)
        if here:
            speed = f"{here['tokens_per_second']:,.0f} tokens/s of a profiled forward, with random weights"
            print(f"here: on {here['device']}, where {speed}, were measured (--seconds)")
        print(
            f"on a GPU: one of {rate(needs['gpu_flops'])}, an assumption (--gpu, --gpu-tflops); memory: of the device"
        )
    if needs["download"]:
        print(f"{_size(needs['download'])} of weights are to be downloaded first")
    but = ", but the card will say what was warned of" if needs["warnings"] else ""
    print(f"{path}: nothing is wrong{' with what could be checked' if needs['unchecked'] else ''}{but}")


def _seconds(value: float | None) -> str:
    return "" if value is None else duration(value)


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _size(value: int) -> str:
    return size(value) if value else ""

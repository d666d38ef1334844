"""``act-profile recipe``: the whole method from one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from act.cli import console, options
from act.core.inputs import require_not_input


def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    dry_run: Annotated[bool, typer.Option(help="Check the recipe and its inputs, and print the plan.")] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Profile, rank, transfer, tune and evaluate as a recipe says; finished stages are not repeated."""
    from act.evaluation.significance import with_error
    from act.recipes.recipe import Run, read_recipe

    console.quiet_transformers()
    described = read_recipe(recipe)
    require_not_input(Path(described.output), [recipe])
    run = Run(
        described,
        lambda step: print(f"… {step}", file=sys.stderr),
        trust_remote_code=trust_remote_code,
    )
    if dry_run:
        plan = run.plan()
        if as_json:
            return console.print_json(
                {"recipe": run.recipe.model_dump(), "key": run.key, "done": run.done(), "plan": plan}
            )
        rows = [[row["stage"], row["what"], "kept" if row["kept"] else "to do"] for row in plan]
        console.print_table(f"{run.output}: {'up to date' if run.done() else 'to make'}", ["stage", "of", ""], rows)
        return None
    report = run.execute(force=force)
    moved = report["moved"]
    for note in moved["notes"]:
        console.warn(note)
    if as_json:
        return console.print_json({**report})
    changes = {(row["after"], row["corpus"]): row for row in report["comparisons"]}
    rows = []
    for row in report["results"]:
        change = changes.get((row["model"], row["corpus"]))
        match = "" if row["match"] is None else f"{100 * row['match']:.1f}"
        p = "" if change is None or change["match_p"] is None else f"{change['match_p']:.3g}"
        rows.append([row["model"], row["corpus"], match, p, with_error(row["nll_per_token"], None, 3)])
    if rows:
        console.print_table("Figures", ["model", "corpus", "right, %", "p against target", "NLL per token"], rows)
    for donor in report["donors"]:
        print(f"{donor['channels']:,} channels of {donor['donor']} at strength {_strength(donor['strength'])}")
    print(f"{moved['values']:,} values of {moved['parameters']:,} parameters transferred")
    print(f"written to {report['output']}, with recipe.yaml and report.json")


def _strength(strength: float | dict[str, float]) -> str:
    """One number, or the number of each pattern."""
    if not isinstance(strength, dict):
        return f"{strength:g}"
    return ", ".join(f"{value:g} for {pattern}" for pattern, value in strength.items())

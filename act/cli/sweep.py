"""``act-profile sweep``: compare shares and strengths of a transfer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from act.cli import console, options
from act.cli.grouped import with_options
from act.cli.progress import counter
from act.cli.ranking_options import RankingOptions
from act.cli.reading import Reading
from act.core.errors import require_choice
from act.core.files import reserve_output, written_whole

if TYPE_CHECKING:
    from torch import nn

    from act.evaluation.exercises import Metric
    from act.evaluation.sweep import Setting, Sweep


EXAMPLES = """
act-profile sweep german.safetensors --donor base/ --target specialist/ \\
    --corpus german=test-de.jsonl --keep maths=test-maths.jsonl \\
    --output sweep.json
act-profile sweep german.safetensors --donor base/ --target specialist/ \\
    --corpus test-de.jsonl --top 2% --top 5% --strength 0.4 --strength 1
"""


@with_options
def command(
    profile: Annotated[
        Path, typer.Argument(help="The pair profile, or what attribute made, by which channels are ranked.")
    ],
    donor: options.Donor,
    target: options.Target,
    corpus: options.Records,
    by: RankingOptions,
    reading: Reading,
    keep: options.RecordsToKeep = None,
    keep_profile: Annotated[
        list[Path] | None,
        typer.Option(help="Pair profile of an ability to retain: --keep of act-profile rank (repeatable)."),
    ] = None,
    top: Annotated[list[str] | None, typer.Option(help="A share of the channels, such as 5% (repeatable).")] = None,
    strength: Annotated[list[float] | None, typer.Option(help="A strength (repeatable).")] = None,
    control: Annotated[
        list[str] | None,
        options.choice(
            None, ("random", "weight-diff", "interpolation"), "Also try a simpler change, a control (repeatable)."
        ),
    ] = None,
    metric: options.Metric = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=options.OUTPUT,
            help="Also write rows and frontier to this JSON file, and a page beside it (see --report).",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--report",
            rich_help_panel=options.OUTPUT,
            help="Folder for the page (index.html). Default: that of --output, with -report.",
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Transfer each share at each strength in memory, evaluate, and revert; print all results and the frontier."""
    from act.editing.strength import warn_of_strength
    from act.evaluation.choice import figure, require_different
    from act.evaluation.evaluate import evaluate
    from act.evaluation.sweep import STRENGTHS, TOPS, Control, sweep, swept_control
    from act.models.loading import load_model
    from act.profiles.profile import load

    given = console.named([*corpus, *(keep or [])])
    places = [*given]
    kept = [*console.named(keep or [])]
    controls = list(dict.fromkeys(control or []))
    for name in controls:
        require_choice("the control", name, get_args(Control))
    for value in strength or ():
        warn_of_strength(value)
    inputs: list[str | Path] = [profile, donor, target, *given.values(), *(keep_profile or [])]
    if output:
        reserve_output(output, force, inputs)
        page = page or output.with_name(f"{output.stem}-report")
        inputs.append(output)
    if page:
        reserve_output(page, force, inputs)
    console.quiet_transformers()
    tokenizer = reading.tokenizer_of(target, trust_remote_code=trust_remote_code)
    texts = reading.open_all([*corpus, *(keep or [])], tokenizer)
    first, *others = texts.values()
    require_different(first, others)

    def judge(model: nn.Module) -> dict[str, float]:
        """The figure of each corpus."""
        return {
            place: figure(evaluate(model, text, cast("Metric", metric)))  # checked by evaluate
            for place, text in texts.items()
        }

    with counter("sweep", as_json) as progress:
        done: list[Setting] = []
        shares, steps = len(set(top or TOPS)), len(set(strength or STRENGTHS))
        total = 1 + sum(steps if name == "interpolation" else shares * steps for name in ["", *controls])

        def report(setting: Setting) -> None:
            done.append(setting)
            progress(f"top {setting.top:g}, strength {setting.strength:g}", len(done), total)

        grid = {**({"tops": top} if top else {}), **({"strengths": strength} if strength else {})}
        giving, taking = (
            load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            for name in (donor, target)
        )
        measured = load(profile)
        found = sweep(
            giving,
            taking,
            measured,
            judge,
            **grid,  # type: ignore[arg-type]
            report=report,
            keep=[load(path) for path in keep_profile] if keep_profile else None,
            **by.ranking,
        )
        parts = {
            key: value for key, value in by.ranking.items() if key in ("scope", "granularity", "include", "exclude")
        }
        tried = {
            name: swept_control(cast("Control", name), giving, taking, measured, judge, found, report=report, **parts)
            for name in controls
        }
    best = found.frontier
    result = {
        "rows": [row.to_json() for row in found.rows],
        "frontier": [row.to_json() for row in best],
        "controls": {name: [row.to_json() for row in one.rows] for name, one in tried.items()},
        "keep": kept,
    }
    if output:
        with written_whole(output, force=force) as path:
            path.write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    names = console.short_names(places)
    if page:
        _write_page({"act": found, **tried}, names, kept, page, force)
    if as_json:
        return console.print_json(result)
    columns = ["", "top", "strength", "channels", *names.values()]
    console.print_table("Sweep; *: no other setting is better", columns, _table(found, best))
    for name, one in tried.items():
        console.print_table(f"Control: {name}", columns, _table(one))
    print(page / "index.html" if page else "for a page of this, give --report FOLDER, or --output")


def _table(found: Sweep, best: Sequence[Setting] = ()) -> list[list[str]]:
    return [
        ["*" if row in best else "", f"{100 * row.top:g}%", f"{row.strength:g}", f"{row.channels:,}"]
        + [f"{value:.3f}" for value in row.figures.values()]
        for row in found.rows
    ]


def _write_page(
    found: Mapping[str, Sweep], names: Mapping[str, str], keep: Sequence[str], folder: Path, force: bool
) -> None:
    from act.evaluation.sweep import Setting
    from act.report.page import Page
    from act.report.write import write

    settings = {
        method: [
            Setting(row.top, row.strength, row.channels, {names[place]: value for place, value in row.figures.items()})
            for row in one.rows
        ]
        for method, one in found.items()
    }
    page = Page("Sweep", console.command_line(), settings=settings, keep=[names[place] for place in keep])
    write(None, folder, page=page, force=force)

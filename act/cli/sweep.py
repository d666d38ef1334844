"""``act-profile sweep``: compare shares and strengths of a transfer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from act.cli import console, next_step, options
from act.cli.going_on import evaluations_beside, going_on
from act.cli.grouped import with_options
from act.cli.mistakes import repeated, require_shares
from act.cli.progress import counter
from act.cli.ranking_options import RankingOptions, profiles_to_keep
from act.cli.reading import ReadingRecords
from act.core.errors import ActError, require_choice
from act.core.files import require_no_other_ending, reserve_output, written_whole
from act.core.places import last_parts

if TYPE_CHECKING:
    from torch import nn

    from act.evaluation.evaluate import Evaluation
    from act.evaluation.exercises import Metric
    from act.evaluation.sweep import Setting


EXAMPLES = """
act-profile sweep german.safetensors --donor base/ --target specialist/ \\
    --corpus german=test-de.jsonl --keep maths=test-maths.jsonl \\
    --output sweep.json
act-profile sweep german.safetensors --donor base/ --target specialist/ \\
    --corpus test-de.jsonl --top 2% --top 5% --strength 0.4 --strength 1 \\
    --control random --control weight-diff
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
    reading: ReadingRecords,
    keep: options.RecordsToKeep = None,
    keep_profile: Annotated[
        list[Path] | None,
        typer.Option(help="Pair profile of an ability to retain, by which act-profile rank spares it (repeatable)."),
    ] = None,
    top: Annotated[
        list[str] | None,
        typer.Option(help="A share of the channels to try (repeatable). Default: 1%, 2%, 5%, 10% and 20%."),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="How far to move them towards the donor (repeatable). Default: 0.2, 0.4, 0.7 and 1."),
    ] = None,
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
            help="Also write rows and frontier to this JSON file, which act-profile report reads, and a page beside it "
            "(see --report).",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--report",
            rich_help_panel=options.OUTPUT,
            help="Folder for the page (index.html), or a file that ends with .html. Default: that of --output, with "
            "-report.",
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Transfer each share at each strength in memory, evaluate, and revert; print every figure with its error.

    Recovered is the share of what the target lacks that comes back, kept what is left of what it has (--keep). No model
    is written. After an interruption, the same command continues, if it has an --output or a --report.
    """
    from act.cli.sweep_output import COLUMNS, Swept
    from act.editing.strength import require_strength, warn_of_strength
    from act.evaluation.choice import FEWEST, doubt_of_swap, figure, figure_error, require_different
    from act.evaluation.held_out import doubts
    from act.evaluation.sweep import STRENGTHS, TOPS, Control, sweep, swept_control
    from act.models.loading import load_model, require_plain_weights
    from act.models.quantised import NOT_MOVED
    from act.profiles.profile import load
    from act.profiling.dtype_speed import warn_of_half
    from act.ranking.scores import score_named
    from act.report.page import Page
    from act.report.write import page_at, require_report_name, write

    given = console.named(corpus, keep or [])
    places = [*given]
    if taken := next((name for name in given if name in COLUMNS), None):
        raise ActError(
            f"a text is named {taken}, which is what a sweep calls a column of its own; give it another name"
        )
    kept = [*console.named(keep or [])]
    controls = list(dict.fromkeys(control or []))
    for name in controls:
        if several := repeated("--control", name, get_args(Control)):
            raise ActError(f"the control is {name!r}{several}")
        require_choice("the control", name, get_args(Control))
    for value in strength or ():
        require_strength(value)
        warn_of_strength(value)
    require_shares(top)
    console.require_two_models(donor, target)
    inputs: list[str | Path] = [profile, donor, target, *given.values(), *(keep_profile or [])]
    console.require_models([donor, target])
    if output:
        reserve_output(output, force, inputs)
        require_no_other_ending(output, ".json")
        page = page or output.with_name(f"{output.stem}-report")
        inputs.append(output)
    if page:
        require_report_name(page)
        reserve_output(page, force, inputs)
    console.quiet_transformers()
    for name in (donor, target):
        require_plain_weights(name, NOT_MOVED, trust_remote_code=trust_remote_code)
    tokenizer = reading.tokenizer_of(target, trust_remote_code=trust_remote_code)
    opened = reading.open_all([*corpus, *(keep or [])], {target: tokenizer}, trust_remote_code=trust_remote_code)
    texts = opened[target]
    first, *others = texts.values()
    require_different(first, others)
    measured, sparing = load(profile), profiles_to_keep(keep_profile)
    doubtful = doubts([first, *others], [measured, *sparing], FEWEST)
    for doubt in doubtful:
        console.warn(doubt)

    latest: dict[str, Evaluation] = {}
    errors: dict[int, dict[str, float | None]] = {}
    given_by: dict[int, dict[str, Evaluation]] = {}

    def judge(model: nn.Module) -> dict[str, float]:
        """The figure of each corpus."""
        found = evaluations(model, texts.values(), cast("Metric", metric))  # checked by evaluate
        latest.update(zip(texts, found, strict=True))
        return {place: figure(one) for place, one in latest.items()}

    evaluations = evaluations_beside(output or page)
    with counter("sweep", as_json) as progress, going_on(evaluations):
        shares, steps = len(set(top or TOPS)), len(set(strength or STRENGTHS))
        total = 2 + sum(steps if name == "interpolation" else shares * steps for name in ["", *controls])
        before: dict[str, Evaluation] = {}

        def report(setting: Setting, control: str = "") -> None:
            errors[id(setting)] = {place: figure_error(one) for place, one in latest.items()}
            given_by[id(setting)] = {**latest}
            if not before:  # the unchanged target comes first
                before.update(latest)
            progress(f"{control}{100 * setting.top:g}% × {setting.strength:g}", len(errors), total)

        progress("the target", 0, total)
        grid = {**({"tops": top} if top else {}), **({"strengths": strength} if strength else {})}
        giving, taking = (
            load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            for name in (donor, target)
        )
        warn_of_half(taking)
        found = sweep(
            giving,
            taking,
            measured,
            judge,
            **grid,  # type: ignore[arg-type]
            report=report,
            keep=sparing or None,
            **by.ranking,
        )
        parts = {
            key: value for key, value in by.ranking.items() if key in ("scope", "granularity", "include", "exclude")
        }
        tried = {
            name: swept_control(
                cast("Control", name),
                *(giving, taking, measured, judge, found),
                report=partial(report, control=f"{name}, "),
                **parts,
            )
            for name in controls
        }
        judge(giving)
        progress("the donor", total, total)
    if swapped := doubt_of_swap(before[places[0]], latest[places[0]]):
        console.warn(swapped)
        doubtful = [*doubtful, swapped]
    swept = Swept(found, tried, before, latest, errors, last_parts(places), kept, given_by, doubtful, bool(by.score))
    result = swept.to_json()
    if output:
        with written_whole(output, force=force) as path:
            path.write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    if page:
        keeping = [swept.names[place] for place in kept]
        whole = Page(
            "Sweep",
            console.command_line(),
            settings=swept.settings,
            keep=keeping,
            keeping=swept.called | swept.called_recovering,
            doubts=doubtful,
        )
        write(None, page, page=whole, force=force)
    evaluations.remove()
    if as_json:
        return console.print_json(result)
    swept.print()
    if page:
        print(f"{page_at(page)}{f', and its figures in {output}' if output else ''}")
    else:
        print("for a page of this, give --report FOLDER, or --output")
    if best := swept.best:
        spared = {"keep-profile": keep_profile} if keep_profile else {}
        models = {"donor": donor, "target": target} if score_named(by.score or "paired").needs_models else {}
        ranking = next_step.options_of({**by.ranking, **spared, **models})
        next_step.after_sweep(profile, donor, target, best.top, best.strength, ranking)
    if output:
        next_step.after_figures(output, profile, others=bool(best))

"""``act-profile demo``: the whole method on small trained models that come with the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from act.cli import console, options
from act.cli.progress import step
from act.core.errors import ActError
from act.core.files import reserve_output

if TYPE_CHECKING:
    from act.lab.prose import Figures
    from act.report.page import Page

REPORT = Path("act-demo")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shown:
    """What a demo found: a page, plain data, and what people read in the terminal."""

    page: Page
    data: Mapping[str, Any]
    show: Callable[[], None]


EXAMPLES = """
act-profile demo
act-profile demo --language invented --report lost-german/
"""


def command(
    language: Annotated[
        str,
        options.choice(
            None,
            ("prose", "invented"),
            "Which German comes back: that of help pages, to a model of mathematics (prose), or that of a language of "
            "few words (invented).",
        ),
    ] = "prose",
    report: Annotated[
        Path,
        typer.Option(
            rich_help_panel=options.OUTPUT,
            help="Folder for the page (index.html) and its tables, or a file that ends with .html: the page alone (the "
            "default folder is replaced).",
        ),
    ] = REPORT,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Restore a language that a small model has forgotten, and compare with controls; in a minute or two."""
    demos = {"prose": _prose, "invented": _invented}
    if language not in demos:
        raise ActError(
            f"language is {language!r}; expected prose (German help pages, forgotten by a model of mathematics) or "
            "invented (the German of a language of few words)"
        )
    console.quiet_transformers()
    from act.report.write import page_at, require_report_name, write

    force = force or report == REPORT
    require_report_name(report)
    reserve_output(report, force)
    found = demos[language](step)

    write(found.page.report, report, page=found.page, force=force)
    if as_json:
        return console.print_json({**found.data, "report": str(page_at(report))})
    found.show()
    if verdict := found.page.verdict:
        print(verdict.headline)
    print(f"{found.data['seconds']:.0f} s; look at the report, in a browser: {page_at(report)}")


def _prose(say: Say) -> Shown:
    from act.evaluation.kept import KEPT
    from act.lab import prose
    from act.lab.pages import of_prose

    result = prose.run(say)
    ours = result.methods[prose.OURS]
    finders = {name: result.methods[name] for name in prose.FINDERS}
    controls = {name: method for name, method in result.methods.items() if name not in finders}
    names = {
        "attribution": "ours: attribution (gradients)",
        "match-contrast": "ours: match-contrast",
        "match": "ours: match",
        "paired": "the paper's: paired",
        **{name: f"control: {name}" for name in controls},
    }

    def show() -> None:
        for ability, written in result.written.items():
            print(f"{ability.capitalize()}: {_line(written.prompt)} …")
            for name, text in written.by_model.items():
                print(f"  {name:6} … {_line(text)}")
        rows = [["target: the specialist", "-", *_cells(result.before)]]
        rows += [[names[name], f"{one.share:.0%}", *_cells(one.figures)] for name, one in result.methods.items()]
        rows += [["donor: its base", "-", *_cells(result.donor)]]
        console.print_table(
            f"Shares of bits per byte on {result.texts} test texts of each, ± standard error",
            ["", "moved", "German recovered", "mathematics kept"],
            rows,
        )
        print(f"moved: share of the channels (interpolation: of the way to the donor) that keeps {KEPT:.0%} on")
        print("validation texts. Models this small write broken sentences; the bits tell what they know.")

    data = {
        "language": "prose",
        "before": _shares(result.before),
        "after": _shares(ours.figures),
        "donor": _shares(result.donor),
        "finders": {name: _shares(method.figures) for name, method in finders.items()},
        "controls": {name: _shares(method.figures) for name, method in controls.items()},
        "moved": {name: method.share for name, method in result.methods.items()},
        "errors": {name: _errors(method.figures) for name, method in result.methods.items()},
        "bits_per_byte": {"before": result.before.bits, "after": ours.figures.bits, "donor": result.donor.bits},
        "written": {
            ability: {"prompt": written.prompt, **written.by_model} for ability, written in result.written.items()
        },
        "texts": result.texts,
        "seconds": result.seconds,
    }
    return Shown(of_prose(result, console.command_line()), data, show)


def _cells(figures: Figures) -> list[str]:
    return [str(figures.recovered), str(figures.kept)]


def _shares(figures: Figures) -> dict[str, float]:
    """Both shares from 0 to 1, by what they are of."""
    shares = {"forgotten": figures.recovered.value, "retained": figures.kept.value}
    return {name: min(1.0, max(0.0, share)) for name, share in shares.items()}


def _errors(figures: Figures) -> dict[str, float]:
    return {"forgotten": figures.recovered.error, "retained": figures.kept.error}


def _line(text: str) -> str:
    return " ".join(text.split())


def _invented(say: Say) -> Shown:
    from act.lab import demo
    from act.lab.pages import of_invented

    result = demo.run(say)
    models = {
        "target": "target: forgot German",
        "act": "after the transfer",
        "donor": "donor: its base",
        "random": "control: random channels",
        "weight-diff": "control: weight-diff channels",
        "interpolation": f"control: interpolation by {demo.INTERPOLATION:.0%}",
    }
    figures = {name: result.figures(name) for name in models}

    def show() -> None:
        console.print_table(
            f"Exact match on {demo.TEST_RECORDS} test records of each, %",
            ["", "forgotten (German)", "kept (English)"],
            [
                [heading, *(f"{100 * share:.1f}" for share in figures[name].values())]
                for name, heading in models.items()
            ],
        )
        chosen, channels = len(result.moved["act"]), len(result.pair.space)
        print(f"{chosen:,} of {channels:,} channels transferred, and as many in each control by channels.")

    data = {
        "before": figures["target"],
        "after": figures["act"],
        "donor": figures["donor"],
        "controls": {name: figures[name] for name in ("random", "weight-diff", "interpolation")},
        "seconds": result.seconds,
    }
    return Shown(of_invented(result, console.command_line()), data, show)

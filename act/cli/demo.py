"""``act-profile demo``: the whole method on small trained models that come with the package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from act.cli import console, options
from act.core.errors import require_choice
from act.core.files import reserve_output

if TYPE_CHECKING:
    from act.lab.prose import Figures
    from act.ranking.channel_set import ChannelSet

PICTURE = Path("act-demo.png")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shown:
    """What a demo found: the channels that it moved and their share, plain data, and what people read."""

    channels: ChannelSet
    share: float
    data: Mapping[str, Any]
    show: Callable[[], None]


def command(
    language: Annotated[
        str, typer.Option(help="prose: German help pages against mathematics; invented: a language of few words.")
    ] = "prose",
    picture: Annotated[
        Path, typer.Option(help="Where to save the map of the ability (the default file is replaced).")
    ] = PICTURE,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Restore a language that a small model has forgotten, and compare with controls; in a minute or two."""
    from act.report.pictures import draw_channel_map

    demos = {"prose": _prose, "invented": _invented}
    require_choice("language", language, demos)
    console.quiet_transformers()
    force = force or picture == PICTURE
    reserve_output(picture, force)
    found = demos[language](lambda step: print(f"… {step}", file=sys.stderr))
    title = f"Where German lives: {found.share:.0%} of all channels, by layer and module"
    draw_channel_map(found.channels, picture, title, force=force)
    if as_json:
        return console.print_json({**found.data, "picture": str(picture)})
    found.show()
    print(f"{found.data['seconds']:.0f} s; map of the chosen channels: {picture}")


def _prose(say: Say) -> Shown:
    from act.lab import prose
    from act.lab.frontier import KEPT

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
    return Shown(result.channels, ours.share, data, show)


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

    result = demo.run(say)
    models = {
        "target: forgot German": result.before,
        "after the transfer": result.after,
        "donor: its base": result.donor,
        "control: random channels": result.controls["random"],
        "control: weight-diff channels": result.controls["weight-diff"],
        f"control: interpolation by {demo.INTERPOLATION:.0%}": result.controls["interpolation"],
    }

    def show() -> None:
        console.print_table(
            f"Exact match on {demo.TEST_RECORDS} test records of each, %",
            ["", "forgotten (German)", "retained (English)"],
            [[name, *(f"{100 * figures[ability]:.1f}" for ability in figures)] for name, figures in models.items()],
        )
        chosen, channels = len(result.channels), len(result.channels.space)
        print(f"{chosen} of {channels:,} channels transferred, and as many in each control by channels.")

    data = {name: getattr(result, name) for name in ("before", "after", "donor", "controls", "seconds")}
    return Shown(result.channels, demo.TOP, data, show)

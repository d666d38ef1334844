"""``act-profile run``: profile one model."""

from __future__ import annotations

from typing import Annotated

import typer

from act.cli.grouped import with_options
from act.cli.measuring import Measuring
from act.cli.measuring_options import MeasuringOptions


@with_options
def command(
    model: Annotated[str, typer.Option(help="Folder in Hugging Face format, or hub id.")], options: MeasuringOptions
) -> None:
    """Profile one model: the statistics of every channel over the counted tokens of a corpus."""
    Measuring({"model": model}, options).run()

"""``act-profile pair``: profile a donor and a target on the same tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from act.cli.grouped import with_options
from act.cli.measuring import Measuring
from act.cli.measuring_options import PairOptions


@with_options
def command(
    donor: Annotated[str, typer.Option(help="The model that has the ability.")],
    target: Annotated[str, typer.Option(help="The model that lacks it.")],
    options: PairOptions,
) -> None:
    """Profile donor and target in lockstep: the statistics of both models and of their difference.

    With --swap, the donor's modules are also applied to the target's own inputs, for the scores match and
    match-contrast.
    """
    Measuring({"donor": donor, "target": target}, options).run()

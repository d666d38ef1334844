"""What ``sweep`` and ``transfer --auto`` keep while they run, so that they go on after an interruption."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from act.cli import console
from act.cli.signals import Terminated
from act.core.counted import counted
from act.core.errors import ActError
from act.core.scratch import companion

if TYPE_CHECKING:
    from act.evaluation.evaluations import Evaluations


def evaluations_beside(output: Path | None) -> Evaluations:
    """The evaluations that are kept in a hidden folder beside an output, until it is written; without one, nowhere."""
    from act.evaluation.evaluations import Evaluations

    return Evaluations(output and companion(output.absolute().parent / f".{output.name}", ".evaluations"))


@contextlib.contextmanager
def going_on(evaluations: Evaluations) -> Iterator[None]:
    """Say what an earlier run has kept and, if the block is interrupted or refuses to go on, what this one has."""
    if evaluations.kept:
        console.note(f"going on from {counted(evaluations.kept, 'evaluation')} that an earlier run has kept")
    try:
        yield
    except (KeyboardInterrupt, Terminated, ActError) as end:
        if evaluations.kept:
            console.note(f"{counted(evaluations.kept, 'evaluation')} kept: the same command goes on from there")
        elif evaluations.folder is None and not isinstance(end, ActError):
            console.note("no evaluation is kept: only with an --output or a --report does the same command go on")
        raise

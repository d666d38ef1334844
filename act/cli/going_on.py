"""What commands keep while they run, so that they go on after an interruption, and how that is said."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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

    return Evaluations(output and companion(output, ".evaluations", hidden=True))


@contextlib.contextmanager
def noted_at_the_end(kept: Callable[[], str], *others: type[BaseException]) -> Iterator[None]:
    """If the block is interrupted, or ends by one of the ``others``, note what is kept by then, if anything is."""
    ends: tuple[type[BaseException], ...] = (KeyboardInterrupt, Terminated, *others)
    try:
        yield
    except ends:
        if said := kept():
            console.note(said)
        raise


def going_on(evaluations: Evaluations) -> contextlib.AbstractContextManager[None]:
    """Say what an earlier run has kept and, if the block is interrupted or refuses to go on, what this one has."""
    if evaluations.folder is None:
        said = "no evaluation is kept: only with an --output or a --report does the same command go on"
        return noted_at_the_end(lambda: said)
    if evaluations.kept:
        console.note(f"going on from {_counted(evaluations)} that an earlier run has kept")
    kept = "kept: the same command goes on from there"
    return noted_at_the_end(lambda: f"{_counted(evaluations)} {kept}" if evaluations.kept else "", ActError)


def _counted(evaluations: Evaluations) -> str:
    return counted(evaluations.kept, "evaluation")

"""The progress of work: a bar on a terminal; elsewhere a line every ten seconds, which the log file has in any case."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from act.cli import console
from act.cli.logs import Lines
from act.core.counted import counted
from act.core.progress import Progress as Report
from act.core.units import duration
from act.profiling.observer import Observer

if TYPE_CHECKING:
    from act.data.batching import Batch
    from act.profiling.job import Job
    from act.profiling.run import Run
    from act.profiling.until_stable import UntilStable

log = logging.getLogger(__name__)


@contextlib.contextmanager
def counter(what: str, as_json: bool = False) -> Iterator[Report]:
    """Draw a bar, or print lines, of what the block reports.

    Args:
        what: what is being done.
        as_json: print the lines as JSON.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console, lines = Console(stderr=True), Lines(as_json)
    begun, last = (time.monotonic(), 0), (0, 0)  # when this piece of work began, at how many; the latest report
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=console, disable=not console.is_terminal, transient=True)
    with contextlib.nullcontext() if bar.disable else bar:  # rich before 15 ends a disabled bar by a line
        task = bar.add_task(what, total=None)

        def report(doing: str, done: int, total: int) -> None:
            nonlocal begun, last
            if done <= last[0] or total != last[1]:  # another piece of work
                begun = time.monotonic(), done
            last = done, total
            bar.update(task, description=f"{what}: {doing}", completed=done, total=total or None)
            if lines.due():
                seconds, steps = time.monotonic() - begun[0], done - begun[1]
                left = (total - done) * seconds / steps if steps and total else None
                fields = {"doing": f"{what}: {doing}", "done": done, "total": total or None, "seconds": round(seconds)}
                lines.write(
                    f"{what}: {doing}, {done:,}{f' of {total:,}' if total else ''}"
                    f"{'' if left is None else f', {duration(left)} left'}",
                    {**fields, "seconds_left": None if left is None else round(left, 1)},
                )

        yield report


def step(what: str) -> None:
    """Say what is done next, on stderr and in the log."""
    print(f"… {what}", file=sys.stderr, flush=True)


class Progress(Observer, contextlib.AbstractContextManager["Progress"]):
    """Shows the progress of a run: a bar on a terminal, or a line every ten seconds.

    Args:
        as_json: print these lines as JSON.
        until: the observer that measures how stable the top set is, if there is one.
    """

    def __init__(self, as_json: bool, until: UntilStable | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        console = Console(stderr=True)
        whole = Column(no_wrap=True)  # on a narrow terminal, only the text column wraps
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20, table_column=whole),
            TextColumn("{task.fields[text]}", table_column=Column()),
            TimeElapsedColumn(table_column=whole),
            TimeRemainingColumn(table_column=whole),
        )
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("profiling", total=None, text="")
        self._lines = Lines(as_json)
        self._records: int | None = None
        self._before = 0.0, 0
        self._until = until

    @property
    def stability(self) -> float | None:
        """The certain share of the top set; None before the first check."""
        return self._until.stability if self._until else None

    def prepare(self, job: Job) -> None:
        """Store the number of records that the run will read."""
        self._records = job.records

    def __enter__(self) -> Progress:
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._bar.disable:
            self._bar.stop()

    def before_run(self, run: Run) -> None:
        """Store where a resumed run begins."""
        self._before = run.seconds, run.total.tokens
        if run.total.tokens:
            console.note(f"going on from the checkpoint, after {counted(run.total.tokens, 'token')}")
        self._bar.update(self._task, total=self._records, completed=run.total.records)

    def after_batch(self, run: Run, batch: Batch) -> None:
        """Update the bar, and write a line if one is due."""
        line = self.measured(run)
        stable = "" if self.stability is None else f", top set {self.stability:.1%} stable"
        computed = "" if line["computed"] == line["tokens"] else f" ({line['computed']:,} computed)"
        text = (
            f"{line['counted']:,} counted of {line['tokens']:,} tokens{computed}, "
            f"{line['tokens_per_second']:,.0f} tokens/s, "
            f"{line['padding_share']:.1%} padding{stable}"
        )
        self._bar.update(self._task, completed=line["records"], text=text)
        if self._lines.due():
            records = f"{line['records']:,}{f' of {self._records:,}' if self._records else ''} records"
            left = "" if line["seconds_left"] is None else f", {duration(line['seconds_left'])} left"
            self._lines.write(f"profiling: {records}, {text}{left}", line)

    def after_run(self, run: Run) -> None:
        """Log the final state of the run."""
        log.info("finished", extra={"fields": self.measured(run)})

    def measured(self, run: Run) -> dict[str, Any]:
        """The state of the run as plain data."""
        seen = run.total
        seconds, tokens = self._before
        elapsed = run.seconds - seconds
        left = None
        if self._records and seen.records:
            left = max(0.0, run.seconds / seen.records * (self._records - seen.records))
        return {
            "records": seen.records,
            "tokens": seen.tokens,
            "computed": seen.tokens - seen.shared,
            "counted": seen.counted,
            "tokens_per_second": round((seen.tokens - tokens) / max(elapsed, 1e-9), 1),
            "padding_share": round(seen.padding / max(seen.padding + seen.tokens - seen.shared, 1), 4),
            "busy_share": round(1 - run.waited / max(run.seconds, 1e-9), 4),
            "seconds": round(run.seconds, 3),
            "seconds_left": None if left is None else round(left, 1),
            "stability": self.stability,
        }

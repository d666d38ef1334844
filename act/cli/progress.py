"""The progress of a run: a bar on a terminal, JSON lines on stderr, and the log file."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.core.errors import ActError
from act.profiling.observer import Observer

if TYPE_CHECKING:
    from act.data.batching import Batch
    from act.profiling.job import Job
    from act.profiling.run import Run
    from act.profiling.until_stable import UntilStable

LINE_EVERY = 10.0  # seconds between lines of progress

log = logging.getLogger(__name__)


class Progress(Observer, contextlib.AbstractContextManager["Progress"]):
    """Shows the progress of a run: a bar on a terminal, and a line every ten seconds in the log.

    Args:
        as_json: write these lines also to stderr, as JSON, if that is not a terminal.
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
        self._lines = as_json and not console.is_terminal
        self._last = time.monotonic()
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
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def before_run(self, run: Run) -> None:
        """Store where a resumed run begins."""
        self._before = run.seconds, run.total.tokens
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
        if time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            log.info("progress", extra={"fields": line})
            if self._lines:
                print(json.dumps({"event": "progress", **line}), file=sys.stderr, flush=True)

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


class Log(contextlib.AbstractContextManager[None]):
    """Handles the package's log during the block: warnings go to stderr, and everything to a file, if given."""

    def __init__(self, path: Path | None) -> None:
        self._logger = logging.getLogger("act")
        stderr = logging.StreamHandler(sys.stderr)
        stderr.setLevel(logging.WARNING)
        stderr.setFormatter(logging.Formatter("warning: %(message)s"))
        self._handlers: list[logging.Handler] = [stderr]
        if path:
            try:
                file = logging.FileHandler(path, encoding="utf-8")
            except OSError as error:
                raise ActError(f"cannot write the log {path}: {error.strerror}; choose another file") from error
            file.setFormatter(JsonLines())
            self._handlers.append(file)

    def __enter__(self) -> None:
        self._before = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        for handler in self._handlers:
            self._logger.addHandler(handler)

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._logger.info("ended", extra={"fields": {"error": str(error) or kind.__name__}})
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()
        level, self._logger.propagate = self._before
        self._logger.setLevel(level)


class JsonLines(logging.Formatter):
    """Formats each log record as one JSON object: time, level, event, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields = getattr(record, "fields", {})
        return json.dumps({"time": moment, "level": record.levelname.lower(), "event": record.getMessage(), **fields})

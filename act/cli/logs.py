"""What a command says while it works: warnings and lines of progress on stderr, and all of it in the file of --log."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from act.core.errors import ActError, require_choice

LEVELS = ("debug", "info", "warning", "error")
LINE_EVERY = 10.0  # seconds between lines of progress

_ours = logging.getLogger("act")


@contextlib.contextmanager
def to_stderr(level: str) -> Iterator[None]:
    """Print what the package logs from a level on, as ``warning: …``, during the block."""
    require_choice("log level", level, LEVELS)
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level.upper())
    handler.setFormatter(_Sentences())
    handler.addFilter(lambda record: level == "debug" or _is_for_people(record))
    before = _ours.level, _ours.propagate
    _ours.setLevel(level.upper())
    _ours.propagate = False
    with _handled_by(handler):
        try:
            yield
        finally:
            level_before, _ours.propagate = before
            _ours.setLevel(level_before)


@contextlib.contextmanager
def to_file(path: Path | None) -> Iterator[None]:
    """Append everything that is logged during the block to a file, as JSON lines; with its end, if that is an error."""
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ActError(f"cannot write the log {path}: {error.strerror}; choose another file") from error
    handler.setFormatter(JsonLines())
    before = _ours.level
    _ours.setLevel(min(before or logging.INFO, logging.INFO))
    with contextlib.closing(handler), _handled_by(handler):
        try:
            yield
        except BaseException as error:
            _ours.info("ended", extra={"fields": {"error": str(error) or type(error).__name__}})
            raise
        finally:
            _ours.setLevel(before)


def _is_for_people(record: logging.LogRecord) -> bool:
    """Whether a record is a warning, or a note of a command; the rest is for the log file."""
    return record.levelno > logging.INFO or (record.name.startswith("act.cli") and not hasattr(record, "fields"))


@contextlib.contextmanager
def _handled_by(handler: logging.Handler) -> Iterator[None]:
    _ours.addHandler(handler)
    try:
        yield
    finally:
        _ours.removeHandler(handler)


class Lines:
    """Lines of progress where no bar can be drawn, one every ten seconds: text, or JSON for machines."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        said = any(type(each) is logging.StreamHandler and each.level <= logging.INFO for each in _ours.handlers)
        self.wanted = said and not sys.stderr.isatty()
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether ten seconds have passed since the last line."""
        if time.monotonic() - self._last < LINE_EVERY:
            return False
        self._last = time.monotonic()
        return True

    def write(self, text: str, fields: dict[str, Any]) -> None:
        """Log the ``fields`` as progress, and print them, or the ``text``, where no bar is drawn."""
        logging.getLogger(__name__).info("progress", extra={"fields": fields})
        if self.wanted:
            print(json.dumps({"event": "progress", **fields}) if self._json else text, file=sys.stderr, flush=True)


class JsonLines(logging.Formatter):
    """Formats each log record as one JSON object: time, level, event, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields = getattr(record, "fields", {})
        return json.dumps({"time": moment, "level": record.levelname.lower(), "event": record.getMessage(), **fields})


class _Sentences(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        return f"{record.levelname.lower()}: {record.getMessage()}{fields}"


def with_level(command: Callable[..., None], option: Any) -> Callable[..., None]:
    """A command with the option ``--log-level``, by which its work is logged on stderr."""
    hints = inspect.get_annotations(command, eval_str=True)  # typing's would hide an option that may be None in 3.10
    own = inspect.signature(command).parameters.values()

    @functools.wraps(command)
    def logged(log_level: str = "info", **given: Any) -> None:
        with to_stderr(log_level):
            command(**given)

    level = inspect.Parameter("log_level", inspect.Parameter.KEYWORD_ONLY, default="info", annotation=option)
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name]) for each in own]
    logged.__signature__ = inspect.Signature([*parameters, level])  # type: ignore[attr-defined]
    logged.__annotations__ = {**{name: hint for name, hint in hints.items() if name != "return"}, "log_level": option}
    return logged

"""Checkpoints: the state of a run on disk, so that whatever ends it, the same command goes on to the same bits."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from act.core.differences import first_difference
from act.core.errors import ActError, BadRecord, Interrupted
from act.core.tensor_files import load_tensors, save_tensors, understood
from act.data.batching import Batch, Position
from act.data.stream import Skipped, Stream
from act.profiling.run import Observer, Run, Seen

log = logging.getLogger(__name__)

SCHEMA = "act-checkpoint/1"
EVERY = 60.0  # seconds


class Checkpoint:
    """Keeps a run on disk: every so many seconds, at Ctrl-C or SIGTERM, and before an error ends it.

    Args:
        path: the file; a run that finds it there goes on from it.
        every: seconds between two writings.
        restart: leave a checkpoint that is damaged or of another run aside instead of refusing it.
    """

    def __init__(self, path: str | Path, every: float = EVERY, restart: bool = False) -> None:
        self.path = Path(path)
        self._every, self._restart = every, restart
        self._identity: dict[str, Any] = {}
        self._written = 0.0
        self._safe: Position | None = None
        self._safe_tokens = 0
        self._closed = False
        self._signal: int | None = None

    def open(self, run: Run, stream: Stream, identity: dict[str, Any]) -> None:
        """Put run and stream where the checkpoint left them, if there is one.

        Raises:
            ActError: it is damaged, or of another run.
        """
        self._identity = identity
        if not self.path.exists():
            return
        try:
            tensors, header = load_tensors(self.path, SCHEMA)
            with understood(self.path):
                different = first_difference(header["identity"], identity)
                position = Position(*header["position"])
                seen = {ability: Seen(**each) for ability, each in header["seen"].items()}
                arenas = {ability: tensors[f"moments.{ability}"] for ability in seen}
                skipped = [Skipped(*each) for each in header["skipped"]]
                times, stopped = (header["seconds"], header["waited"], header["max_tokens"]), set(header["stopped"])
        except ActError as error:
            damaged = str(error).rpartition(";")[0]
            if self._restart:
                log.warning("%s, so the run starts anew", damaged)
                return
            raise ActError(
                f"{damaged}, so the run cannot go on from it; delete it, or pass --force, to start anew"
            ) from error
        if different:
            if self._restart:
                return
            raise ActError(
                f"{self.path} is the checkpoint of another run ({different}); finish that run with its own command, or "
                "delete the file to start anew"
            )
        for ability, arena in arenas.items():
            run.begin(ability)
            run.seen[ability] = seen[ability]
            with torch.inference_mode(False):
                run.moments[ability].fill(arena)
        run.position = self._safe = stream.start = position
        run.seconds, run.waited, run.max_tokens = times
        stream.stopped |= stopped
        stream.skipped[:] = skipped
        self._safe_tokens = run.total.tokens
        for number, observer in enumerate(run.observers):
            prefix = f"observers.{number}."
            observer.restore({name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)})
        log.info("resumed", extra={"fields": {"path": str(self.path), "tokens": run.total.tokens}})

    @contextlib.contextmanager
    def keeping(self, run: Run, stream: Stream) -> Iterator[None]:
        """Watch over a run during the block.

        Raises:
            Interrupted: after SIGINT or SIGTERM, with the checkpoint written.
            ActError: the one that ended the run, with where its state is.
        """
        writer = _Writer(self, stream)
        run.observers.append(writer)
        self._written = time.monotonic()
        try:
            with self._signals():
                yield
        except Interrupted:
            raise
        except ActError as error:
            if run.position is None:
                raise
            self.write(run, stream)
            hint = " (a bad record can be left out with --skip-bad-records)" if isinstance(error, BadRecord) else ""
            raise type(error)(f"{error}; {self.kept}{hint}") from error
        finally:
            run.observers.remove(writer)

    @property
    def kept(self) -> str:
        """What is safe on disk and how to go on, to end a sentence with."""
        if self._safe is None:
            return "there is no checkpoint, so the same command starts anew"
        return (
            f"what came before ({self._safe_tokens:,} tokens) was counted and is safe in {self.path}: "
            "the same command goes on from there"
        )

    def close(self, run: Run, stream: Stream) -> None:
        """Write the state of a run that has read all it will; whatever happens to its moments then is not written."""
        self.write(run, stream)
        self._closed = True

    def write(self, run: Run, stream: Stream) -> bool:
        """Write the state of the run; False, with a warning, if that fails: the run itself can go on."""
        self._written = time.monotonic()
        if self._closed or run.position is None or run.position == self._safe:
            return run.position is not None and run.position == self._safe
        at = run.position
        header = {
            "identity": self._identity,
            "position": at,
            "seen": {ability: asdict(seen) for ability, seen in run.seen.items()},
            "seconds": run.seconds,
            "waited": run.waited,
            "max_tokens": run.max_tokens,
            "stopped": sorted(stream.stopped),
            "skipped": stream.skipped_before(at),
        }
        tensors = {f"moments.{ability}": moments.arena.cpu() for ability, moments in run.moments.items()}
        for number, observer in enumerate(run.observers):
            tensors.update({f"observers.{number}.{name}": x for name, x in observer.state().items()})
        try:
            save_tensors(self.path, tensors, SCHEMA, header, force=True)
        except (ActError, OSError) as error:
            kept = "an earlier one is still there" if self.path.exists() else "there is none yet"
            log.warning("the checkpoint could not be written (%s); %s, and the run goes on", error, kept)
            return False
        self._safe, self._safe_tokens = at, run.total.tokens
        log.info("checkpoint", extra={"fields": {"path": str(self.path), "tokens": run.total.tokens}})
        return True

    def remove(self) -> None:
        """Delete the file: the run has ended and its profile is on disk."""
        self.path.unlink(missing_ok=True)

    def after_batch(self, run: Run, stream: Stream) -> None:
        """Write if it is time; end the run if a signal asked for it."""
        if self._signal is not None:
            if not self.write(run, stream):
                raise Interrupted(f"interrupted after {run.total.tokens:,} tokens; {self.kept}")
            raise Interrupted(
                f"interrupted after {run.total.tokens:,} tokens, which are safe in {self.path}; "
                "run the same command to go on from there"
            )
        if time.monotonic() - self._written >= self._every:
            self.write(run, stream)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the batch under way end before SIGINT and SIGTERM take effect; a second one takes effect at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            self._signal = number
            for each, handler in before.items():
                signal.signal(each, handler)

        before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


class _Writer(Observer):
    """The last observer of a run, so that it sees what the others did."""

    def __init__(self, checkpoint: Checkpoint, stream: Stream) -> None:
        self._checkpoint, self._stream = checkpoint, stream

    def after_batch(self, run: Run, batch: Batch) -> None:
        self._checkpoint.after_batch(run, self._stream)

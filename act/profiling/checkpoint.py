"""Checkpoints: the state of a run on disk, from which the same command continues to the same bits."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter

from act.core.errors import ActError, BadRecord, Interrupted, option
from act.core.held_signals import Held, held_signals
from act.core.names import require_name
from act.core.plain import checked
from act.core.scratch import clear
from act.core.tensor_files import load_tensors, save_tensors, understood
from act.data.batching import Batch, Position
from act.data.stream import Stream
from act.profiling.defaults import CHECKPOINT_EVERY
from act.profiling.identity import difference, known_of
from act.profiling.observer import Observer
from act.profiling.run import Run

log = logging.getLogger(__name__)

SCHEMA = "act-checkpoint/3"
_STATES = TypeAdapter(dict[str, dict[str, Any]])


class Resumable(Protocol):
    """What a checkpoint keeps the state of: a run, its stream and its observers."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain data that JSON can hold, by name."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        ...


class Checkpoint:
    """Keeps the state of a run on disk: at intervals, on Ctrl-C or SIGTERM, and when an error ends the run.

    Args:
        path: the file; if it exists, a run continues from it.
        every: seconds between two checkpoints.
        restart: start anew, instead of raising, if the checkpoint is damaged or of another run.

    >>> checkpoint = act.Checkpoint("run.checkpoint", every=60)
    >>> act.profile(model, corpus, checkpoint=checkpoint).save("profile.safetensors")
    >>> "is safe in run.checkpoint" in checkpoint.kept
    True
    >>> checkpoint.remove()  # only now that the profile is saved
    """

    def __init__(self, path: str | Path, every: float = CHECKPOINT_EVERY, restart: bool = False) -> None:
        self.path = Path(path)
        self._every, self._restart = every, restart
        self._identity: dict[str, Any] = {}
        self._written = 0.0
        self._safe: Position | None = None
        self._safe_tokens = 0
        self._closed = False
        self._held = Held()

    def open(self, run: Run, stream: Stream, identity: dict[str, Any]) -> None:
        """Restore the run, stream and observers from the checkpoint, if it exists.

        Raises:
            ActError: the checkpoint is damaged, of an older schema, or of another run.
        """
        self._identity = identity
        if not self.path.exists():
            return
        before = {name: part.state() for name, part in _parts(run, stream).items()}
        try:
            tensors, header = load_tensors(self.path, SCHEMA)
            with understood(self.path):
                different = difference(header["identity"], identity)
                if not different:
                    plain = checked(_STATES, header["state"])
                    state = _joined(plain, tensors)
                    for ability in dict(state["run"]["seen"]).keys() - stream.corpora.keys():
                        require_name("an ability in it", ability)
                    _restore(run, stream, state)
        except ActError as error:
            _restore(run, stream, before)
            damaged = str(error).rpartition(";")[0]
            if self._restart:
                log.warning("%s, so the run starts anew", damaged)
                return
            raise ActError(
                f"{damaged}, so the run cannot continue from it; delete it, or pass "
                f"{option('--force', 'restart=True')}, to start anew"
            ) from error
        if different:
            if self._restart:
                return
            raise self._of_another(different)
        self._safe, self._safe_tokens = run.position, run.total.tokens
        log.info("resumed", extra={"fields": {"path": str(self.path), "tokens": run.total.tokens}})

    def require_of(self, known: Mapping[str, Any]) -> None:
        """Raise :class:`ActError` if the file is of another run, by what is known of this one before it begins.

        Args:
            known: some of what a run's identity says (:meth:`act.profiling.job.Job.identity`).

        >>> act.Checkpoint("run.checkpoint").require_of({"shard": [0, 1]})  # there is none
        """
        if self._restart or not self.path.exists():
            return
        found: Mapping[str, Any] = known
        with contextlib.suppress(ActError):  # that it is damaged is said when the run begins
            _, header = load_tensors(self.path, SCHEMA, header_only=True)
            with understood(self.path):
                found = known_of(header["identity"], known)
        if different := difference(found, known):
            raise self._of_another(different)

    def _of_another(self, different: str) -> ActError:
        return ActError(
            f"{self.path} is the checkpoint of another run ({different}); finish that run with its command, or "
            f"pass {option('--force', 'restart=True')} to start anew"
        )

    @contextlib.contextmanager
    def keeping(self, run: Run, stream: Stream) -> Iterator[None]:
        """Write checkpoints of a run during the block.

        Raises:
            Interrupted: after SIGINT or SIGTERM, once the checkpoint is written.
            ActError: the error that ended the run, with the place of its state added to the message.
        """
        writer = _Writer(self, stream)
        run.observers.append(writer)
        self._written = time.monotonic()
        try:
            with held_signals() as self._held:
                yield
        except Interrupted:
            raise
        except ActError as error:
            if run.position is None:
                raise
            self.write(run, stream)
            mended = f", while a mended file is another text: begin it anew with {option('--force', 'restart=True')}"
            other = mended if isinstance(error, BadRecord) and self._safe else ""
            raise type(error)(f"{error}; {self.kept}{other}") from error
        finally:
            run.observers.remove(writer)

    @property
    def kept(self) -> str:
        """A clause for error messages: what is safe on disk, and how to continue."""
        if self._safe is None:
            return "there is no checkpoint, so the same command starts from the beginning"
        return (
            f"what came before ({self._safe_tokens:,} tokens) was counted and is safe in {self.path}: "
            "the same command continues from there"
        )

    def close(self, run: Run, stream: Stream) -> None:
        """Write the state of a run that has read everything; later changes to its moments are not kept."""
        self.write(run, stream)
        self._closed = True

    def write(self, run: Run, stream: Stream) -> bool:
        """Write the state of the run. If that fails, log a warning and return False; the run itself can continue."""
        self._written = time.monotonic()
        if self._closed or run.position is None or run.position == self._safe:
            return run.position is not None and run.position == self._safe
        state = {name: part.state() for name, part in _parts(run, stream).items()}
        plain = {
            name: {key: value for key, value in part.items() if not isinstance(value, torch.Tensor)}
            for name, part in state.items()
        }
        tensors = {
            f"{name}.{key}": value
            for name, part in state.items()
            for key, value in part.items()
            if isinstance(value, torch.Tensor)
        }
        try:
            save_tensors(self.path, tensors, SCHEMA, {"identity": self._identity, "state": plain}, force=True)
        except (ActError, OSError) as error:
            kept = "an earlier one is still there" if self.path.exists() else "there is none yet"
            log.warning("the checkpoint could not be written (%s); %s, and the run continues", error, kept)
            return False
        self._safe, self._safe_tokens = run.position, run.total.tokens
        log.info("checkpoint", extra={"fields": {"path": str(self.path), "tokens": run.total.tokens}})
        return True

    def remove(self) -> None:
        """Delete the file, once the run has ended and its profile is saved."""
        self.path.unlink(missing_ok=True)
        clear(self.path)

    def remove_of(self, identity: Mapping[str, Any]) -> None:
        """Delete the file if it is of a run with this identity, whose profile was saved before.

        >>> checkpoint = act.Checkpoint("run.checkpoint")
        >>> profile = act.profile(model, corpus, checkpoint=checkpoint)
        >>> checkpoint.remove_of({"shard": [1, 2]})  # the file is of another run, so it stays
        >>> checkpoint.path.exists()
        True
        """
        with contextlib.suppress(ActError):
            _, header = load_tensors(self.path, SCHEMA, header_only=True)
            with understood(self.path):
                found = {name: header["identity"].get(name) for name in identity}
            if not difference(found, identity):
                self.remove()

    def after_batch(self, run: Run, stream: Stream) -> None:
        """Write a checkpoint if it is due; end the run if a signal asked for it."""
        if self._held.number is not None:
            if not self.write(run, stream):
                raise Interrupted(f"interrupted after {run.total.tokens:,} tokens; {self.kept}")
            raise Interrupted(
                f"interrupted after {run.total.tokens:,} tokens, which are safe in {self.path}; "
                "run the same command to continue from there"
            )
        if time.monotonic() - self._written >= self._every:
            self.write(run, stream)


class _Writer(Observer):
    """The last observer of a run, so that it includes the state of the others."""

    def __init__(self, checkpoint: Checkpoint, stream: Stream) -> None:
        self._checkpoint, self._stream = checkpoint, stream

    def after_batch(self, run: Run, batch: Batch) -> None:
        self._checkpoint.after_batch(run, self._stream)


def _parts(run: Run, stream: Stream) -> dict[str, Resumable]:
    """Everything that has a state, by its name in the file."""
    return {"run": run, "stream": stream, **{f"observers.{i}": each for i, each in enumerate(run.observers)}}


def _restore(run: Run, stream: Stream, state: Mapping[str, Mapping[str, Any]]) -> None:
    for name, part in _parts(run, stream).items():
        if state.get(name):
            part.restore(state[name])
    if run.position is not None:
        stream.start_at(run.position)


def _joined(plain: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """The states of all parts, from the plain data and the tensors of the file."""
    state = {name: dict(part) for name, part in plain.items()}
    for name, part in state.items():
        prefix = f"{name}."
        part |= {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
    return state

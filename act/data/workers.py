"""A map over several processes, with the results in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from act.core.errors import ActError, option

A = TypeVar("A")
B = TypeVar("B")

CHUNKS_AHEAD = 4  # chunks per worker that are in progress or whose results wait to be used

_function: Callable[[Any], Any]


def ordered_map(function: Callable[[A], B], chunks: Iterable[A], workers: int) -> Iterator[B]:
    """Apply ``function`` to each chunk and yield the results in order.

    At most ``CHUNKS_AHEAD`` chunks per worker are read ahead, so slow use of the results does not cost memory.

    Args:
        function: sent to each worker once.
        chunks: the arguments.
        workers: number of processes; 0: this process.

    Raises:
        ActError: a worker died.
    """
    if not workers:
        yield from map(function, chunks)
        return
    # Spawned, not forked: PyTorch and the tokenizer have started threads, and a fork would inherit their locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (function,))
    try:
        waiting: deque[Future[B]] = deque()
        for chunk in chunks:
            with _without_ctrl_c():
                waiting.append(pool.submit(_run, chunk))  # starts a worker if none is idle
            if len(waiting) == CHUNKS_AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ActError(
            "a tokenizer worker died: it was killed, or memory ran out; fewer workers "
            f"({option('--workers', 'workers')}) need less memory"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Block SIGINT for processes started in the block: only the main process handles Ctrl-C, and it ends them.

    This thread blocks the signal meanwhile, and a new process inherits that.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is already one process per core
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the main process has ended, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _run(chunk: Any) -> Any:
    return _function(chunk)

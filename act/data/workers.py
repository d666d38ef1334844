"""Work spread over processes, with its results in order."""

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

from act.core.errors import ActError

A = TypeVar("A")
B = TypeVar("B")

CHUNKS_AHEAD = 4  # chunks a worker that are under way or wait for their turn

_function: Callable[[Any], Any]


def ordered_map(function: Callable[[A], B], chunks: Iterable[A], workers: int) -> Iterator[B]:
    """``function`` of each chunk, in order; in this process with 0 workers, else in that many others.

    At most ``CHUNKS_AHEAD`` chunks a worker are read ahead, so memory does not grow where the results are used slowly.

    Args:
        function: sent once to each worker.

    Raises:
        ActError: a worker died.
    """
    if not workers:
        yield from map(function, chunks)
        return
    # Spawned, not forked: PyTorch and the tokenizer have threads by now, and a fork would inherit their locks.
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
            "a tokenizer worker died: it was killed, or memory ran out, which fewer workers (--workers) spare"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started in the block never see SIGINT: Ctrl-C is for the main process, which ends them.

    This thread has it blocked meanwhile, which a new process inherits.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the main one has ended, also one that was killed."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _run(chunk: Any) -> Any:
    return _function(chunk)

"""Work spread over processes, with its results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from act.errors import ActError

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
            waiting.append(pool.submit(_run, chunk))
            if len(waiting) == CHUNKS_AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ActError(
            "a tokenizer worker died (killed, or out of memory); nothing counted so far is lost: "
            "run the same command again to go on from the last checkpoint, with fewer workers (--workers) if need be"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one


def _run(chunk: Any) -> Any:
    return _function(chunk)

"""Processes that work for another: they end with it, and leave Ctrl-C to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from act.data.workers import ordered_map

BLOCKED_AT_START = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # when a worker imports this module

KILLED = """
import os, time
from act.data.workers import ordered_map

if __name__ == "__main__":
    for pid in ordered_map(pid_of, iter(int, 1), 1):
        print(pid, flush=True)
        time.sleep(60)
"""


def blocked(chunk: int) -> bool:
    return BLOCKED_AT_START


def pid_of(chunk: int) -> int:
    return os.getpid()


def test_ctrl_c_is_not_for_workers_from_their_first_moment_on():
    assert not BLOCKED_AT_START
    assert list(ordered_map(blocked, [0, 0], 1)) == [True, True]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_end_with_the_process_that_was_killed():
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_workers import pid_of" + KILLED
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    # Ended, or ended and not yet asked after by whoever adopted it.
    while subprocess.run(["ps", "-o", "stat=", "-p", str(worker)], capture_output=True).stdout.strip(b" \nZ"):
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.05)

"""What the benchmarks share: options, timing in turns, processes, the machine behind each number, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from act.core.files import written_whole
from act.core.versions import versions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Call = Callable[[], Any]
Times = dict[str, list[float]]
T = TypeVar("T")


def options(documentation: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the benchmark, with the option ``--json``."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures, with the machine, to this file")
    return parser


def seconds_of(call: Call, repeats: int = 1) -> float:
    """Wall-clock seconds per call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def in_turns(calls: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each call returns, over rounds in which they take turns, so that a slow moment hits all of them."""
    found: dict[str, list[T]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(call())
    return found


def interleaved(calls: Mapping[str, Call], seconds: float = 1.0, rounds: int = 7) -> Times:
    """Seconds per call, in turns, after a warm-up. A round repeats each call to fill its share of ``seconds``."""
    timed: dict[str, Callable[[], float]] = {}
    for name, call in calls.items():
        call()
        repeats = max(1, int(seconds / rounds / len(calls) / max(seconds_of(call), 1e-7)))
        timed[name] = lambda call=call, repeats=repeats: seconds_of(call, repeats)  # type: ignore[misc]
    return in_turns(timed, rounds)


def on_device(
    calls: Mapping[str, Call], device: torch.device, seconds: float, *, wall: bool = False, least: int = 3
) -> Times:
    """Seconds of single calls that take turns for ``seconds``, for at least ``least`` rounds, each with cold caches.

    A GPU times itself between two events; with ``wall``, time runs from the launch until the host sees that it is done.
    """
    on_gpu = device.type == "cuda"
    # Written before each call: more than the second-level cache of any GPU so far, and of most CPUs.
    flush = torch.empty((256 if on_gpu else 16) << 20, dtype=torch.uint8, device=device)

    def between_events(call: Call) -> float:
        flush.zero_()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3

    def by_host(call: Call) -> float:
        flush.zero_()
        wait: Call = torch.cuda.synchronize if on_gpu else lambda: None
        wait()
        return seconds_of(lambda: (call(), wait()))

    one = between_events if on_gpu and not wall else by_host
    times: Times = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name, call in calls.items():
            times[name].append(one(call))
    return times


def median(times: list[float]) -> float:
    """The median of the rounds."""
    return float(np.median(times))


def medians(times: Times) -> dict[str, float]:
    """The median of each call."""
    return {name: median(values) for name, values in times.items()}


def spread(times: list[float]) -> float:
    """Interquartile range over the median."""
    low, high = np.percentile(times, [25, 75])
    return float((high - low) / np.median(times))


def act_profile(*arguments: object, threads: int = 1, launcher: list[str] | None = None) -> dict[str, Any]:
    """The JSON that an ``act-profile`` command prints, run in a process of its own or by ``launcher``."""
    done = subprocess.run(
        [*(launcher or [sys.executable, "-m"]), "act", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def run_process(command: list[str]) -> tuple[float, float]:
    """Seconds of a process and its peak resident memory in megabytes."""
    start = time.perf_counter()
    # A fork, since a child of vfork, which subprocess uses, starts from the peak of this process.
    pid = os.spawnvp(os.P_NOWAIT, command[0], command)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def machine() -> dict[str, Any]:
    """Processor, GPUs, versions and commit, without which a number means nothing."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), model)
    return {
        "cpu": model,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": versions(),
        "commit": _git("rev-parse", "--short=12", "HEAD")
        + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def _git(*arguments: str) -> str:
    """What git says about this checkout; empty without git or a repository."""
    if shutil.which("git") is None:
        return ""
    here = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False).stdout.strip()


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write ``result`` to ``path``, replacing it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, force=True) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


def record(path: Path | None, result: dict[str, Any]) -> None:
    """Write ``result`` and the machine that gave it to ``path``, if there is one."""
    if path is not None:
        write_json(path, {"machine": machine(), **result})

"""What every benchmark shares: interleaved timing, the machine beside each number, and JSON written whole."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from act.core.files import written_whole
from act.core.versions import versions


def interleaved(calls: dict[str, Callable[[], Any]], seconds: float = 1.0, rounds: int = 7) -> dict[str, list[float]]:
    """Seconds a call, for each of ``calls``, over rounds in which they take turns.

    A round times each call often enough to fill its share of ``seconds``; taking turns lets a slow moment of the
    machine hit all of them. The first, untimed call warms caches and pools.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        repeats[name] = max(1, int(seconds / rounds / len(calls) / max(once, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def on_device(
    calls: dict[str, Callable[[], Any]], device: torch.device, seconds: float, *, wall: bool = False, least: int = 3
) -> dict[str, list[float]]:
    """Seconds of single calls that take turns for ``seconds``, ``least`` rounds at the least, each with cold caches.

    A GPU times itself between two events; ``wall`` is from the launch until the host sees that the call is done.
    """
    on_gpu = device.type == "cuda"
    # Written before each call: more than the second-level cache of any GPU so far, and of most CPUs.
    flush = torch.empty((256 if on_gpu else 16) << 20, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name, call in calls.items():
            flush.zero_()
            if on_gpu and not wall:
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                call()
                after.record()
                after.synchronize()
                times[name].append(before.elapsed_time(after) / 1e3)
            else:
                wait()
                start = time.perf_counter()
                call()
                wait()
                times[name].append(time.perf_counter() - start)
    return times


def median(times: list[float]) -> float:
    """The middle of the rounds."""
    return float(np.median(times))


def spread(times: list[float]) -> float:
    """Interquartile range over the median."""
    low, high = np.percentile(times, [25, 75])
    return float((high - low) / np.median(times))


def machine() -> dict[str, Any]:
    """Processor, GPUs, versions and commit: what a number means nothing without."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": versions(),
        "commit": _git("rev-parse", "--short=12", "HEAD")
        + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def _git(*arguments: str) -> str:
    """What git says of this checkout; nothing where there is no git, or no repository."""
    if shutil.which("git") is None:
        return ""
    here = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False).stdout.strip()


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write ``result`` to ``path``, replacing it; nothing happens where no path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, force=True) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")

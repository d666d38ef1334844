"""What this machine has."""

from __future__ import annotations

import os
from pathlib import Path


def free_memory() -> int:
    """Bytes of memory that a program can take now, of this machine or of the container that it runs in."""
    limits = [_available(), *_container()]
    return max(0, min(limits))


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # of a system without /proc, all of it


def _container() -> list[int]:
    """What a control group leaves, if it sets a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [int(limit) - int(used)] if limit.isdigit() and used.isdigit() else []

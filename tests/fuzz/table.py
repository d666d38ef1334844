"""Fuzz every kind and print a table: ``PYTHONPATH=.:tests python -m fuzz.table 500 [--first SEED] [--json OUT]``.

Exits with 1 if a reader raised anything but an ActError, took longer than ten seconds or more than 1 GB, or read a
damaged file as something else. Each such case is printed with its seed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.measure import record

from .kinds import Kind, files_in

SECONDS, MEGABYTES = 10, 1000
COLUMNS = ["kind", "mutations", "refused", "same", "read", "tracebacks", "hangs", "different", "seconds", "megabytes"]
"""``read``: as what the changed file says; ``seconds`` and ``megabytes``: the slowest, and the peak."""


def _work(kind: Kind, seeds: range, expected: Any, report: Connection) -> None:
    for seed in seeds:
        start = time.perf_counter()
        try:
            found = kind.outcome(Random(seed), expected)
        except Exception:
            found = traceback.format_exc()
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report.send((seed, found, time.perf_counter() - start, megabytes))


def fuzz(kind: Kind, seeds: range) -> tuple[Counter[str], float, float]:
    """What became of the mutations of one kind, the longest time in seconds, and the peak of memory in megabytes."""
    expected, counts, slowest, peak = kind.read(), Counter[str](), 0.0, 0.0
    kind.restore()
    while seeds:
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        process = multiprocessing.get_context("fork").Process(target=_work, args=(kind, seeds, expected, theirs))
        process.start()
        theirs.close()
        while seeds:
            try:
                answer = ours.recv() if ours.poll(2 * SECONDS) else (seeds[0], "hang", 2.0 * SECONDS, peak)
            except EOFError:
                answer = seeds[0], "crash", 0.0, peak
            seed, found, seconds, megabytes = answer
            what = "traceback" if "Traceback" in found else "hang" if seconds > SECONDS else found
            counts[what] += 1
            slowest, peak, seeds = max(slowest, seconds), max(peak, megabytes), seeds[1:]
            if what in ("traceback", "hang", "crash", "different"):
                last = found.strip().splitlines()[-1]
                print(f"{kind.name}, seed {seed}: {what}: {last:.200}", file=sys.stderr, flush=True)
                if "Traceback" in found:
                    print("\n".join(found.strip().splitlines()[-7:-1]), file=sys.stderr, flush=True)
            if what in ("crash", "hang"):
                break
        if seeds:
            process.kill()
        process.join()
    return counts, slowest, peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mutations", type=int)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kind", action="append", help="one of them (repeatable)")
    parser.add_argument("--json", type=Path, help="write the figures, with the machine, to this file")
    given = parser.parse_args()
    bad, rows = 0, []
    with tempfile.TemporaryDirectory() as folder:
        kinds = files_in(Path(folder, "files")).kinds
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        for name in given.kind or kinds:
            counts, slowest, peak = fuzz(kinds[name], range(given.first, given.first + given.mutations))
            wrong = [counts["traceback"] + counts["crash"], counts["hang"], counts["different"]]
            right = [counts[what] for what in ("refused", "same", "read")]
            cells = [name, given.mutations, *right, *wrong, round(slowest, 1), round(peak)]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
            bad += sum(wrong) + (peak > MEGABYTES)
    record(given.json, {"first_seed": given.first, "kinds": rows})
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

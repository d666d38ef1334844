"""How long does ranking take, and how much memory besides the profiles?

    python benchmarks/rank.py --json OUT

``act.rank`` on two pair profiles of a synthetic channel space, by default 32 million channels in 20,000 sites: paired
score divided by the module's standard deviation, contrast against the second profile, top 5 %. The statistics that the
score reads are in memory; ``peak_mb`` is what ranking needs on top of them.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import torch
from measure import median, options, record, seconds_of

import act
from act.models.sites import ParameterSlice
from act.profiles.moments import Moments
from act.profiles.provenance import CorpusRead, ModelRead, Provenance
from act_kernels import PAIR, STATISTICS
from act_kernels.statistics import COUNT, SUM_ABS

KINDS = ("q", "k", "v", "o", "gate", "up", "down", "norm")


def make_space(channels: int, sites: int) -> act.ChannelSpace:
    """Sites of uneven widths and all kinds."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(sites, generator=generator).double() + 0.1
    ends = (shares.cumsum(0) / shares.sum() * channels).round().long().tolist()
    made, offset = [], 0
    for number, end in enumerate(ends):
        kind = KINDS[number % len(KINDS)]
        name = f"model.layers.{number // len(KINDS)}.{kind}_proj"
        parts = (ParameterSlice(f"{name}.weight", 0),)
        made.append(act.Site(name, kind, number // len(KINDS), offset, end - offset, parts))
        offset = end
    return act.ChannelSpace(tuple(made))


def make_profile(space: act.ChannelSpace, seed: int) -> act.PairProfile:
    """A pair profile of which only what the paired score and the check of counts read is touched."""
    moments = Moments.__new__(Moments)  # without its zeros, which would touch all of them
    moments.space, moments.pair = space, True
    moments._arenas = {None: torch.empty(len(PAIR), len(STATISTICS), len(space), dtype=torch.float64)}
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(len(space.sites), generator=generator).mul(9).exp().double()
    widths = torch.tensor([site.width for site in space])
    for side in range(len(PAIR)):
        moments.arena[side, COUNT] = 1000
    difference = moments.arena[PAIR.index("difference"), SUM_ABS]
    difference.exponential_(generator=generator)
    difference *= scales.repeat_interleave(widths)
    models = {side: ModelRead(side, side) for side in ("donor", "target")}
    corpus = CorpusRead(f"corpus {seed}", str(seed), count="answer")
    return act.PairProfile(moments, Provenance(models=models, corpora=(corpus,)))


def megabytes(line: str) -> float:
    """A line of this process's status (Linux): ``VmRSS`` is resident memory, ``VmHWM`` its peak."""
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) / 1024


def main() -> None:
    """Print and write time and memory."""
    parser = options(__doc__)
    parser.add_argument("--channels", type=int, default=32_000_000)
    parser.add_argument("--sites", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    space = make_space(given.channels, given.sites)
    ability, keep = make_profile(space, 0), make_profile(space, 1)
    ranked = partial(act.rank, ability, "paired", 0.05, keep=keep, normalize="std")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before, busy, work = megabytes("VmRSS"), os.getloadavg()[0], time.process_time()
    times = [seconds_of(ranked) for _ in range(given.rounds)]
    work, peak = time.process_time() - work, megabytes("VmHWM")
    result = {
        "channels": len(space),
        "sites": len(space.sites),
        "threads": given.threads,
        "chosen": len(ranked()),
        "seconds": round(median(times), 3),
        "first_seconds": round(times[0], 3),
        "worst_seconds": round(max(times), 3),
        "cpu_seconds": round(work / given.rounds, 3),
        "machine_load": round(busy, 1),
        "profiles_mb": round(before),
        "peak_mb": round(peak - before),
    }
    print(result)
    record(given.json, {"results": [result]})


if __name__ == "__main__":
    main()

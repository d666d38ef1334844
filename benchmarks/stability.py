"""How much of a corpus ``--until-stable`` reads, and how often the overlap it requires is reached.

    python benchmarks/stability.py --records 120000 --orders 3 --json OUT

For each corpus of the demo, and GSM8K on two versions of stories260K where the shared data is beside the checkout:
the pair run over the whole corpus, then runs that stop when certain, over the same records in other random orders, and
the share of their time that looks at the top set took. Then one look at ``--channels``, its seconds and its peak of
memory beside the moments; with ``--records 0`` only that.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import options, record
from rank import make_profile, make_space, megabytes
from workloads import DATA, GSM8K, read_lines

import act
from act.lab.demo import FORGOTTEN, RETAINED
from act.lab.language import examples
from act.lab.models import CHECKPOINTS, load
from act.profiling.job import Job
from act.profiling.measure import run_job
from act.profiling.stability import GROUPS, Criterion, GroupedSums, check, sample
from act.profiling.until_stable import Looks, UntilStable, look_ahead, quantity, rankable
from act_kernels import PAIR
from act_kernels.statistics import COUNT, SUM_ABS

sys.path.append(str(Path(__file__).parents[1] / "tests"))


def demo(
    ability: tuple[str, tuple[str, ...]], count: int
) -> tuple[Any, Any, Any, list[dict[str, str]], dict[str, Any]]:
    """Donor, target, tokenizer, records and options of a demo corpus."""
    (donor, tokenizer), (target, _) = (load(CHECKPOINTS / name) for name in ("base", "target"))
    drawn: dict[str, str] = {}
    for seed in range(count // 40_000 + 2):  # one draw gives at most 10,000 records per skill
        draw = examples(*ability, min(count, 10_000 * len(ability[1])), seed)
        drawn.update((each["prompt"], each["completion"]) for each in draw)
        if len(drawn) >= count:
            break
    records = [{"prompt": prompt, "completion": f" {answer}"} for prompt, answer in list(drawn.items())[:count]]
    return donor, target, tokenizer, records, {"count": "predict"}


def stories() -> tuple[Any, Any, Any, list[dict[str, str]], dict[str, Any]]:
    """GSM8K questions on stories260K and a copy with noise added to its weights."""
    from trained.stories import load_model, load_tokenizer

    donor, target = (load_model(DATA / "stories260K") for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    records = [{"text": " ".join(turn["content"] for turn in row["messages"])} for row in read_lines(GSM8K)]
    return donor, target, load_tokenizer(DATA / "stories260K"), records, {"count": "all", "max_length": 512}


def measure(name: str, made: Any, criterion: Criterion, orders: int) -> dict[str, Any]:
    """The whole corpus once, then one stopped run per order."""
    donor, target, tokenizer, records, settings = made
    models, swap = {"donor": donor, "target": target}, criterion.score == "match"
    whole = run_job(Job(models, act.Corpus.from_records(records, tokenizer, **settings), swap=swap))

    def top(profile: Any) -> set[int]:
        return set(act.rank(profile, criterion.score, criterion.top).index.tolist())

    expected, runs = top(whole), []
    size = len(expected)
    for order in range(orders):
        shuffled = random.Random(order).sample(records, len(records))
        observer = UntilStable(**vars(criterion))
        corpus = act.Corpus.from_records(shuffled, tokenizer, **settings)
        window = min(look_ahead([corpus]), len(records) // 64)
        stopped = Job(models, corpus, swap=swap, observers=[observer], look_ahead=window)
        start = time.perf_counter()
        profile = run_job(stopped)
        assert isinstance(profile, act.Profile)  # of one corpus without labels
        certificate = profile.provenance.corpora[0].extra["stable"]
        share = certificate["corpus_share"] if certificate else 1.0
        runs.append(
            {
                "corpus_share": share,
                "overlap": len(expected & top(profile)) / size,
                "certain_overlap": certificate["certain_overlap"] if certificate else 1.0,
                "seconds": round(seconds := time.perf_counter() - start, 2),
                "share_of_looks": round(observer.looks.seconds / seconds, 4),
            }
        )
        print(name, criterion.score, runs[-1], flush=True)
    return {
        "corpus": name,
        "records": len(records),
        "score": criterion.score,
        "channels": size,
        "promised": {"overlap": criterion.overlap, "confidence": criterion.confidence},
        "kept": sum(run["overlap"] >= criterion.overlap for run in runs) / len(runs),
        "largest_share": max(run["corpus_share"] for run in runs),
        "mean_share": sum(run["corpus_share"] for run in runs) / len(runs),
        "least_overlap": min(run["overlap"] for run in runs),
        "largest_share_of_looks": max(run["share_of_looks"] for run in runs),
        "runs": runs,
    }


def look(channels: int) -> dict[str, Any]:
    """What one look at the top set takes, with the sums that it needs, in a pair run over so many channels."""
    space = make_space(channels, max(1, channels // 1600))
    moments, criterion = make_profile(space, 0).moments, Criterion()
    sums = moments.arena[PAIR.index("difference"), SUM_ABS]
    counts = moments.arena[PAIR.index("difference"), COUNT]
    means, generator = sums.float(), torch.Generator().manual_seed(0)
    sums.zero_()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before, peak, sampled = megabytes("VmRSS"), 0.0, Looks()
    with sampled.counted():
        ranked = rankable(space)
        groups = GroupedSums(torch.tensor([site.width for site in space]), sample(ranked, criterion), len(ranked))
        del ranked
    summed, checked = Looks(), Looks()
    for chunk in range(1, GROUPS + 1):
        peak = max(peak, megabytes("VmHWM"))
        for part, mean in zip(sums.split(1 << 20), means.split(1 << 20), strict=True):  # as a run would add to them
            part += mean * (1 + 0.1 * torch.randn(len(part), generator=generator))
        counts.fill_(chunk)
        Path("/proc/self/clear_refs").write_text("5")
        with summed.counted():
            groups.add(*quantity(moments, criterion.score, groups.channels))
    work = time.process_time()
    with checked.counted():
        found = check(groups, criterion)
    return {
        "channels": channels,
        "looked_at": len(groups),
        "seconds": round(checked.seconds + summed.longest, 2),
        "cpu_seconds": round(time.process_time() - work, 2),
        "sums_seconds": round(summed.longest, 3),
        "start_seconds": round(sampled.seconds, 2),
        "peak_mb": round(max(peak, megabytes("VmHWM")) - before),
        "expected_overlap": round(1 - found.expected / found.size, 4),
        "certain_overlap": round(found.overlap, 4),
    }


def main() -> None:
    """Measure and write."""
    parser = options(__doc__)
    parser.add_argument("--records", type=int, default=120000)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--score", choices=("paired", "mean-abs", "mean-shift", "match"), default="paired")
    parser.add_argument("--channels", type=int, default=32_000_000)
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    corpora = (("German", FORGOTTEN), ("English", RETAINED)) if given.records else ()
    for name, ability in corpora:
        results.append(measure(name, demo(ability, given.records), Criterion(given.score), given.orders))
    if DATA.is_dir() and given.records:
        loose = Criterion(given.score, overlap=0.9, confidence=0.9)
        results.append(measure("GSM8K", stories(), loose, given.orders))
    result: dict[str, Any] = {"corpora": results}
    if given.channels:
        result["look"] = look(given.channels)
        print(result["look"])
    for each in results:
        print({name: value for name, value in each.items() if name != "runs"})
    record(given.json, result)


if __name__ == "__main__":
    main()

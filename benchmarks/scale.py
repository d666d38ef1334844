"""Does what follows a run of a large mixture of experts stay within what ``act-profile plan`` foretells?

    python benchmarks/scale.py --json OUT

A DeepSeek-V3 of 58 layers of 256 experts, with narrower matrices: 45,000 sites and 31 million channels by default. The
model stays on the meta device; its pair profile is filled with made-up numbers. Every step is timed, and its peak of
resident memory, with the pages of files that it reads, compared with the foretold one.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import options, record, seconds_of
from rank import megabytes

import act
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.profiles.provenance import CorpusRead, ModelRead, Provenance
from act.profiling.plan import Shape
from act.profiling.stability import GROUPS, Criterion, GroupedSums, check, sample
from act.profiling.until_stable import quantity, rankable
from act.report.build import build, measure
from act_kernels import PAIR
from act_kernels.statistics import COUNT, M2, MAX_ABS, SUM_ABS


def mixture(hidden: int, width: int) -> torch.nn.Module:
    """The model, without weights."""
    config = transformers.DeepseekV3Config(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=4 * width,
        moe_intermediate_size=width,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def made_up(space: ChannelSpace) -> act.PairProfile:
    """A pair profile of which all memory is touched."""
    moments = Moments(space, pair=True)
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(1, 1000, (len(space.sites),), generator=generator)
    widths = torch.tensor([site.width for site in space])
    moments.arena.fill_(1.0)
    moments.arena[:, COUNT] = few.double().repeat_interleave(widths)
    for row in (M2, MAX_ABS, SUM_ABS):
        for side in range(len(PAIR)):
            moments.arena[side, row].uniform_(1, 1000, generator=generator)
    models = {side: ModelRead(side, side) for side in ("donor", "target")}
    return act.PairProfile(moments, Provenance(models=models, corpora=(CorpusRead("text", "0", count="answer"),)))


class Steps:
    """Steps of the benchmark, each with its seconds and its peak of memory beside what was there before all of them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._before = megabytes("VmRSS")

    def take(self, name: str, call: Callable[[], Any], foretold: int | None = None) -> Any:
        """Time one step; ``foretold`` is in bytes."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        kept: list[Any] = []
        seconds = seconds_of(lambda: kept.append(call()))
        peak = megabytes("VmHWM") - self._before
        row: dict[str, Any] = {"step": name, "seconds": round(seconds, 2), "peak_mb": round(peak)}
        row |= {"machine_load": round(os.getloadavg()[0], 1), "peak_over_foretold": "-"}
        if foretold is not None:
            row |= {"foretold_mb": round(foretold / 2**20), "peak_over_foretold": round(peak * 2**20 / foretold, 3)}
        self.rows.append(row)
        print(row, flush=True)
        return kept[0]


def main() -> None:
    """Measure and write."""
    parser = options(__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512, help="of an expert")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = mixture(given.hidden, given.width)
    steps = Steps()
    space = steps.take("channel space", partial(ChannelSpace.from_model, model))
    shape = Shape.of(model, space)
    foretold = steps.take("plan", partial(shape.afterwards, space, pair=True))
    steps.take("header", lambda: ChannelSpace.from_json(json.loads(json.dumps(space.to_json()))))
    with tempfile.TemporaryDirectory() as folder:
        file, chosen = Path(folder, "pair.safetensors"), Path(folder, "set.safetensors")
        profile = made_up(space)
        steps.take("save", partial(profile.save, file))
        size = file.stat().st_size
        del profile
        profile = steps.take("load", partial(act.load, file), foretold["rank"])
        for name, keywords in (
            ("rank", {}),
            ("rank --normalize std", {"normalize": "std"}),
            ("rank --scope site", {"scope": "site"}),
            ("rank --granularity expert", {"granularity": "expert"}),
            ("rank --granularity neuron", {"granularity": "neuron"}),
        ):
            ranked: Callable[[], act.ChannelSet] = partial(act.rank, profile, **keywords)  # type: ignore[arg-type]
            channels = steps.take(name, ranked, foretold["rank"])
        steps.take("rows of a transfer", partial(_rows_of, channels), foretold["rank"])
        steps.take("save channels", partial(channels.save, chosen), foretold["rank"])
        steps.take("load channels", partial(act.ChannelSet.load, chosen), foretold["rank"])
        steps.take("table", profile._repr_html_, foretold["rank"])
        steps.take("report", lambda: build(measure([profile])), foretold["rank"])
    steps.take(
        "--until-stable",
        partial(stable, profile.moments, space),
        foretold["until-stable"] + shape.arena(pair=True),
    )
    result = {
        "channels": len(space),
        "sites": len(space.sites),
        "experts": 58 * 256,
        "profile_mb": round(size / 2**20),
        "foretold_profile_mb": round(foretold["profile"] / 2**20),
    }
    record(given.json, {**result, "results": [{**result, **row} for row in steps.rows]})


def _rows_of(channels: act.ChannelSet) -> int:
    return sum(len(chosen.rows) for chosen in channels.rows())


def stable(moments: Moments, space: ChannelSpace) -> None:
    """What ``--until-stable`` keeps and does at one check."""
    ranked, criterion = rankable(space), Criterion()
    groups = GroupedSums(torch.tensor([site.width for site in space]), sample(ranked, criterion), len(ranked))
    for number in range(GROUPS):
        total, count = quantity(moments, "paired", groups.channels)
        groups.add(total.mul_(number + 1), count * (number + 1))
    check(groups, criterion)


if __name__ == "__main__":
    main()

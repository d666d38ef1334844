"""Are mixtures of experts measured and edited exactly, in every family, and what does measuring them cost?

    python benchmarks/experts.py --json OUT

``families``: a tiny model of every family with experts, by each implementation that it has. ``coverage`` is the share
of its parameters behind channels; ``max_rel_error`` the largest deviation of a mean from float64 by hand, relative to
the largest value of the site, or of a variance, relative to its square (infinite if a count is wrong);
``logits_bit_equal`` compares logits with fused taps to plain ones; ``transfer_exact`` says that a transfer of random
channels of experts gives the bits of rows copied by hand, in memory and on disk (in shards, as transformers stores the
family, and as the model holds it), and that reverting gives back the first ones.

``overhead``: a forward for statistics over the plain forward without its head, and a pair of them over two, in turns in
one process; ratios of medians.
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import DTYPES, interleaved, medians, options, record, spread
from torch import nn

from act.core.errors import ActError
from act.editing.donor import Donor
from act.editing.folders import patch_folder, patch_of_folders, transfer_folders
from act.editing.transfer import transfer
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.profiling.measure import profile
from act.ranking.channel_set import ChannelSet
from act.taps.lockstep import lockstep
from act.taps.tapped import taps

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from experts_reference import expert_rows, expert_weights, implementations, run_by
from tiny_families import expert_families, tiny

Batch = dict[str, torch.Tensor]
SHARE = 0.3
HIDDEN, INNER, EXPERTS, CHOSEN, TOKENS = 2048, 768, 64, 8, 2048


def batch_of(batch: int, length: int) -> Batch:
    """Token ids and an answer mask that leaves tokens out."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(10, 200, (batch, length), generator=generator)
    counted = torch.rand(batch, length, generator=generator) < 0.6
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "count_mask": counted}


def largest_error(model: nn.Module, batches: list[Batch]) -> float:
    """How far the statistics of experts and routers are from float64 by hand."""
    rows: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for name, found in expert_rows(model, batch["input_ids"], batch["attention_mask"]).items():
            rows.setdefault(name, []).append(found.of(batch["count_mask"]).values)
    measured = profile(model, batches)
    worst = 0.0
    for name, each in rows.items():
        values, statistics = torch.cat(each), measured.site(name)
        if not (statistics.count == len(values)).all():
            return math.inf
        if len(values):
            largest = float(values.abs().max())
            mean = (statistics.mean - values.mean(0)).abs().max() / largest
            variance = (statistics.var - values.var(0, correction=0)).abs().max() / largest**2
            worst = max(worst, float(mean), float(variance))
    return worst


def same_logits(model: nn.Module, batch: Batch) -> bool:
    """Whether fused taps leave the bits of what the model gives."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    with torch.inference_mode():
        plain = model(**inputs)[0]
        with taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
            tapped.start(batch["count_mask"])
            return torch.equal(model(**inputs)[0], plain)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def edited_by_hand(donor: nn.Module, target: nn.Module, channels: ChannelSet) -> dict[str, torch.Tensor]:
    """The target's parameters with the chosen rows of the donor, by views that the space has no part in."""
    result = copy.deepcopy(target)
    given, taken = expert_weights(donor), expert_weights(result)
    for site, rows in channels.space.split(channels.index):
        for new, old in zip(given[site.name], taken[site.name], strict=True):
            old[rows] = new[rows]
    return state(result)


def exact_transfer(family: str) -> tuple[bool, str]:
    """Whether a transfer of random channels of experts is an edit by hand, bit for bit; if not, where it is not."""
    donor: Any = tiny(family, 0)
    target: Any = tiny(family, 1)
    space = ChannelSpace.from_model(target)
    every = torch.cat([torch.arange(s.offset, s.offset + s.width) for s in space if s.expert is not None])
    index = every[torch.rand(len(every), generator=torch.Generator().manual_seed(0)) < SHARE]
    channels = ChannelSet(space, index, torch.zeros(len(index)))
    before, expected = state(target), edited_by_hand(donor, target, channels)
    patch = transfer(donor, target, channels, 1)
    if not same(state(target), expected):
        return False, "in memory"
    patch.revert(target)
    if not same(state(target), before):
        return False, "reverted in memory"
    for original in (True, False):
        how = "as transformers stores it" if original else "as the model holds it"
        with tempfile.TemporaryDirectory() as scratch:
            folders = {name: Path(scratch) / name for name in ("donor", "target", "output", "patched", "reverted")}
            for name, model in (("donor", donor), ("target", target)):
                model.save_pretrained(folders[name], max_shard_size="60KB", save_original_format=original)
            donors = [Donor(folders["donor"], channels, 1)]

            def loaded(folder: Path) -> dict[str, torch.Tensor]:
                return state(type(target).from_pretrained(folder, dtype=torch.float32))

            try:
                transfer_folders(donors, folders["target"], folders["output"])
                found = patch_of_folders(donors, folders["target"])
                patch_folder(found, folders["target"], folders["patched"])
                patch_folder(found, folders["patched"], folders["reverted"], revert=True)
            except ActError as error:
                return False, f"{how}: {error}"
            first = {name: loaded(folders[name]) for name in ("target", "output", "patched", "reverted")}
            if not same(first["target"], before):
                return False, f"{how}: transformers does not read what it wrote"
            for name, held in (("output", expected), ("patched", expected), ("reverted", before)):
                if not same(first[name], held):
                    return False, f"{how}: {name}"
    return True, ""


def family_rows(family: str) -> list[dict[str, Any]]:
    """A line for each implementation."""
    model, batches = tiny(family), [batch_of(2, 7), batch_of(4, 4)]
    coverage = ChannelSpace.from_model(model).coverage
    assert coverage is not None
    exact, why = exact_transfer(family)
    rows = []
    for implementation in implementations(model):
        run_by(implementation, model)
        row: dict[str, Any] = {
            "family": family,
            "implementation": implementation,
            "coverage": round(coverage.share, 6),
            "max_rel_error": largest_error(model, batches),
            "logits_bit_equal": all(same_logits(model, batch) for batch in batches),
            "transfer_exact": exact,
        }
        if why:
            row["not_exact"] = why
        if coverage.uncovered:
            row["uncovered"] = sorted(coverage.uncovered)
        rows.append(row)
    return rows


def make(config: Any, seed: int, dtype: torch.dtype) -> Any:
    """A Qwen3-MoE of random weights."""
    torch.manual_seed(seed)
    model: Any = transformers.Qwen3MoeForCausalLM(config)
    return model.to(dtype).eval()


def twin(model: nn.Module) -> nn.Module:
    """The same parameters under modules of their own, so that taps on one do not slow the other down."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def overhead(
    hidden: int, inner: int, layers: int, tokens: int, dtype: str, threads: int, implementation: str, rounds: int
) -> list[dict[str, Any]]:
    """Lines for one model and for a pair, of a Qwen3-MoE of this size."""
    torch.set_num_threads(threads)
    config: Any = transformers.Qwen3MoeConfig(
        hidden_size=hidden, moe_intermediate_size=inner, num_hidden_layers=layers, num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN, num_attention_heads=hidden // 128, num_key_value_heads=max(1, hidden // 512),
        vocab_size=1024,
    )  # fmt: skip
    config.head_dim = 128
    model, donor = (make(config, seed, DTYPES[dtype]) for seed in range(2))
    run_by(implementation, model, donor)
    ids = torch.randint(0, 1024, (tokens // 256, 256), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    counted = torch.ones_like(ids, dtype=torch.bool)
    space = ChannelSpace.from_model(model)
    with (
        torch.inference_mode(),
        taps(twin(model), Moments(space), exclude=["head"]) as tapped,
        lockstep(twin(donor), twin(model), Moments(space, pair=True), exclude=["head"]) as both,
    ):
        calls: dict[str, Callable[[], Any]] = {
            "plain": lambda: model.model(**inputs, use_cache=False),
            "profiled": lambda: tapped.forward(inputs, counted),
            "other": lambda: donor.model(**inputs, use_cache=False),
            "pair": lambda: both.forward(inputs, counted),
        }
        times = interleaved(calls, 0, rounds)
    middle = medians(times)
    shape = (
        f"hidden {hidden}, {CHOSEN} of {EXPERTS} experts of {inner}, {layers} layer{'s' * (layers > 1)}, "
        f"{tokens} tokens, {implementation}"
    )
    about = {"dtype": dtype, "threads": threads}
    spreads = {name: round(spread(values), 4) for name, values in times.items()}
    alone = middle["plain"] + middle["other"]
    return [
        {
            "shape": shape, **about, "ratio": round(middle["profiled"] / middle["plain"], 4),
            "plain_s": round(middle["plain"], 4), "spread": spreads,
        },
        {
            "shape": f"pair, {shape}", **about, "ratio": round(middle["pair"] / alone, 4),
            "plain_s": round(alone, 4), "spread": spreads,
        },
    ]  # fmt: skip


def main() -> None:
    """Print a line for each case, and write all."""
    parser = options(__doc__)
    parser.add_argument("--families", nargs="*", default=expert_families(), help="default: every one; none: skip them")
    parser.add_argument("--dtype", choices=DTYPES, nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--implementation", nargs="+", default=["grouped_mm"])
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    families, costs = [], []
    for family in given.families:
        for row in family_rows(family):
            families.append(row)
            print(*row.values(), flush=True)
    for dtype, threads, implementation in itertools.product(given.dtype, given.threads, given.implementation):
        narrow = dtype != "float32"  # products of bfloat16 are slow where the processor has none
        size = (HIDDEN // 4, INNER // 4) if narrow else (HIDDEN, INNER)
        for row in overhead(*size, 1, TOKENS, dtype, threads, implementation, given.rounds):
            costs.append(row)
            print(*row.values(), flush=True)
        gc.collect()
    record(given.json, {"families": families, "overhead": costs})


if __name__ == "__main__":
    main()

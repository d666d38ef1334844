"""What is compared, for one family of models: every site, logits under taps, a transfer."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from act.editing.transfer import transfer
from act.models.channels import ChannelSpace
from act.models.coverage import grouped
from act.models.views import language_view
from act.profiles.moments import Moments
from act.profiles.profile import Profile
from act.profiling.measure import profile
from act.ranking.channel_set import ChannelSet
from act.taps.tapped import taps

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from site_reference import DECODER, Reference, block_of, inputs_of, texts_of, weights_of
from tiny_families import HEADS

Batch = dict[str, torch.Tensor]
SHARE = 0.3
ENOUGH = 1e-5
VOCABULARY, PADDING = 200, 1
"""The ids of tokens are below this number, those of padding are this one."""


def batch_of(lengths: list[int], left: bool, block: int = 1) -> Batch:
    """Sequences of these lengths, with some tokens that do not count, and padding to whole blocks."""
    generator = torch.Generator().manual_seed(sum(lengths))
    texts = [torch.randint(10, VOCABULARY, (length,), generator=generator) for length in lengths]
    return batch_from(texts, left, block)


def batch_from(texts: list[torch.Tensor], left: bool, block: int = 1) -> Batch:
    """Sequences of token ids, padded on one side, with some tokens that do not count."""
    generator = torch.Generator().manual_seed(len(texts))
    longest = max(map(len, texts))
    longest += -longest % block
    held = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
    held = held.flip(1) if left else held
    ids = torch.full(held.shape, PADDING)
    ids[held] = torch.cat(texts)
    counted = held & (torch.rand(ids.shape, generator=generator) < 0.6)
    counted[torch.arange(len(texts)), held.long().argmax(1)] = True
    return {"input_ids": ids, "attention_mask": held.long(), "count_mask": counted}


def batches_for(model: nn.Module) -> dict[str, Batch]:
    """By what is hard about them."""
    return with_positions(
        model,
        {
            "batch = length = heads": _of_texts(model, [HEADS] * HEADS, [HEADS] * HEADS, False),
            "right": _of_texts(model, [5, 3, 6], [2, 7, 4], False),
            "left": _of_texts(model, [4, 7, 2], [6, 3, 8], True),
        },
    )


def with_positions(model: nn.Module, batches: dict[str, Batch]) -> dict[str, Batch]:
    """The batches, with positions on the left where the model takes them, for it counts padding otherwise."""
    if "position_ids" in inspect.signature(model.forward).parameters:
        mask = batches["left"]["attention_mask"]
        batches["left"]["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    return batches


def _of_texts(model: nn.Module, lengths: list[int], others: list[int], left: bool) -> Batch:
    """A batch, with other lengths for a decoder beside an encoder."""
    block = block_of(model)
    found = batch_of(lengths, left, block)
    if DECODER in texts_of(model):
        found |= {f"{DECODER}{name}": value for name, value in batch_of(others, left, block).items()}
    return found


def sequences(batch: Batch, padded: bool) -> list[Batch]:
    """Each row by itself, without its padding unless ``padded``."""
    rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(len(batch["input_ids"]))]
    return rows if padded else [{name: value[:, _held(row, name)] for name, value in row.items()} for row in rows]


def _held(row: Batch, name: str) -> torch.Tensor:
    """Which places of an input are no padding."""
    return row[f"{DECODER if name.startswith(DECODER) else ''}attention_mask"][0].bool()


def logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """What the model gives first."""
    with torch.no_grad():
        found = model(**inputs_of(model, batch))
    first: torch.Tensor = found["logits"] if "logits" in found else found[0]
    return first


def ignores_padding(model: nn.Module, batch: Batch) -> bool:
    """Whether the model itself gives the tokens of a padded row what it gives them without padding."""
    together, mask = logits(model, batch), batch[f"{texts_of(model)[0]}attention_mask"].bool()
    for row, alone in enumerate(sequences(batch, False)):
        one, other = together[row, mask[row]] if together.dim() == 3 else together[row], logits(model, alone)[0]
        if one.shape != other.shape or (one - other).abs().max() > 1e-4 * other.abs().max():
            return False
    return True


def depends_on_other_rows(model: nn.Module, batch: Batch) -> bool:
    """Whether the model gives a row other values beside padded rows than by itself, as PaliGemma chooses its mask."""
    together = logits(model, batch)
    alone = torch.cat([logits(model, row) for row in sequences(batch, True)])
    return bool((together - alone).abs().max() > 1e-3 * alone.abs().max())


def deviations(model: nn.Module, space: ChannelSpace, batches: dict[str, Batch]) -> dict[str, Any]:
    """The largest error of all sites, fused or not, where it is, and what was not compared."""
    worst, where, unchecked, seen, missing = 0.0, "", dict[str, str](), [], set[str]()
    reference = Reference(model, space)
    for name, batch in batches.items():
        if depends_on_other_rows(model, batch):
            seen.append(f"{name} (not compared: the model gives a row other values beside padded ones)")
            continue
        measured = [profile(model, [batch], fused=fused) for fused in (True, False)]
        stripped = block_of(model) == 1 and ignores_padding(model, batch)
        for padded in [False, True] if stripped else [True]:
            reference = reference.again()
            for each in sequences(batch, padded):
                reference.add(each)
            error, site = _largest_error(space, reference, measured)
            if error <= ENOUGH:
                break  # else a site may see the padding where the logits do not
        seen.append(f"{name} (the model sees its padding)" if padded else name)
        unchecked |= reference.unchecked
        missing |= {s.name for s in space if reference.of(s) is not None and not measured[0].space.site(s.name).layouts}
        if error > worst:
            worst, where = error, f"{site} ({name})"
    return {"error": worst, "where": where, "unchecked": unchecked, "batches": seen, "missing": missing}


def _largest_error(space: ChannelSpace, reference: Reference, measured: list[Profile]) -> tuple[float, str]:
    """The largest error of all sites, and the site."""
    read = {site.name for each in measured for site in each.space if site.layouts or site.scales}
    known = [site for site in space if site.name not in reference.unchecked and site.name in read]
    errors = {site.name: max(_error(reference.of(site), each.site(site.name)) for each in measured) for site in known}
    site = max(errors, key=errors.__getitem__, default="")
    return errors.get(site, 0.0), site


def _error(rows: torch.Tensor | None, statistics: Any) -> float:
    count = 0 if rows is None else len(rows)
    if not (statistics.count == count).all():
        return math.inf
    if rows is None or not count or not (largest := float(rows.abs().max())):
        return 0.0
    mean = (statistics.mean - rows.mean(0)).abs().max() / largest
    variance = (statistics.var - rows.var(0, correction=0)).abs().max() / largest**2
    return float(max(mean, variance))


class Tapped(NamedTuple):
    """How far logits under taps are from plain ones, relative to the largest; by site its path, or why it has none."""

    error: float
    paths: dict[str, str]
    unread: dict[str, str]


def under_taps(model: nn.Module, space: ChannelSpace, batches: dict[str, Batch], fused: bool) -> Tapped:
    """The logits of every batch, and how sites are read."""
    worst, paths, unread = 0.0, {}, {}
    for batch in batches.values():
        plain = logits(model, batch)
        with torch.no_grad(), taps(model, Moments(space), fused=fused) as tapped:
            masks = [batch[f"{text}count_mask"] for text in texts_of(model)]
            tapped.start(masks[0], masks[1] if len(masks) > 1 else None)
            found = logits(model, batch)
            paths, unread = dict(tapped.paths), dict(tapped.unread)
        worst = max(worst, 0.0 if torch.equal(plain, found) else float((plain - found).abs().max() / plain.abs().max()))
    return Tapped(worst, paths, unread)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def exact_transfer(donor: nn.Module, target: nn.Module, space: ChannelSpace) -> tuple[bool, set[str]]:
    """Whether a transfer of random channels is an edit by hand; sites that are not known by hand are left out."""
    expected = copy.deepcopy(target)
    given, taken = weights_of(language_view(donor)), weights_of(language_view(expected))
    owned = [site for site in space if site.tied_to is None]
    unknown = {site.name for site in owned if taken(site) is None}
    every = [torch.arange(site.offset, site.offset + site.width) for site in owned if site.name not in unknown]
    index = torch.cat(every)
    index = index[torch.rand(len(index), generator=torch.Generator().manual_seed(0)) < SHARE]
    channels, before = ChannelSet(space, index, torch.zeros(len(index))), state(target)
    for site, rows in space.split(channels.index):
        for new, old in zip(given(site) or (), taken(site) or (), strict=True):
            old[rows] = new[rows]
    patch = transfer(donor, target, channels, 1)
    moved = same(state(target), state(expected))
    patch.revert(target)
    return moved and same(state(target), before), unknown


def by_name(reasons: dict[str, str]) -> dict[str, str]:
    """The reasons by names whose numbers are stars."""
    return {name: reason for each, reason in reasons.items() for name in grouped({each: 0})}


def measure(name: str, donor: nn.Module, target: nn.Module, batches: dict[str, Batch]) -> dict[str, Any]:
    """The line of a family."""
    space = ChannelSpace.from_model(target)
    coverage = space.coverage
    assert coverage is not None
    found = deviations(language_view(target), space, batches)
    plain, fused = (under_taps(target, space, batches, fused=fused) for fused in (False, True))
    scaled = {site.name: "those that it scales" for site in space if site.scales is not None}
    paths = {site.name: "not read" for site in space} | scaled | fused.paths
    exact, by_hand = exact_transfer(donor, target, space)
    row: dict[str, Any] = {
        "family": name,
        "coverage": round(coverage.share, 6),
        "max_rel_error": found["error"],
        "logits_bit_equal": plain.error == 0,
        "fused_logits_error": fused.error,
        "transfer_exact": exact,
        "sites": len(space.sites),
        "paths": dict(Counter(paths[site.name] for site in space).most_common()),
        "batches": found["batches"],
    }
    if row["max_rel_error"] > ENOUGH:
        row["worst"] = found["where"]
    if coverage.uncovered:
        row["uncovered"] = coverage.why
    if fused.unread:
        row["not_read"] = by_name(fused.unread)
    row |= {"unchecked": by_name(found["unchecked"])} if found["unchecked"] else {}
    unread = found["missing"] & fused.unread.keys()
    row |= {"could_be_read": sorted(by_name(dict.fromkeys(unread, "")))} if unread else {}
    row |= {"not_moved_by_hand": sorted(by_name(dict.fromkeys(by_hand, "")))} if by_hand else {}
    return row

"""Profiles: what a run measured, with the channel space and where it came from, in one safetensors file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from act.channels import ChannelSpace
from act.corpus import DEFAULT_TOKEN_BUDGET, Corpus
from act.errors import ActError
from act.files import load_tensors, save_tensors, understood
from act.fingerprint import fingerprint
from act.moments import Moments
from act.pair import common_space, lockstep
from act.placement import input_device, run_devices
from act.taps import taps
from act.versions import versions
from act_kernels import PAIR, STATISTICS
from act_kernels.backends import choose
from act_kernels.statistics import COUNT, M2, MAX_ABS, MEAN, POSITIVE, SUM_ABS

Batch = Mapping[str, torch.Tensor]

SCHEMA = "act-profile/1"


@dataclass
class Seen:
    """What a run has fed to the model so far: tokens without padding, those that counted, padding, and sequences."""

    tokens: int = 0
    counted: int = 0
    padding: int = 0
    sequences: int = 0


Progress = Callable[[Seen], None]
"""Called after each batch."""


class Statistics:
    """Finalised statistics of a block ``[7, N]``: flat float64 vectors; NaN where no finite value was counted."""

    def __init__(self, block: torch.Tensor) -> None:
        self._block = block

    @property
    def count(self) -> torch.Tensor:
        """Finite values counted."""
        return self._block[COUNT]

    @property
    def mean(self) -> torch.Tensor:
        """Mean."""
        return torch.where(self.count > 0, self._block[MEAN], torch.nan)

    @property
    def var(self) -> torch.Tensor:
        """Population variance, ``M2 / count``."""
        return self._block[M2] / self.count

    @property
    def mean_abs(self) -> torch.Tensor:
        """Mean of absolute values."""
        return self._block[SUM_ABS] / self.count

    @property
    def max_abs(self) -> torch.Tensor:
        """Largest absolute value."""
        return torch.where(self.count > 0, self._block[MAX_ABS], torch.nan)

    @property
    def positive_rate(self) -> torch.Tensor:
        """Share of values above zero."""
        return self._block[POSITIVE] / self.count


class Profile(Statistics):
    """The statistics of one model over a corpus.

    Attributes:
        moments: the arena ``[7, N]``.
        source: provenance as plain data: model, corpus, settings, versions.
    """

    def __init__(self, moments: Moments, source: dict[str, Any]) -> None:
        super().__init__(self._own_block(moments))
        self.moments = moments
        self.source = source

    @staticmethod
    def _own_block(moments: Moments) -> torch.Tensor:
        return moments.arena

    @property
    def space(self) -> ChannelSpace:
        """The channel space of the vectors."""
        return self.moments.space

    def site(self, name: str) -> Statistics:
        """The same vectors for one site, ``[width]`` each."""
        return Statistics(self._block[:, self.space.site(name).channels])

    def __add__(self, other: Profile) -> Profile:
        """The profile of both corpora together; raises ActError unless kind, models and settings agree."""
        if type(self) is not type(other):
            raise ActError(f"cannot add a {type(other).__name__} to a {type(self).__name__}")
        require_same_models(self, other)
        merged = Moments(self.space, pair=self.moments.pair)
        merged.arena.copy_(self.moments.arena)
        merged.merge(other.moments)
        source = {**self.source, "corpora": [*self.source["corpora"], *other.source["corpora"]]}
        return type(self)(merged, source)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the profile; raises ActError if ``path`` exists and ``force`` is False, or the disk is full."""
        arena = self.moments.arena.cpu()
        blocks = dict(zip(PAIR, arena, strict=True)) if self.moments.pair else {"": arena}
        tensors = {
            f"{side}.{statistic}".lstrip("."): row
            for side, block in blocks.items()
            for statistic, row in zip(STATISTICS, block, strict=True)
        }
        header = {"space": self.space.to_json(), "source": self.source, "pair": self.moments.pair}
        save_tensors(Path(path), tensors, SCHEMA, header, force=force)


class PairProfile(Profile):
    """The statistics of donor and target over the same tokens, and of donor - target.

    The plain vectors (``mean``, ``var``, …) and ``site`` are the target's; ``donor`` and ``target`` give either side.
    """

    @staticmethod
    def _own_block(moments: Moments) -> torch.Tensor:
        return moments.arena[PAIR.index("target")]

    @property
    def donor(self) -> Statistics:
        """The donor's statistics."""
        return Statistics(self.moments.arena[PAIR.index("donor")])

    @property
    def target(self) -> Statistics:
        """The target's statistics."""
        return Statistics(self._block)

    @property
    def difference(self) -> Statistics:
        """The statistics of donor - target."""
        return Statistics(self.moments.arena[PAIR.index("difference")])

    @property
    def mean_diff(self) -> torch.Tensor:
        """Mean of donor - target."""
        return self.difference.mean

    @property
    def var_diff(self) -> torch.Tensor:
        """Population variance of donor - target."""
        return self.difference.var

    @property
    def mean_abs_diff(self) -> torch.Tensor:
        """Mean of ``|donor - target|``: the paper's score (eq. 2)."""
        return self.difference.mean_abs


def require_same_models(first: Profile, second: Profile) -> None:
    """Raise :class:`ActError` unless both profiles are of the same models, saying what differs."""
    difference = first.space.first_difference(second.space)
    if difference:
        raise ActError(f"the profiles are of different architectures: {difference}")
    for side, model in first.source["models"].items():
        other = second.source["models"].get(side, {})
        if other.get("fingerprint") != model["fingerprint"]:
            raise ActError(
                f"the profiles are of different models: the {side} is {model['name']} ({model['fingerprint']}) in one "
                f"and {other.get('name')} ({other.get('fingerprint')}) in the other; profile the same models for both"
            )


def load(path: str | Path) -> Profile:
    """Read a profile or pair profile; raises ActError if it is missing, damaged or of another schema version."""
    tensors, header = load_tensors(Path(path), SCHEMA)
    with understood(Path(path)):
        moments = Moments(ChannelSpace.from_json(header["space"]), pair=header["pair"])
        sides = [f"{side}." for side in PAIR] if header["pair"] else [""]
        blocks = [torch.stack([tensors[side + statistic] for statistic in STATISTICS]) for side in sides]
        moments.arena.copy_(torch.stack(blocks) if header["pair"] else blocks[0])
        return (PairProfile if header["pair"] else Profile)(moments, dict(header["source"]))


def profile(
    model: nn.Module,
    corpus: Corpus | Iterable[Batch],
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    exclude: Iterable[str] = (),
    fused: bool = True,
    progress: Progress | None = None,
) -> Profile:
    """Stream ``corpus`` through ``model`` and accumulate the statistics of every channel.

    Args:
        model: a Hugging Face decoder model; it computes what it would compute anyway, and is left as it was.
        corpus: a :class:`act.Corpus`, or batches: dicts of ``input_ids``, ``attention_mask`` and optionally
            ``count_mask``, all ``[batch, length]``; without ``count_mask`` every attended token counts.
        token_budget: tokens a batch, for a Corpus.
        exclude: module kinds not to measure; without ``head`` the LM head does not run at all.
        fused: let statistics ride inside fused kernels; without it, every site is read by itself.
        progress: see :data:`Progress`.

    Raises:
        ActError: nothing was counted; a malformed record; a site whose output has no known shape.
    """
    space = ChannelSpace.from_model(model)
    moments = Moments(space, device=run_devices(model, (site.name for site in space)))
    exclude = sorted(exclude)
    settings = {"token_budget": token_budget, "exclude": exclude, "fused": fused}
    with taps(model, moments, fused=fused, exclude=exclude) as tapped:
        measured = _stream(tapped.forward, corpus, input_device(model), progress, moments, settings)
        measured["paths"] = dict(Counter(tapped.paths.values()))
    return Profile(moments, _source({"model": model}, corpus, measured, settings))


def profile_pair(
    donor: nn.Module,
    target: nn.Module,
    corpus: Corpus | Iterable[Batch],
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    exclude: Iterable[str] = (),
    fused: bool = True,
    progress: Progress | None = None,
) -> PairProfile:
    """Stream ``corpus`` through both models in lockstep; arguments and errors as :func:`profile`.

    Raises:
        ActError: also when the models are not of one architecture, naming the site that differs.
    """
    space = common_space(donor, target)
    moments = Moments(space, pair=True, device=run_devices(donor, (site.name for site in space)))
    exclude = sorted(exclude)
    settings = {"token_budget": token_budget, "exclude": exclude, "fused": fused}
    with lockstep(donor, target, moments, fused=fused, exclude=exclude) as run:
        measured = _stream(run.forward, corpus, input_device(target), progress, moments, settings)
        measured["paths"] = dict(Counter(run.paths.values()))
    return PairProfile(moments, _source({"donor": donor, "target": target}, corpus, measured, settings))


def _stream(
    forward: Callable[[Batch, torch.Tensor], None],
    corpus: Corpus | Iterable[Batch],
    device: torch.device,
    progress: Progress | None,
    moments: Moments,
    settings: dict[str, Any],
) -> dict[str, Any]:
    stream = corpus.batches(settings["token_budget"]) if isinstance(corpus, Corpus) else corpus
    seen = Seen()
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in stream:
            attended = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            count_mask = batch["count_mask"].bool() & attended if "count_mask" in batch else attended
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "count_mask"}
            forward(inputs, count_mask)
            seen.tokens += int(attended.sum())
            seen.counted += int(count_mask.sum())
            seen.padding += int((~attended).sum())
            seen.sequences += len(attended)
            if progress:
                progress(seen)
    if not seen.counted:
        raise ActError("no token was counted; the corpus is empty or its count masks are all False")
    moments.gather()
    return {
        **asdict(seen),
        "seconds": round(time.perf_counter() - start, 3),
        "nonfinite": moments.nonfinite(),
        "irregular": _irregular(moments, seen.counted, settings["exclude"]),
    }


def _irregular(moments: Moments, counted: int, exclude: Iterable[str]) -> dict[str, int]:
    """Sites not fed a whole number of times the counted tokens (never reached, or routed), with the rows they saw."""
    rows = {site.name: moments.rows_counted(site.name) for site in moments.space.without(exclude)}
    return {name: seen for name, seen in rows.items() if seen == 0 or seen % counted}


def _source(
    models: dict[str, nn.Module], corpus: Corpus | Iterable[Batch], measured: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    described: dict[str, Any] = {"name": "batches", "fingerprint": None, **measured}
    if isinstance(corpus, Corpus):
        described.update(name=corpus.name, fingerprint=corpus.fingerprint, count=corpus.count)
    device = input_device(next(iter(models.values())))
    return {
        "models": {
            side: {
                "name": getattr(model, "name_or_path", "") or type(model).__name__,
                "fingerprint": fingerprint(model),
            }
            for side, model in models.items()
        },
        "corpora": [described],
        "settings": {**settings, "backend": choose(device.type).backend.name},
        "versions": versions(),
    }

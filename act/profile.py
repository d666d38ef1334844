"""Profiles: what a run measured, with the channel space and where it came from, in one safetensors file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from act.channels import ChannelSpace
from act.checkpoint import Checkpoint
from act.corpus import Corpus
from act.errors import ActError
from act.files import load_tensors, save_tensors, understood
from act.job import Corpora, Job
from act.moments import Moments
from act_kernels import PAIR, STATISTICS
from act_kernels.statistics import COUNT, M2, MAX_ABS, MEAN, POSITIVE, SUM_ABS

SCHEMA = "act-profile/1"


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

    @property
    def pair(self) -> bool:
        """Whether donor and target were measured."""
        return self.moments.pair

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


class StoredProfile:
    """A profile on disk of which only the header was read; raises ActError as :func:`load`.

    Attributes:
        space, pair, source: those of the profile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _, header = load_tensors(path, SCHEMA, header_only=True)
        with understood(path):
            self.space = ChannelSpace.from_json(header["space"])
            self.pair = bool(header["pair"])
            self.source: dict[str, Any] = dict(header["source"])

    def load(self) -> Profile:
        """The whole profile."""
        return load(self.path)


def require_same_models(first: Profile | StoredProfile, second: Profile | StoredProfile) -> None:
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


def profile(model: nn.Module, corpora: Corpora, *, checkpoint: Checkpoint | None = None, **options: Any) -> Any:
    """Stream corpora through ``model`` once and accumulate the statistics of every channel.

    Args:
        model: a Hugging Face decoder model; it computes what it would compute anyway, and is left as it was.
        corpora: an :class:`act.Corpus`; several by the ability that each exercises; or batches: dicts of ``input_ids``,
            ``attention_mask``, optionally ``count_mask`` and ``ability`` (:func:`act.batching.given_batches`).
        checkpoint: where to keep the state of the run, to go on from it after whatever happens.
        options: those of :class:`act.job.Job`.

    Returns:
        A :class:`Profile`; for several corpora, or rows labelled by ability, a dict of them by ability.

    Raises:
        ActError: nothing was counted; a malformed record; a site whose output has no known shape; a tokenizer that is
            not the model's; a checkpoint of another run.
    """
    _require_arguments({"model": model}, corpora)
    return run_job(Job({"model": model}, corpora, **options), checkpoint)


def profile_pair(
    donor: nn.Module, target: nn.Module, corpora: Corpora, *, checkpoint: Checkpoint | None = None, **options: Any
) -> Any:
    """Stream corpora through both models in lockstep; arguments and errors as :func:`profile`.

    Returns:
        A :class:`PairProfile`, or a dict of them by ability.

    Raises:
        ActError: also when the models are not of one architecture, naming the site that differs.
    """
    _require_arguments({"donor": donor, "target": target}, corpora)
    return run_job(Job({"donor": donor, "target": target}, corpora, **options), checkpoint)


def _require_arguments(models: Mapping[str, Any], corpora: Any) -> None:
    for side, model in models.items():
        if not isinstance(model, nn.Module):
            raise ActError(
                f"the {side} is of type {type(model).__name__}; expected a model that act.loading.load_model loaded"
            )
    expected = "an act.Corpus (from_file, from_records), a dict of them by ability, or batches"
    if isinstance(corpora, (str, Path)):
        raise ActError(f"the corpus is given by its name, {corpora}; expected {expected}")
    if isinstance(corpora, Mapping) and not (
        corpora and all(isinstance(corpus, Corpus) for corpus in corpora.values())
    ):
        held = ", ".join(sorted({type(corpus).__name__ for corpus in corpora.values()})) or "nothing"
        raise ActError(f"the corpora are a dict that holds {held}; expected {expected}, such as a list of them")
    if not isinstance(corpora, (Corpus, Iterable)):
        raise ActError(f"the corpus is of type {type(corpora).__name__}; expected {expected}")


def run_job(job: Job, checkpoint: Checkpoint | None = None) -> Any:
    """The profile of a job, or a dict of them by ability."""
    kind = PairProfile if job.pair else Profile
    profiles = {ability: kind(moments, source) for ability, moments, source in job.run(checkpoint)}
    return profiles if job.named or set(profiles) != {""} else profiles[""]

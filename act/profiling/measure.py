"""Profile one model, or a pair of models, over corpora."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import nn

from act.core.errors import ActError
from act.data.corpus import Corpus
from act.data.records import Shard
from act.models.loading import require_model
from act.profiles.profile import PairProfile, Profile
from act.profiling.checkpoint import Checkpoint
from act.profiling.dtype_speed import warn_of_half
from act.profiling.job import Corpora, Job, JobOptions, Packing, PairJobOptions, SharedPrefix, TokenBudget
from act.profiling.observer import Observer

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = TypeVar("P", bound=Profile)


@overload
def profile(
    model: nn.Module,
    corpora: Corpus | Iterable[Mapping[str, Any]],
    *,
    checkpoint: Checkpoint | None = None,
    **options: Unpack[JobOptions],
) -> Profile: ...


@overload
def profile(
    model: nn.Module,
    corpora: Mapping[str, Corpus],
    *,
    checkpoint: Checkpoint | None = None,
    **options: Unpack[JobOptions],
) -> dict[str, Profile]: ...


def profile(
    model: nn.Module,
    corpora: Corpora,
    *,
    checkpoint: Checkpoint | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    fused: bool = True,
    moe_all_experts: bool = False,
    token_budget: TokenBudget = None,
    packing: Packing = "auto",
    shared_prefix: SharedPrefix = "auto",
    shard: Shard = (0, 1),
    workers: int = 0,
    skip_bad_records: int = 0,
    look_ahead: int | None = None,
    observers: Sequence[Observer] = (),
) -> Profile | dict[str, Profile]:
    """Stream corpora through ``model`` once and accumulate the statistics of every channel.

    Args:
        model: a Hugging Face language model; its outputs do not change, and it is left as it was.
        corpora: an :class:`act.Corpus`; several, by the ability that each exercises; or batches: dicts of
            ``input_ids``, optionally ``attention_mask`` and ``count_mask`` (all ``[batch, length]``; without a
            ``count_mask`` every attended token counts), and ``ability`` (``[batch]``).
        checkpoint: where to keep the state of the run, so that it can continue after any interruption.
        include, exclude: module kinds, or patterns of site names, of the only sites to measure, and of those not to;
            the model runs no further than the last site that is measured.
        fused: collect statistics inside fused kernels; if False, every site is read separately.
        moe_all_experts: measure every expert on every token, not only on those that are routed to it; what the model
            computes stays the same, and takes as much longer as it has experts for each that a token meets.
        token_budget: tokens per batch, padding included; None: 2048 on a CPU, 8192 on a GPU; ``"auto"``: what the free
            memory of a GPU allows.
        packing: put several pieces in one row without padding; ``"auto"``: if the model's attention computes no
            scores between pieces.
        shared_prefix: ``"auto"``: compute once what sequences begin with alike, if the model gives the same behind
            keys and values that it kept, and packing is not ``"on"``; ``"off"``: compute every sequence whole.
        shard: ``(i, n)``: every n-th record of each corpus, starting with the i-th.
        workers: processes that tokenise; 0: a thread of this process.
        skip_bad_records: how many bad records to skip before giving up.
        look_ahead: records sorted by length together; None: 2048, or fewer if an observer needs that.
        observers: called between batches, such as :class:`act.UntilStable`.

    Returns:
        A :class:`Profile`; for several corpora, or records labelled by ability, a dict of them by ability.

    Raises:
        ActError: nothing was counted; a malformed record; a site whose output has an unknown shape; the tokenizer of
            another model; a checkpoint of another run.

    >>> profile = act.profile(model, corpus)
    >>> len(profile.mean) == len(profile.space)
    True
    """
    _look_at({"model": model}, corpora)
    job = Job(
        {"model": model},
        corpora,
        include=include,
        exclude=exclude,
        fused=fused,
        moe_all_experts=moe_all_experts,
        token_budget=token_budget,
        packing=packing,
        shared_prefix=shared_prefix,
        shard=shard,
        workers=workers,
        skip_bad_records=skip_bad_records,
        look_ahead=look_ahead,
        observers=observers,
    )
    return _profiles(job, checkpoint, Profile)


@overload
def profile_pair(
    donor: nn.Module,
    target: nn.Module,
    corpora: Corpus | Iterable[Mapping[str, Any]],
    *,
    checkpoint: Checkpoint | None = None,
    **options: Unpack[PairJobOptions],
) -> PairProfile: ...


@overload
def profile_pair(
    donor: nn.Module,
    target: nn.Module,
    corpora: Mapping[str, Corpus],
    *,
    checkpoint: Checkpoint | None = None,
    **options: Unpack[PairJobOptions],
) -> dict[str, PairProfile]: ...


def profile_pair(
    donor: nn.Module,
    target: nn.Module,
    corpora: Corpora,
    *,
    checkpoint: Checkpoint | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    fused: bool = True,
    moe_all_experts: bool = False,
    token_budget: TokenBudget = None,
    packing: Packing = "auto",
    shared_prefix: SharedPrefix = "auto",
    swap: bool = False,
    shard: Shard = (0, 1),
    workers: int = 0,
    skip_bad_records: int = 0,
    look_ahead: int | None = None,
    observers: Sequence[Observer] = (),
) -> PairProfile | dict[str, PairProfile]:
    """Stream corpora through both models in lockstep, and accumulate the statistics of both and of their difference.

    Args:
        donor: the model that has the ability.
        target: the model that lacks it, of the same architecture.
        corpora: as :func:`profile` takes them.
        swap: apply the donor's modules to the target's inputs, too, for the scores ``match`` and ``match-contrast``:
            the statistics ``swap`` and ``product`` of :class:`act.profiles.statistics.PairStatistics`. It takes half
            as long again.
        checkpoint, include, exclude, fused, moe_all_experts, token_budget, packing: as in :func:`profile`.
        shared_prefix, shard, workers, skip_bad_records, look_ahead, observers: as in :func:`profile`.

    Returns:
        A :class:`PairProfile`; for several corpora, or records labelled by ability, a dict of them by ability.

    Raises:
        ActError: as :func:`profile`; the models differ in architecture: the message names the first site that differs.

    >>> pair = act.profile_pair(donor, target, corpus)
    >>> bool((pair.mean_diff - (pair.donor.mean - pair.target.mean)).abs().max() < 1e-6)
    True
    """
    _look_at({"donor": donor, "target": target}, corpora)
    job = Job(
        {"donor": donor, "target": target},
        corpora,
        include=include,
        exclude=exclude,
        fused=fused,
        moe_all_experts=moe_all_experts,
        token_budget=token_budget,
        packing=packing,
        shared_prefix=shared_prefix,
        swap=swap,
        shard=shard,
        workers=workers,
        skip_bad_records=skip_bad_records,
        look_ahead=look_ahead,
        observers=observers,
    )
    return _profiles(job, checkpoint, PairProfile)


def _look_at(models: Mapping[str, nn.Module], corpora: object) -> None:
    """Refuse what is neither model nor text, and warn of models in a slow type."""
    for side, model in models.items():
        require_model(f"the {side}", model)
    require_corpora(corpora)
    for model in models.values():
        warn_of_half(model)


def require_corpora(corpora: object) -> None:
    """Raise :class:`ActError` unless these are :data:`act.profiling.job.Corpora`."""
    expected = "an act.Corpus (from_file, from_records), a dict of them by ability, or batches"
    if isinstance(corpora, (str, Path)):
        raise ActError(f"the corpus is a path, {corpora}; expected {expected}")
    if isinstance(corpora, Mapping) and not (
        corpora and all(isinstance(corpus, Corpus) for corpus in corpora.values())
    ):
        held = ", ".join(sorted({type(corpus).__name__ for corpus in corpora.values()})) or "nothing"
        raise ActError(f"the corpora are a dict that holds {held}; expected {expected}, such as a list of them")
    if not isinstance(corpora, (Corpus, Iterable)):
        raise ActError(f"the corpus is of type {type(corpora).__name__}; expected {expected}")


def run_job(job: Job, checkpoint: Checkpoint | None = None) -> Profile | dict[str, Profile]:
    """The profile of a job, or a dict of profiles by ability; pair profiles for a pair run."""
    return _profiles(job, checkpoint, PairProfile if job.pair else Profile)


def _profiles(job: Job, checkpoint: Checkpoint | None, kind: type[P]) -> P | dict[str, P]:
    profiles = {ability: kind(moments, provenance) for ability, moments, provenance in job.run(checkpoint)}
    return profiles if job.named or set(profiles) != {""} else profiles[""]

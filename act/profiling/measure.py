"""Profile one model, or a pair of models, over corpora."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from act.core.errors import ActError
from act.data.corpus import Corpus
from act.profiles.profile import PairProfile, Profile
from act.profiling.checkpoint import Checkpoint
from act.profiling.job import Corpora, Job


def profile(model: nn.Module, corpora: Corpora, *, checkpoint: Checkpoint | None = None, **options: Any) -> Any:
    """Stream corpora through ``model`` once and accumulate the statistics of every channel.

    Args:
        model: a Hugging Face decoder model; it computes what it would compute anyway, and is left as it was.
        corpora: an :class:`act.Corpus`; several by the ability that each exercises; or batches: dicts of ``input_ids``,
            ``attention_mask``, optionally ``count_mask`` and ``ability`` (:func:`act.data.batching.given_batches`).
        checkpoint: where to keep the state of the run, to go on from it after whatever happens.
        options: those of :class:`act.profiling.job.Job`.

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
            raise ActError(f"the {side} is of type {type(model).__name__}; expected a model that from_pretrained gave")
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
    profiles = {ability: kind(moments, provenance) for ability, moments, provenance in job.run(checkpoint)}
    return profiles if job.named or set(profiles) != {""} else profiles[""]

"""Attribution runs: how the loss over each document would change if a channel moved from the target to the donor.

Activations say how differently two models use a channel; they do not say whether moving it helps. Gradients do, to
first order: the first-order term of Taylor pruning (Molchanov et al., arXiv 1611.06440) along the direction of the
transfer.
A run streams, stops and goes on as a profile does; its documents are what it takes statistics of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, overload

import torch
from torch import nn

from act.core.errors import ActError, option
from act.data.batching import Batch
from act.data.corpus import Corpus, require_corpus
from act.data.digests import same_text
from act.data.records import Shard
from act.data.stream import nothing_predicted
from act.models.calls import require_decoder
from act.models.distance import weight_diff
from act.models.limits import default_token_budget, token_budget_of
from act.models.loading import require_model
from act.models.placement import input_device
from act.profiles.attribution import AttributionProfile
from act.profiles.moments import Moments
from act.profiles.provenance import Provenance
from act.profiling.checkpoint import Checkpoint
from act.profiling.defaults import KEPT
from act.profiling.dtype_speed import warn_of_half
from act.profiling.job import Corpora, Job, TokenBudget
from act.profiling.measure import require_corpora
from act.profiling.observer import Observer
from act.profiling.plan import Shape
from act.profiling.ranks import Ranks
from act.profiling.run import Run, Tapped
from act.profiling.stability import StableScore
from act.taps.attributed import Attributed, require_steps
from act.taps.loss import NotFinite

if TYPE_CHECKING:
    from typing_extensions import Unpack

Keep = Corpus | Sequence[Corpus] | Mapping[str, Corpus]
"""A text of what the target should keep, or several, in order or by name."""


class AttributionOptions(TypedDict, total=False):
    """The keywords of :func:`attribute`, as it describes them."""

    include: str | Iterable[str]
    exclude: str | Iterable[str]
    token_budget: TokenBudget
    shard: Shard
    workers: int
    skip_bad_records: int
    look_ahead: int | None
    observers: Sequence[Observer]
    recompute: bool


@overload
def attribute(
    donor: nn.Module,
    target: nn.Module,
    corpora: Corpus | Iterable[Mapping[str, Any]],
    *,
    keep: Keep | None = None,
    checkpoint: Checkpoint | None = None,
    **options: Unpack[AttributionOptions],
) -> AttributionProfile: ...


@overload
def attribute(
    donor: nn.Module,
    target: nn.Module,
    corpora: Mapping[str, Corpus],
    *,
    keep: Keep | None = None,
    checkpoint: Checkpoint | None = None,
    **options: Unpack[AttributionOptions],
) -> dict[str, AttributionProfile]: ...


def attribute(
    donor: nn.Module,
    target: nn.Module,
    corpora: Corpora,
    *,
    keep: Keep | None = None,
    checkpoint: Checkpoint | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    token_budget: TokenBudget = None,
    shard: Shard = (0, 1),
    workers: int = 0,
    skip_bad_records: int = 0,
    look_ahead: int | None = None,
    observers: Sequence[Observer] = (),
    recompute: bool = True,
) -> AttributionProfile | dict[str, AttributionProfile]:
    """Measure how the target's loss would change if each channel moved to the donor, document by document.

    The loss is over the answer tokens, or over all but the first of a corpus that counts ``all``; a corpus of answer
    tokens and one of the positions that predict them therefore give the same. One pass with gradients over the target;
    the donor only gives its parameters, so it may stay on the CPU. No gradient of a parameter is stored.
    (``act.attribution`` is no function, but a module: the same as two plain vectors, for formulas of your own.)

    Args:
        donor: the model that has the ability.
        target: the model that lacks it, of the same architecture; it is left as it was.
        corpora: texts of the ability, as :func:`act.profile` takes them.
        keep: texts of what the target should keep, measured in the same run and held in the result: ranking spares the
            channels that they need.
        recompute: keep only what enters each layer and compute the rest again on the way back: a third more work, and
            memory for the activations of one layer; False: the activations of all.
        token_budget: tokens per batch, padding included; None: 2048 on a CPU, 4096 on a GPU; ``"auto"``: what half of
            the free memory holds of a target's activations and their gradients.
        checkpoint, include, exclude, shard, workers, skip_bad_records, look_ahead, observers: as in
            :func:`act.profile`.

    Returns:
        An :class:`act.AttributionProfile`; for several corpora, or records labelled by ability, a dict of them.

    Raises:
        ActError: a model without a loss over its text, or with weights that are quantised or offloaded; models that do
            not differ, or hold NaN; no token to predict; a loss that is NaN or infinite; a text to keep that is the
            ability's.

    >>> found = act.attribute(donor, target, corpus)
    >>> channels = act.rank(found, "attribution", count=10)  # where the loss would fall most
    >>> len(channels)
    10
    """
    for side, model in (("donor", donor), ("target", target)):
        require_model(f"the {side}", model)
    require_corpora(corpora)
    for model in (donor, target):
        warn_of_half(model)
    job = AttributionJob(
        donor,
        target,
        corpora,
        keep=keep,
        recompute=recompute,
        include=include,
        exclude=exclude,
        token_budget=token_budget,
        shard=shard,
        workers=workers,
        skip_bad_records=skip_bad_records,
        look_ahead=look_ahead,
        observers=observers,
    )
    require_different(job)
    return job.measured(checkpoint)


def require_different(job: AttributionJob) -> None:
    """Raise :class:`ActError` where donor and target are the same, so that nothing can be attributed."""
    if not job.distance.any():
        raise ActError(
            "donor and target have the same weights, so no channel can move; give a target that was trained further, "
            "and the model that it comes from as the donor"
        )


def default_budget(device: torch.device) -> int:
    """Tokens per batch: on a GPU half of those of a profile, which leaves room for a model of 7 B on 24 GB."""
    usual = default_token_budget(device)
    return usual if device.type == "cpu" else usual // 2


class AttributionRun(Run):
    """A run whose batches say which positions predict a token of the loss."""

    names: Mapping[str, str]
    """What texts are called, by ability."""

    def _forward(self, batch: Batch, moments: Moments) -> None:
        try:
            super()._forward(batch, moments)
        except NotFinite as found:
            number = int(batch.documents[found.row]) if len(batch.documents) else found.row
            name = self.names.get(batch.ability, batch.ability) or "the batch"
            asked = option("--dtype", "dtype")
            raise ActError(
                f"{name}, record {number}: the target's loss over it is {found.loss}, so it has no gradient; look for "
                f"NaN in the weights, load the target in float32 or bfloat16 ({asked}), or leave the record out"
            ) from found


class AttributionJob(Job):
    """A job that attributes the loss of a target to its channels; see :func:`attribute`.

    Args:
        donor, target, corpora, keep, recompute: as :func:`attribute` takes them.
        ranks, part, fingerprints: as :class:`act.profiling.job.Job` takes them.
        options: its other keywords.

    Attributes:
        distance: the norm of each channel's step, float64 ``[N]``.
    """

    _kind_of_run = AttributionRun
    predicts = True

    def __init__(
        self,
        donor: nn.Module,
        target: nn.Module,
        corpora: Corpora,
        *,
        keep: Keep | None = None,
        recompute: bool = True,
        ranks: Ranks | None = None,
        part: bool = False,
        fingerprints: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        require_decoder(target, "attribution", "rank its profiles by another score")
        for side, model in (("donor", donor), ("target", target)):
            require_steps(model, side)
        kept = _listed(keep)
        several = isinstance(corpora, Mapping)
        if kept:
            if not isinstance(corpora, (Corpus, Mapping)):
                raise ActError("keep needs a corpus of the ability beside it; batches are of one text")
            abilities = corpora if isinstance(corpora, Mapping) else {"": corpora}
            require_others(abilities.values(), [each.corpus for each in kept])
            corpora = {**abilities, **{f"{KEPT}{number}": each.corpus for number, each in enumerate(kept)}}
        self._kept, self._recompute = kept, recompute
        if options.get("token_budget") is None:
            options["token_budget"] = default_budget(input_device(target))
        super().__init__(
            {"donor": donor, "target": target},
            corpora,
            packing="off",
            shared_prefix="off",
            ranks=ranks,
            part=part,
            fingerprints=fingerprints,
            **options,
        )
        self.pair, self.named = False, several
        self._shifts = self._shift()
        self.settings = replace(self.settings, extra={**self.settings.extra, "measured": "attribution"})
        self.distance = weight_diff(self.models["donor"], self.models["target"], self.space)
        self._require_finite()

    @property
    def stable_scores(self) -> tuple[StableScore, ...]:
        """The fall of the loss; of a text to keep, what it would lose."""
        return ("attribution",)

    @property
    def costs(self) -> Collection[str]:
        """The texts to keep."""
        return [name for name in self.corpora if name.startswith(KEPT)]

    @property
    def _model(self) -> nn.Module:
        return self.models["target"]

    @property
    def _running(self) -> Iterable[nn.Module]:
        return [self._model]

    def measured(self, checkpoint: Checkpoint | None = None) -> AttributionProfile | dict[str, AttributionProfile]:
        """The profile, or a dict of profiles by ability, each with what was kept; nothing but on the first rank."""
        found = {ability: (moments, provenance) for ability, moments, provenance in self.run(checkpoint)}
        kept = []
        for number, each in enumerate(self._kept if found else ()):
            moments, provenance = found.pop(f"{KEPT}{number}")
            kept.append(AttributionProfile(moments, _called(provenance, each.name), self.distance))
        profiles = {
            ability: AttributionProfile(moments, provenance, self.distance, kept)
            for ability, (moments, provenance) in found.items()
        }
        return profiles if self.named or set(profiles) != {""} else profiles[""]

    def _require_finite(self) -> None:
        """Raise :class:`ActError` where a weight of either model is no number, and so the way between them is none."""
        if self.distance.isfinite().all():
            return
        site = next(site for site in self.space if not self.distance[site.channels].isfinite().all())
        weights = {side: dict(model.named_parameters(remove_duplicate=False)) for side, model in self.models.items()}
        own = [side for side, of in weights.items() if not all(of[x.key].isfinite().all() for x in site.parameters)]
        raise ActError(
            f"{site.name} of the {own[0] if own else 'models'} holds NaN or infinite values, so neither a loss nor the "
            "step from target to donor is a number; give a model that is not damaged"
        )

    def _fitting_budget(self) -> int:
        return token_budget_of(Shape.of(self._model, self.space).attributed_token(self._recompute), self.device)

    def _shift(self) -> int:
        """How many places before a counted token the position lies that predicts it: 0 if that is what counts."""
        counts = {corpus.count for corpus in self.corpora.values()}
        if "predict" in counts and len(counts) > 1:
            raise ActError(
                f"the corpora count {', '.join(sorted(counts))}, so their losses cannot be compared; give all the same "
                f"count ({option('--count', 'count')})"
            )
        return 0 if "predict" in counts else 1

    def _tapped(self) -> contextlib.AbstractContextManager[Tapped]:
        return Attributed(
            self.models["donor"],
            self.models["target"],
            Moments(self.space, device=self._places),
            include=self.settings.include,
            exclude=self.settings.exclude,
            recompute=self._recompute,
        ).attached()

    def _run_of(self, tapped: Tapped, unmasked: bool) -> Run:
        run = super()._run_of(tapped, unmasked)
        assert isinstance(run, AttributionRun)
        run.names = {ability: corpus.name for ability, corpus in self.corpora.items()}
        return run

    def _given(self) -> Iterator[Batch]:
        return (self._predicting(batch) for batch in super()._given())

    def _prepared(self, batch: Batch) -> Batch:
        return super()._prepared(self._predicting(batch))

    def _predicting(self, batch: Batch) -> Batch:
        """The batch with the positions whose next token the loss counts in the place of those that count."""
        mask = batch.count_mask
        chosen = torch.zeros_like(mask)
        chosen[:, :-1] = mask[:, self._shifts :][:, : mask.shape[1] - 1]
        attended = batch.inputs.get("attention_mask")
        if attended is not None:
            there = attended.bool().to(mask.device)
            chosen[:, :-1] &= there[:, 1:] & there[:, :-1]
        return replace(batch, count_mask=chosen)

    def _require_counted(self, run: Run) -> None:
        for ability, corpus in self.corpora.items():
            seen = run.seen.get(ability)
            if seen is not None and not seen.counted:
                raise ActError(nothing_predicted(corpus.name))
        super()._require_counted(run)

    def complete(self, moments: Moments) -> None:
        """Nothing: a parameter that scales another site has a gradient of its own."""

    def _irregular(self, moments: Moments, counted: int) -> dict[str, int]:
        return {}  # rows are documents, and a site that none reached shows in the coverage


@dataclass(frozen=True)
class _Kept:
    name: str
    corpus: Corpus


def _listed(keep: Keep | None) -> list[_Kept]:
    if keep is None:
        return []
    given = [*keep.items()] if isinstance(keep, Mapping) else [("", each) for each in _each(keep)]
    for _, corpus in given:
        require_corpus("keep", corpus)
    return [_Kept(name, corpus) for name, corpus in given]


def _each(keep: Corpus | Sequence[Corpus]) -> Sequence[Corpus]:
    return [keep] if isinstance(keep, (Corpus, str)) else keep  # a path is refused like any other


def require_others(abilities: Iterable[Corpus], kept: Iterable[Corpus]) -> None:
    """Raise :class:`ActError` where a text to keep is that of an ability, or given twice."""
    before = [*abilities]
    for corpus in kept:
        if corpus.encoder.ability_column is not None:
            raise ActError(
                f"{corpus.name} labels its records with abilities, and a text to keep is one; open it without "
                "an ability column"
            )
        if any(same_text(corpus.source, other.source) for other in before):
            raise ActError(
                f"{corpus.name} is given twice, as a text to keep and before; give what the target should keep as "
                "another text than that of the ability"
            )
        before.append(corpus)


def _called(provenance: Provenance, name: str) -> Provenance:
    return replace(provenance, corpora=tuple(replace(corpus, ability=name) for corpus in provenance.corpora))

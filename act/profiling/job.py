"""A job: which models, corpora and settings, and what distinguishes it from another job."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypedDict, get_args

from torch import nn

from act.core.errors import ActError, require_choice, require_type
from act.core.names import names_in
from act.core.versions import versions
from act.data.batching import LOOK_AHEAD, Batch, given_batches, prefetched
from act.data.corpus import Corpus
from act.data.records import Shard
from act.data.stream import Skipped, Stream, require_counted, require_first
from act.models.calls import decoder_inputs, has_decoder, reader_of
from act.models.channels import ChannelSpace
from act.models.common import common_space, same_names
from act.models.coverage import grouped_reasons
from act.models.fingerprint import fingerprint
from act.models.limits import causal, default_token_budget, packs, token_budget_for, vocabulary
from act.models.loading import code_of, name_of, type_of
from act.models.placement import input_device, require_values, run_devices
from act.models.prefix import why_unshared
from act.models.views import language_view
from act.profiles.moments import Moments
from act.profiles.provenance import CorpusIdentity, CorpusRead, ModelRead, Provenance, Settings, short_hash
from act.profiling.checkpoint import Checkpoint
from act.profiling.observer import Observer
from act.profiling.ranks import Ranks
from act.profiling.run import Run, Tapped
from act.profiling.stability import StableScore
from act.taps.lockstep import lockstep
from act.taps.tapped import TapOptions, taps
from act_kernels.backends import choose

log = logging.getLogger(__name__)

Corpora = Corpus | Mapping[str, Corpus] | Iterable[Mapping[str, Any]]
"""One corpus; several by the ability that each exercises; or batches (see :func:`act.data.batching.given_batches`)."""

Packing = Literal["auto", "on", "off"]
SharedPrefix = Literal["auto", "off"]
TokenBudget = int | Literal["auto"] | None


class JobOptions(TypedDict, total=False):
    """The keywords of :func:`act.profile`, :func:`act.profile_pair` and :class:`Job`, as the latter describes them."""

    include: str | Iterable[str]
    exclude: str | Iterable[str]
    fused: bool
    moe_all_experts: bool
    token_budget: TokenBudget
    packing: Packing
    shared_prefix: SharedPrefix
    shard: Shard
    workers: int
    skip_bad_records: int
    look_ahead: int | None
    observers: Sequence[Observer]


class PairJobOptions(JobOptions, total=False):
    """Those of :func:`act.profile_pair`."""

    swap: bool


@dataclass(frozen=True)
class JobSettings:
    """What decides the bits of a run besides its models and corpora.

    Attributes:
        token_budget: tokens per batch, padding included.
        exclude: module kinds or patterns of sites that are not measured, sorted.
        fused: whether statistics are collected inside fused kernels.
        packing: whether several pieces share a row.
        look_ahead: records sorted by length together.
        moe_all_experts: whether every expert is measured on every token.
        shared_prefix: whether what sequences begin with alike is computed once.
        swap: whether the donor's modules are applied to the target's inputs, too.
        include: module kinds or patterns of the only sites that are measured, sorted; none: all.
        extra: settings of observers, by name.
    """

    token_budget: int
    exclude: tuple[str, ...]
    fused: bool
    packing: bool
    look_ahead: int
    moe_all_experts: bool = False
    shared_prefix: bool = False
    swap: bool = False
    include: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as :class:`act.profiles.provenance.Settings` reads it."""
        return {
            "token_budget": self.token_budget,
            "exclude": list(self.exclude),
            "fused": self.fused,
            "packing": self.packing,
            "look_ahead": self.look_ahead,
            **({"moe_all_experts": True} if self.moe_all_experts else {}),
            **({"shared_prefix": True} if self.shared_prefix else {}),
            **({"swap": True} if self.swap else {}),
            **({"include": list(self.include)} if self.include else {}),
            **self.extra,
        }


class Job:
    """Everything that decides what a run counts.

    Args:
        models: ``{"model": …}``, or ``{"donor": …, "target": …}`` for a pair run.
        corpora: see :data:`Corpora`.
        include, exclude: the sites to measure and not to measure (see :meth:`ChannelSpace.without`); the model runs
            no further than the last of them.
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
        observers: called between batches; see :class:`act.profiling.observer.Observer`.
        ranks: processes that read the shard together; the first one gets the results, the others none.
        part: the corpora are parts of larger ones, so it is no error if nothing in them counts.
        fingerprints: of the models by side, if known; None: computed from all weights when needed.

    Attributes:
        named: whether the corpora were given by name.
        space: the channel space.
        left_out: names of the sites that are not to be measured.
        settings: what decides the bits besides models and corpora.
        skipped: the bad records that the last run skipped.
        predicts: whether a token counts only if there is one before it, which predicts it.

    Raises:
        ActError: a text in which no token counts; models that are not of one architecture; a maximum length beyond the
            learned positions; a model that mixes up packed pieces; an observer that cannot work with this job.
    """

    _kind_of_run: type[Run] = Run
    predicts = False

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        corpora: Corpora,
        *,
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
        ranks: Ranks | None = None,
        part: bool = False,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        require_choice("packing", packing, get_args(Packing))
        require_choice("shared prefix", shared_prefix, get_args(SharedPrefix))
        self.pair = len(models) == 2
        if swap and not self.pair:
            raise ActError("swap applies a donor's modules to a target's inputs; give a pair of models")
        views = same_names(*models.values()) if self.pair else map(language_view, models.values())
        self.models = dict(zip(models, views, strict=True))
        self.space = common_space(*self.models.values()) if self.pair else ChannelSpace.from_model(self._model)
        for side, model in self.models.items():
            require_values(model, side)
        self.device = input_device(list(self.models.values())[-1])
        devices = run_devices(self._model, {site.module for site in self.space})
        self._places = {site.name: devices[site.module] for site in self.space}
        if isinstance(observers, Observer) or not all(isinstance(one, Observer) for one in observers):
            raise ActError(f"observers are {observers!r}; expected a list of observers, such as [act.UntilStable()]")
        self.observers = list(observers)
        self.named = isinstance(corpora, Mapping)
        self.corpora: dict[str, Corpus] = {}
        self._batches: Iterable[Mapping[str, Any]] = ()
        if isinstance(corpora, Corpus):
            corpora = {"": corpora}
        if isinstance(corpora, Mapping):
            both = [*self.models.values()]
            self.corpora = {ability: corpus.for_models(*both).seen_by(*both) for ability, corpus in corpora.items()}
        else:
            self._batches = corpora
        self.include, self.exclude = sorted(names_in(include)), sorted(names_in(exclude))
        self.left_out = self.space.left_out(self.include, self.exclude)
        if not (isinstance(shard, tuple | list) and len(shard) == 2 and all(isinstance(each, int) for each in shard)):
            raise ActError(f"shard is {shard!r}; expected two whole numbers, such as (0, 2) for the first of two")
        self.shard, self.ranks = shard, ranks
        self._workers, self._skip_bad_records = workers, skip_bad_records
        self._part, self._known_fingerprints = part or shard[1] > 1, fingerprints
        self.skipped: list[Skipped] = []
        if ranks and not self.corpora:
            raise ActError(
                "several ranks need a corpus, of which each reads a part; batches cannot be divided among them"
            )
        if token_budget is None:
            token_budget = default_token_budget(self.device)
        elif token_budget == "auto":
            token_budget = self._fitting_budget()
        if look_ahead is None:
            allowed = (observer.look_ahead(self.corpora.values()) for observer in self.observers)
            look_ahead = min((most for most in allowed if most is not None), default=LOOK_AHEAD)
        self.settings = JobSettings(
            token_budget=token_budget,
            exclude=tuple(self.exclude),
            include=tuple(self.include),
            fused=fused,
            packing=bool(self.corpora) and self._packing(packing),
            look_ahead=look_ahead,
            moe_all_experts=moe_all_experts,
            shared_prefix=shared_prefix == "auto" and packing != "on" and self._shares_prefixes(),
            swap=swap,
        )
        for observer in self.observers:
            observer.prepare(self)
            self.settings = replace(self.settings, extra={**self.settings.extra, **observer.settings()})
        if not self._part:
            require_counted(self.corpora, shard, skip_bad_records, predicted=self.predicts)
        else:
            require_first(self.corpora, shard, skip_bad_records)

    @property
    def _model(self) -> nn.Module:
        return next(iter(self.models.values()))

    @property
    def stable_scores(self) -> tuple[StableScore, ...]:
        """The scores by which the top channels of such a run can be certain, the usual one first."""
        if not self.pair:
            return ("mean-abs",)
        return ("paired", "mean-abs", "mean-shift", *(("match",) if self.settings.swap else ()))

    @property
    def costs(self) -> Collection[str]:
        """The abilities of which it is measured what a transfer would cost them."""
        return ()

    @property
    def _running(self) -> Iterable[nn.Module]:
        """The models that texts go through."""
        return self.models.values()

    @property
    def records(self) -> int | None:
        """Records that a run (this rank of it) will read, if known."""
        sizes = [corpus.source.size for corpus in self.corpora.values()]
        known = [-(-size // self.shard[1]) for size in sizes if size is not None]
        if self.ranks:
            known = [self.ranks.share(size, self.settings.look_ahead) for size in known]
        return sum(known) if known and len(known) == len(sizes) else None

    def _fitting_budget(self) -> int:
        """Tokens per batch, as memory allows."""
        return token_budget_for(self.models.values(), self.space, self.device)

    def _packing(self, wanted: Packing) -> bool:
        if wanted == "off":
            return False
        refused = next((reason for model in self.models.values() if (reason := packs(model, wanted == "auto"))), None)
        if refused and wanted == "on":
            raise ActError(f"{refused}; leave packing off")
        return refused is None

    def _shares_prefixes(self) -> bool:
        if not self.corpora:
            return False
        refused = next((reason for model in self.models.values() if (reason := why_unshared(model))), None)
        if refused:
            expected = reader_of(self._model) == "decoder"
            level = logging.WARNING if expected else logging.INFO
            log.log(level, "what texts begin with alike is computed for each of them: %s", refused)
        return refused is None

    @cached_property
    def _fingerprints(self) -> Mapping[str, str]:
        # Cached, because it reads all weights.
        return self._known_fingerprints or {side: fingerprint(model) for side, model in self.models.items()}

    def identity(self) -> dict[str, Any]:
        """What distinguishes this job from another, as plain data; batches that the user made are not part of it."""
        return {
            "models": dict(self._fingerprints),
            "types": {side: type_of(model) for side, model in self.models.items()},  # which fingerprints do not tell
            "corpora": {ability: corpus.identity() for ability, corpus in self.corpora.items()},
            "settings": self.settings.to_json(),
            "shard": list(self.shard),
        }

    def run(self, checkpoint: Checkpoint | None = None) -> list[tuple[str, Moments, Provenance]]:
        """Moments and provenance of each ability, after one pass.

        Raises:
            ActError: nothing was counted; a malformed record; a checkpoint of another job, or of a stream without a
                fingerprint.
        """
        if checkpoint is not None:
            require_type(
                "the checkpoint", checkpoint, Checkpoint, "an act.Checkpoint, such as act.Checkpoint('run.checkpoint')"
            )
        if checkpoint and not self.corpora:
            raise ActError("a checkpoint needs a corpus; batches cannot be read again from the middle")
        if checkpoint and (unknown := self._without_fingerprint()):
            raise ActError(
                f"{unknown} is a stream without a fingerprint, so its checkpoint could be mistaken for that of another "
                "stream; pass a fingerprint (Corpus.from_dataset(…, fingerprint=…)), or leave the checkpoint out"
            )
        # Tried before there are taps.
        unmasked = self.settings.shared_prefix or all(map(causal, self._running))
        with self._tapped() as tapped:
            _warn_of(tapped.unread, "not measured")
            known = tapped.unswapped
            _warn_of(known, "without a swapped output")
            run = self._run_of(tapped, unmasked)
            for ability, corpus in self.corpora.items():
                if corpus.encoder.ability_column is None:
                    run.begin(ability)
            stream = self._stream(run, checkpoint)
            with checkpoint.keeping(run, stream) if checkpoint and stream else contextlib.nullcontext():
                run.over(self._given() if stream is None else prefetched(stream, self._prepared))
                if checkpoint and stream:
                    checkpoint.close(run, stream)  # an interruption while waiting for others loses nothing
                if self.ranks and stream:
                    self.ranks.reduce(run, stream.skipped, self._skip_bad_records)
            if self.ranks and not self.ranks.leads:
                return []
            if stream:
                self.skipped = stream.skipped
            if not self._part:
                self._require_counted(run)
            paths = dict(Counter(tapped.paths.values()))
            unswapped = tapped.unswapped
        _warn_of({name: unswapped[name] for name in unswapped.keys() - known.keys()}, "without a swapped output")
        return self._results(run, stream, paths, grouped_reasons(unswapped))

    def _run_of(self, tapped: Tapped, unmasked: bool) -> Run:
        return self._kind_of_run(
            tapped,
            tapped.space,
            pair=self.pair,
            swap=self.settings.swap,
            device=self.device,
            places=self._places,
            vocabulary=vocabulary(self._model),
            causal=unmasked,
            observers=self.observers,
        )

    def _require_counted(self, run: Run) -> None:
        if not run.total.counted:
            raise ActError("no token was counted; the corpus is empty or its count masks are all False")

    def _without_fingerprint(self) -> str | None:
        return next((corpus.name for corpus in self.corpora.values() if not corpus.source.fingerprint), None)

    def _tapped(self) -> contextlib.AbstractContextManager[Tapped]:
        moments = Moments(self.space, pair=self.pair, swap=self.settings.swap, device=self._places)
        settings = self.settings
        vision = next((corpus.vision for corpus in self.corpora.values() if corpus.vision), None)
        samples = vision.samples() if vision else ()
        images = [{name: x.to(self.device) for name, x in inputs.items()} for inputs in samples]
        options: TapOptions = {
            "fused": settings.fused,
            "include": settings.include,
            "exclude": settings.exclude,
            "moe_all_experts": settings.moe_all_experts,
            "images": images,
        }
        if self.pair:
            donor, target = self.models.values()
            return lockstep(donor, target, moments, **options)
        return taps(self._model, moments, **options)

    def _stream(self, run: Run, checkpoint: Checkpoint | None) -> Stream | None:
        if not self.corpora:
            return None
        stream = Stream(
            self.corpora,
            token_budget=self.settings.token_budget,
            packing=self.settings.packing,
            shard=self.shard,
            windows=self.ranks.windows if self.ranks else (0, 1),
            workers=self._workers,
            skip_bad_records=self._skip_bad_records,
            look_ahead=self.settings.look_ahead,
            part=self._part,
            share=self.settings.shared_prefix,
            shift=decoder_inputs(self._model) if has_decoder(self._model) else None,
        )
        if checkpoint:
            checkpoint.open(run, stream, {**self.identity(), "windows": list(stream.windows)})
        run.stopped = stream.stopped  # shared: the stream skips what the run no longer takes
        return stream

    def _given(self) -> Iterator[Batch]:
        two = has_decoder(self._model)
        for batch in self._batches:
            for given in given_batches(batch):
                if two and given.source_mask is None:
                    raise ActError(
                        f"a batch has no decoder_input_ids, which {type(self._model).__name__} reads beside input_ids; "
                        "give them, with decoder_attention_mask and, where not all count, decoder_count_mask"
                    )
                if not two and given.source_mask is not None:
                    raise ActError(
                        f"a batch has decoder_input_ids, and {type(self._model).__name__} has no decoder beside an "
                        "encoder; leave them out"
                    )
                yield given

    def _prepared(self, batch: Batch) -> Batch:
        return batch.pinned() if self.device.type == "cuda" else batch

    def _results(
        self, run: Run, stream: Stream | None, paths: dict[str, int], unswapped: dict[str, str]
    ) -> list[tuple[str, Moments, Provenance]]:
        provenance = Provenance(
            models={
                side: ModelRead(name_of(model), mark, code_of(model), type_of(model))
                for (side, model), mark in zip(self.models.items(), self._fingerprints.values(), strict=True)
            },
            settings=Settings.from_json({**self.settings.to_json(), "backend": choose(self.device.type).backend.name}),
            versions=versions(),
            job=short_hash(self.identity()) if stream and not self._without_fingerprint() else None,
        )
        results = []
        for ability, moments in run.moments.items():
            seen = run.seen[ability]
            moments.gather()
            self.complete(moments)
            corpora = self._read_for(ability)
            joined = CorpusRead.joined(
                [CorpusIdentity(corpus.name, **corpus.identity(), place=corpus.place) for corpus in corpora.values()]
            )
            read = replace(
                joined,
                ability=ability,
                shard=self.shard if self.shard[1] > 1 else None,
                **asdict(seen),
                seconds=round(run.seconds, 3),
                waited=round(run.waited, 3),
                paths=paths,
                nonfinite=moments.nonfinite(),
                irregular=self._irregular(moments, seen.counted),
                unswapped=unswapped,
                skipped=tuple(each for each in stream.skipped if each.ability in corpora) if stream else (),
                extra={k: v for observer in self.observers for k, v in observer.provenance(ability).items()},
            )
            results.append((ability, moments, replace(provenance, corpora=(read,))))
        return results

    def complete(self, moments: Moments) -> None:
        """Give sites without an output their moments, as often as others have grown."""
        moments.fill_scaled(self.left_out)

    def _read_for(self, ability: str) -> dict[str, Corpus]:
        """The corpora that may have records of an ability: the one of that name, and all with labelled rows."""
        return {
            name: corpus
            for name, corpus in self.corpora.items()
            if name == ability or corpus.encoder.ability_column is not None
        }

    def _irregular(self, moments: Moments, counted: int) -> dict[str, int]:
        """Rows seen by the sites whose rows are no multiple of the counted tokens; experts aside, which share them."""
        if not counted:
            return {}
        common = (
            site
            for site in moments.space
            if site.name not in self.left_out
            if site.expert is None and site.scales is None and "patches" not in {each.tokens for each in site.layouts}
        )
        rows = {site.name: moments.rows_counted(site.name) for site in common}
        several = has_decoder(self._model)  # two texts, each with its own number of tokens
        return {name: seen for name, seen in rows.items() if seen == 0 or (seen % counted and not several)}


def _warn_of(reasons: Mapping[str, str], what: str) -> None:
    """Log which sites are ``what``, and why the first of them is."""
    if reasons:
        name, reason = next(iter(reasons.items()))
        others = len(reasons) - 1
        more = f" and {others} more site{'s' if others > 1 else ''} are" if others else " is"
        log.warning("%s%s %s: %s", name, more, what, reason)

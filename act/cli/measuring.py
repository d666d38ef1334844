"""The work of ``run``, ``pair`` and ``attribute``: prepare a job, run it, then save and report its profiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from act.cli import console
from act.cli.logs import to_file
from act.cli.measuring_options import PairOptions, TextOptions
from act.cli.measuring_output import MeasuringOutput
from act.cli.progress import Progress, counter
from act.core.errors import ActError, Interrupted
from act.core.inputs import require_not_input
from act.profiling.defaults import KEPT

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from act.data.corpus import Corpus
    from act.evaluation.sides import Sides
    from act.profiles.profile import Profile
    from act.profiling.checkpoint import Checkpoint
    from act.profiling.job import Job, JobOptions
    from act.profiling.ranks import Ranks


@dataclass(frozen=True)
class Measuring:
    """One ``run`` or ``pair`` of the command line.

    Args:
        names: folders or hub ids of the models, by side.
        options: the other options of the command.
    """

    names: Mapping[str, str]
    options: TextOptions
    _predicts: ClassVar[bool] = False

    def run(self) -> None:
        """Measure and report, unless that was done before. Of several ranks, only the first writes and prints."""
        from act.profiling.ranks import joined

        console.quiet_transformers()
        try:
            with joined() as ranks:
                self._run(ranks)
        except KeyboardInterrupt:  # while no batch is running, or pressed twice
            there = self._output.checkpoints()
            kept = f"what was counted before is safe in {there[0]}" if there else "nothing was counted before"
            raise Interrupted(f"interrupted; {kept}, and the same command continues from there") from None

    @property
    def _output(self) -> MeasuringOutput:
        options = self.options
        return MeasuringOutput(options.place, options.in_folder, options.force, options.as_json)

    def _run(self, ranks: Ranks | None) -> None:
        from act.data.stream import require_counted

        leads = ranks is None or ranks.leads
        feeding, until = self.options.for_job(), self.options.stopping()
        if until:
            from act.profiling.until_stable import require_whole_corpus

            require_whole_corpus(ranks, feeding["shard"])
        if "donor" in self.names:
            console.require_two_models(self.names["donor"], self.names["target"])
        console.require_models(self.names.values())
        if leads and not self.options.show_spans:
            self._output.require(self._inputs())
        corpora = self.options.open_corpora(self._tokenizer())
        read = self._read(corpora)
        fitted = self._fitted(read)
        if self.options.show_spans:
            if leads:
                console.print_spans(
                    fitted, self.options.show_spans, self.options.skip_bad_records, self.options.as_json
                )
            return
        if leads:
            self._require_apart(fitted)
            self._require_same(fitted, ranks)
        require_counted(fitted, feeding["shard"], self.options.skip_bad_records, predicted=self._predicts)
        self._require_sites()
        if self.options.token_cache:
            corpora = self._cached(read, self.options.token_cache, ranks)
        models = self._models(ranks)
        progress = Progress(self.options.as_json, until)
        strict = self.options.strict_observers()
        feeding["observers"] = [*strict, *([until] if until else []), *([progress] if leads else [])]
        with to_file(self.options.log if leads else None):
            job = self._job(models, corpora, ranks, feeding)
            if not self._finished(job):
                losses = self._look(models, corpora) if leads else {}
                with progress:
                    profiles = self._profiles(job)
                if leads:
                    self._output.report(profiles, losses)
        if leads and self.options.strict:
            self._output.require_measured()

    def _require_apart(self, corpora: Mapping[str, Corpus]) -> None:
        """Raise :class:`ActError` where one text is given under two names."""
        seen: dict[str, str] = {}
        for name, corpus in corpora.items():
            if mark := corpus.source.fingerprint:
                if mark in seen:
                    raise ActError(f"{seen[mark]} and {name} are the same text, {corpus.name}; give each text once")
                seen[mark] = name

    def _require_same(self, corpora: Mapping[str, Corpus], ranks: Ranks | None) -> None:
        """Raise :class:`ActError` where another run has written the output, or its checkpoint, as far as is known."""
        from act.profiling.checkpoint import Checkpoint

        if self._output.path.exists():
            self._output.require_of(self.names, self.options.known(corpora))
        elif self.options.checkpoint_every > 0:
            checkpoint = Checkpoint(self._output.checkpoint_path(ranks), restart=self.options.force)
            if checkpoint.path.exists():
                checkpoint.require_of(self.options.known(corpora))

    def _require_sites(self) -> None:
        """Raise :class:`ActError` where --include or --exclude names no site, which a model without weights tells."""
        from act.models.channels import ChannelSpace
        from act.models.loading import empty_model, load_config

        if not (self.options.include or self.options.exclude):
            return
        *_, model = self.names.values()
        trusted = self.options.trust_remote_code
        empty = empty_model(load_config(model, trust_remote_code=trusted), trust_remote_code=trusted)
        ChannelSpace.from_model(empty).without(self.options.exclude or (), among=self.options.include or ())

    def _look(self, models: Mapping[str, nn.Module], corpora: Mapping[str, Corpus]) -> dict[str, Sides]:
        """Warn of what is probably not meant: a slow type, donor and target that look swapped.

        Returns:
            the losses of donor and target by text, of those texts to recover that both read as language models.
        """
        from act.evaluation.sides import sides_of
        from act.profiling.dtype_speed import warn_of_half

        found: dict[str, Sides] = {}
        for model in models.values():
            warn_of_half(model)
        places = {next(model.parameters()).device.type for model in models.values()}
        if "donor" in models and len(places) == 1:  # a donor that waits on the CPU is not run there
            for name, corpus in corpora.items():
                if not name.startswith(KEPT) and (sides := sides_of(models["donor"], models["target"], corpus)):
                    found[name or corpus.name] = sides
        for name, sides in found.items():
            self._compare(f"{name}: " if name in corpora else "", sides, [*found.values()])
        return found

    def _compare(self, about: str, sides: Sides, every: Sequence[Sides]) -> None:
        """Say the losses over a text; where the donor is better on another, this one is to be kept, it seems."""
        kept = sides.swapped and not all(one.swapped for one in every)
        console.note(f"{about}{sides}{', as on text to keep' if kept else ''}")
        if sides.donor == sides.target:
            console.warn(f"{about}donor and target have the very same loss here; are they the same model?")
        if sides.swapped and not kept:
            console.warn(
                f"{about}the target is better than the donor here ({sides.target:.3f} nats a token against "
                f"{sides.donor:.3f}), as on text to keep; if this text is of the ability to recover, donor and target "
                "are swapped"
            )

    def _job(
        self, models: dict[str, nn.Module], corpora: dict[str, Corpus], ranks: Ranks | None, feeding: JobOptions
    ) -> Job:
        from act.profiling.job import Job

        return Job(models, corpora.get("", corpora), ranks=ranks, **feeding)

    def _measured(self, job: Job, checkpoint: Checkpoint | None) -> Profile | dict[str, Profile]:
        from act.profiling.measure import run_job

        return run_job(job, checkpoint)

    def _inputs(self) -> list[str]:
        """Everything that is read; the log, which is only added to, must be none of it either."""
        inputs = [*self.names.values(), *console.places_of(self.options.corpus).values()]
        if self.options.log:
            require_not_input(self.options.log, inputs)
        cached = [str(self.options.token_cache / "*.parquet")] if self.options.token_cache else []
        return [*inputs, *cached]

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model, or of the target; the donor's must give the same tokens."""
        from act.models.loading import require_place, require_same_tokens, tokenizer_if_any

        for name in self.names.values():
            require_place(name, "model")
        *donor, model = self.names.values()
        trusted = self.options.trust_remote_code
        tokenizer = self.options.tokenizer_of(model, trust_remote_code=trusted)
        for name in donor:
            if (other := tokenizer_if_any(name, trust_remote_code=trusted)) is None:
                console.warn(f"{name} has no tokenizer, so it is unknown whether it reads the same tokens")
            else:
                require_same_tokens(other, tokenizer)
        return tokenizer

    def _read(self, corpora: dict[str, Corpus]) -> dict[str, Corpus]:
        """The corpora as the model will read them, by its configuration alone."""
        from act.models.loading import reading_named

        *_, model = self.names.values()
        reader, sees = reading_named(model, trust_remote_code=self.options.trust_remote_code)
        blind = "" if sees else f"{model} reads text alone"
        return {name: corpus.read_by(reader).with_images(blind) for name, corpus in corpora.items()}

    def _fitted(self, corpora: dict[str, Corpus]) -> dict[str, Corpus]:
        """The corpora, cut as the positions in the models' configurations say; a length beyond these is warned of."""
        from act.models.limits import trained_positions
        from act.models.loading import load_config

        trusted = self.options.trust_remote_code
        found = [trained_positions(load_config(name, trust_remote_code=trusted)) for name in self.names.values()]
        positions = min((each for each in found if each is not None), default=None)
        return {name: corpus.fitted(None, positions) for name, corpus in corpora.items()}

    def _cached(self, corpora: dict[str, Corpus], folder: Path, ranks: Ranks | None) -> dict[str, Corpus]:
        """The corpora read from tokens on disk, which the first rank writes if they are missing."""

        def cached() -> dict[str, Corpus]:
            with counter("tokenising", self.options.as_json) as report:
                return {name: corpus.cached(folder, self.options.workers, report) for name, corpus in corpora.items()}

        if ranks:
            if ranks.leads:
                cached()
            ranks.wait()
        return cached()

    def _models(self, ranks: Ranks | None) -> dict[str, nn.Module]:
        models = {side: self._load(name, ranks) for side, name in self.names.items()}
        if isinstance(self.options, PairOptions):
            console.order_experts(models["donor"], models["target"], self.options.match_experts)
        return models

    def _load(self, name: str, ranks: Ranks | None) -> nn.Module:
        device = None
        if ranks:
            if self.options.device_map:
                raise ActError(
                    "--device-map spreads one process over all GPUs; start it without torchrun, with one --shard per "
                    "machine"
                )
            if self.options.device == "auto":
                device = ranks.device
        return self.options.load(name, device)

    def _finished(self, job: Job) -> bool:
        """Whether the job was finished before, which is then said."""
        from act.profiles.provenance import short_hash
        from act.profiling.checkpoint import Checkpoint

        ranks = job.ranks
        leads = ranks is None or ranks.leads
        identity = job.identity()
        finished = leads and self._output.finished(short_hash(identity), identity["types"])
        if not (ranks.agreed(finished) if ranks else finished):
            return False
        for path in self._output.checkpoints() if leads else ():
            Checkpoint(path).remove_of(job.identity())  # its run was ended before it could do so
        return True

    def _profiles(self, job: Job) -> Profile | dict[str, Profile]:
        """Run the job and save its profiles."""
        from act.profiling.checkpoint import Checkpoint

        ranks = job.ranks
        leads = ranks is None or ranks.leads
        checkpoint = None
        if self.options.checkpoint_every > 0:
            path = self._output.checkpoint_path(ranks)
            checkpoint = Checkpoint(path, self.options.checkpoint_every, restart=self.options.force)
        with contextlib.nullcontext() if checkpoint else _kept(None):
            profiles = self._measured(job, checkpoint)
        if isinstance(profiles, dict) and not self.options.in_folder:
            profiles = next(iter(profiles.values()), profiles)  # of one text with a name; none on ranks but the first
        with _kept(checkpoint):
            if leads:
                self._output.save(profiles)
            if ranks:
                ranks.wait()  # until the profile is on disk
        if checkpoint:
            checkpoint.remove()
        return profiles


@contextlib.contextmanager
def _kept(checkpoint: Checkpoint | None) -> Iterator[None]:
    """Add to an error where the statistics are kept."""
    try:
        yield
    except ActError as error:
        kept = checkpoint.kept if checkpoint else "nothing was kept (--checkpoint-every 0)"
        raise type(error)(f"{error}; {kept}") from error

"""What ``run`` and ``pair`` share: from the options of the command line to profiles on disk."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act.cli import console
from act.cli.profile_report import report_profile, report_profiles
from act.cli.progress import Log, Progress
from act.core.errors import ActError, Interrupted
from act.core.files import require_output, written_whole
from act.data.corpus import Corpus
from act.models.loading import load_model, load_tokenizer, require_place, require_same_tokens
from act.profiles.profile import Profile, load
from act.profiles.provenance import short_hash
from act.profiling.checkpoint import EVERY, Checkpoint
from act.profiling.job import Job
from act.profiling.measure import run_job
from act.profiling.ranks import Ranks, joined
from act.profiling.stability import Promise, UntilStable, look_ahead
from act.ranking.selection import parse_top


@dataclass
class Measuring:
    """One ``run`` or ``pair`` of the command line.

    Args:
        models: by side, as given.
        corpora: as given: places, or ``NAME=PLACE``.
        output: a profile, or the folder of one for each ability.
        reading: options of :class:`act.data.corpus.Corpus`.
        feeding: options of :class:`act.profiling.job.Job`.
        loading: options of :func:`act.models.loading.load_model`.
        stable: stop when this is certain.
        token_cache: folder of the corpora's tokens; None: tokenise while the model runs.
    """

    models: Mapping[str, str]
    corpora: list[str]
    output: Path
    reading: dict[str, Any]
    feeding: dict[str, Any]
    loading: dict[str, Any]
    stable: Promise | None = None
    token_cache: Path | None = None
    show_spans: int = 0
    checkpoint_every: float = EVERY
    log: Path | None = None
    force: bool = False
    as_json: bool = False

    def run(self) -> None:
        """Do it, and report; a finished run is not done again. Of several ranks, the first writes and prints."""
        console.quiet_transformers()
        try:
            with joined() as ranks:
                self._run(ranks)
        except KeyboardInterrupt:  # while no batch is under way, or the second one
            there = self._checkpoints()
            kept = f"what was counted before is safe in {there[0]}" if there else "nothing was counted before"
            raise Interrupted(f"interrupted; {kept}, and the same command goes on from there") from None

    def _run(self, ranks: Ranks | None) -> None:
        if self.stable and ranks:
            raise ActError("--until-stable works in one process; leave it out, or start the run without torchrun")
        if self.stable and self.feeding["shard"][1] > 1:
            raise ActError("--until-stable needs the whole corpus to tell when it is certain; leave it or --shard out")
        leads = ranks is None or ranks.leads
        if leads:
            self._require_output()
        corpora = self._open_corpora(self._tokenizer())
        if self.show_spans:
            if leads:
                console.print_spans(corpora, self.show_spans, self.feeding["skip_bad_records"], self.as_json)
            return
        if self.token_cache:
            corpora = self._cached(corpora, self.token_cache, ranks)
        several = "" not in corpora or self.reading["ability_column"] is not None
        loading = dict(self.loading)
        if ranks and loading["device_map"]:
            raise ActError(
                "--device-map takes all GPUs for one process; start it without torchrun, one --shard a machine"
            )
        if ranks and loading["device"] == "auto":
            loading["device"] = ranks.device
        models = {side: load_model(name, **loading) for side, name in self.models.items()}
        with Log(self.log if leads else None), Progress(self.as_json) as progress:
            until = UntilStable(self.stable) if self.stable else None
            feeding = {**({"look_ahead": look_ahead(corpora.values())} if until else {}), **self.feeding}
            observers = [*([until] if until else []), *([progress] if leads else [])]
            progress.stability_of = until
            job = Job(models, corpora.get("", corpora), observers=observers, ranks=ranks, **feeding)
            progress.expect(job)
            if until:
                until.expect(job)
            finished = leads and self._finished(short_hash(job.identity()))
            if ranks.agreed(finished) if ranks else finished:
                return
            checkpoint = None
            if self.checkpoint_every > 0:
                checkpoint = Checkpoint(self._checkpoint_path(ranks), self.checkpoint_every, restart=self.force)
            with contextlib.nullcontext() if checkpoint else self._kept(None):
                profiles = run_job(job, checkpoint)
            with self._kept(checkpoint):
                if leads:
                    self._save(profiles)
                if ranks:
                    ranks.wait()  # until the profile is on disk
            if checkpoint:
                checkpoint.remove()
        if not leads:
            return
        if several:
            report_profiles(profiles, self.output, self.as_json)
        else:
            report_profile(profiles, self.output, self.as_json)

    @contextlib.contextmanager
    def _kept(self, checkpoint: Checkpoint | None) -> Iterator[None]:
        """Say where the statistics are, if what comes after the run fails."""
        try:
            yield
        except ActError as error:
            kept = checkpoint.kept if checkpoint else "nothing was kept (--checkpoint-every 0)"
            raise type(error)(f"{error}; {kept}") from error

    def _checkpoints(self) -> list[Path]:
        """What is there of this output's checkpoints, of any number of ranks."""
        return sorted(self.output.absolute().parent.glob(f"{glob.escape(self.output.name)}.checkpoint*"))

    def _checkpoint_path(self, ranks: Ranks | None) -> Path:
        """Beside the output, one for each rank; refuses to leave those of another number of ranks aside."""
        name = f"{self.output.name}.checkpoint"
        ending = f"-of-{ranks.size}" if ranks else ""
        others = [
            path.name
            for path in self._checkpoints()
            if not (re.fullmatch(r"-\d+" + ending, path.name.removeprefix(name)) if ranks else path.name == name)
        ]
        if others and not self.force:
            raise ActError(
                f"{', '.join(others[:3])}: a run over another number of ranks is unfinished; start as many "
                "to go on, or delete these files to start anew"
            )
        return self.output.with_name(f"{name}-{ranks.rank}{ending}" if ranks else name)

    def _tokenizer(self) -> Any:
        """The tokenizer of the model, or of the target, which must read as the donor's."""
        for name in self.models.values():
            require_place(name, "model")
        *donor, model = self.models.values()
        tokenizer = load_tokenizer(model)
        for name in donor:
            try:
                other = load_tokenizer(name)
            except ActError:
                console.warn(f"{name} has no tokenizer, so nothing tells whether it reads the same tokens")
            else:
                require_same_tokens(other, tokenizer)
        return tokenizer

    def _require_output(self) -> None:
        """Refuse an output that is there already, unless it may be this very run's."""
        if not (self._profiles_there() and not self.force):
            places = [corpus.partition("=")[2] or corpus for corpus in self.corpora]
            files = [place for place in places if Path(place).is_file()]
            require_output(self.output, self.force, [*self.models.values(), *files])

    def _profiles_there(self) -> list[Path]:
        if self.output.is_dir():
            return sorted(self.output.glob("*.safetensors"))
        return [self.output] if self.output.is_file() else []

    def _finished(self, job: str) -> bool:
        """Whether the output is this job's already; another's is refused."""
        if self.force or not self.output.exists():
            return False
        try:
            found = {path: load(path) for path in self._profiles_there()}
        except ActError:
            found = {}
        if not found or any(profile.provenance.job != job for profile in found.values()):
            require_output(self.output, self.force)
        if self.as_json:
            console.print_json({"output": str(self.output), "finished_before": True})
        else:
            print(f"{self.output} is finished already: the same models, corpora and settings; --force runs it again")
        return True

    def _save(self, profiles: Profile | dict[str, Profile]) -> None:
        if isinstance(profiles, Profile):
            profiles.save(self.output, force=self.force)
            return
        with written_whole(self.output, force=self.force, directory=True) as folder:
            for ability, profile in profiles.items():
                profile.save(folder / f"{ability}.safetensors")

    def _open_corpora(self, tokenizer: Any) -> dict[str, Corpus]:
        places = console.places_of(self.corpora)
        return {name: Corpus.from_file(place, tokenizer, **self.reading) for name, place in places.items()}

    def _cached(self, corpora: dict[str, Corpus], folder: Path, ranks: Ranks | None) -> dict[str, Corpus]:
        """The corpora from their tokens on disk, which the first rank writes where they are missing."""

        def cached() -> dict[str, Corpus]:
            with console.counter("tokenising") as report:
                return {
                    name: corpus.cached(folder, self.feeding["workers"], report) for name, corpus in corpora.items()
                }

        if ranks:
            if ranks.leads:
                cached()
            ranks.wait()
        return cached()


def parsed_budget(budget: str | None) -> Any:
    """Tokens, ``auto``, or None where nobody says."""
    if budget is None or budget == "auto" or budget.isdigit():
        return budget if budget in (None, "auto") else int(budget)
    raise ActError(f"token budget is {budget!r}; expected a number of tokens, or auto")


def parsed_memory(given: list[str]) -> dict[str, str]:
    """``PLACE=SIZE`` each."""
    return {place: size for place, _, size in (each.partition("=") for each in given)}


def parsed_shard(shard: str) -> tuple[int, int]:
    """``i/n`` with 0 <= i < n."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not int(found[1]) < int(found[2]):
        raise ActError(f"shard is {shard!r}; expected i/n with 0 <= i < n, such as 0/4")
    return int(found[1]), int(found[2])


def parsed_promise(wanted: bool, score: str, top: str, overlap: float, confidence: float) -> Promise | None:
    """What ``--until-stable`` and its options ask for."""
    return Promise(score, parse_top(top), overlap, confidence) if wanted else None  # type: ignore[arg-type]

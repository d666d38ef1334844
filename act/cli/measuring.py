"""What ``run`` and ``pair`` share: from the options of the command line to profiles on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act.checkpoint import EVERY, Checkpoint
from act.cli import console
from act.cli.progress import Log, Progress
from act.corpus import Corpus
from act.errors import ActError
from act.files import require_output, written_whole
from act.job import Job, job_hash
from act.loading import load_model, load_tokenizer
from act.profile import Profile, load, run_job

_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<place>.+)")


@dataclass
class Measuring:
    """One ``run`` or ``pair`` of the command line.

    Args:
        models: by side, as given.
        corpora: as given: places, or ``NAME=PLACE``.
        output: a profile, or the folder of one for each ability.
        reading: options of :class:`act.corpus.Corpus`.
        feeding: options of :class:`act.job.Job`.
        loading: options of :func:`act.loading.load_model`.
    """

    models: Mapping[str, str]
    corpora: list[str]
    output: Path
    reading: dict[str, Any]
    feeding: dict[str, Any]
    loading: dict[str, Any]
    show_spans: int = 0
    checkpoint_every: float = EVERY
    log: Path | None = None
    force: bool = False
    as_json: bool = False

    def run(self) -> None:
        """Do it, and report; a finished run is not done again."""
        console.quiet_transformers()
        self._require_output()
        corpora = self._open_corpora(load_tokenizer(list(self.models.values())[-1]))
        if self.show_spans:
            return console.print_spans(corpora, self.show_spans)
        several = "" not in corpora or self.reading["ability_column"] is not None
        models = {side: load_model(name, **self.loading) for side, name in self.models.items()}
        with Log(self.log), Progress(self.as_json) as progress:
            job = Job(models, corpora.get("", corpora), observers=[progress], **self.feeding)
            progress.expect(job)
            if self._finished(job_hash(job.identity())):
                return
            checkpoint = None
            if self.checkpoint_every > 0:
                beside = self.output.with_name(f"{self.output.name}.checkpoint")
                checkpoint = Checkpoint(beside, self.checkpoint_every, restart=self.force)
            profiles = run_job(job, checkpoint)
            self._save(profiles)
            if checkpoint:
                checkpoint.remove()
        if several:
            console.report_profiles(profiles, self.output, self.as_json)
        else:
            console.report_profile(profiles, self.output, self.as_json)

    def _require_output(self) -> None:
        """Refuse an output that is there already, unless it may be this very run's."""
        if not (self._profiles_there() and not self.force):
            require_output(self.output, self.force)

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
        if not found or any(profile.source.get("job") != job for profile in found.values()):
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
        places: dict[str, str] = {}
        for given in self.corpora:
            named = None if Path(given).exists() else _NAMED.fullmatch(given)
            name, place = (named["name"], named["place"]) if named else ("", given)
            if name in places or (places and "" in (name, *places)):
                raise ActError("several corpora need a name each, for a profile each: --corpus NAME=PLACE")
            places[name] = place
        return {name: Corpus.from_file(place, tokenizer, **self.reading) for name, place in places.items()}


def parsed_budget(budget: str) -> Any:
    """Tokens, or ``auto``."""
    if budget == "auto" or budget.isdigit():
        return budget if budget == "auto" else int(budget)
    raise ActError(f"token budget is {budget!r}; expected a number of tokens, or auto")


def parsed_shard(shard: str) -> tuple[int, int]:
    """``i/n`` with 0 <= i < n."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not int(found[1]) < int(found[2]):
        raise ActError(f"shard is {shard!r}; expected i/n with 0 <= i < n, such as 0/4")
    return int(found[1]), int(found[2])

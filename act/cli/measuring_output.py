"""The output of ``run``, ``pair`` and ``attribute``: earlier results, checkpoints, saving, and the report."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli import console
from act.cli.next_step import after_profiles
from act.cli.profile_report import report_profile, report_profiles
from act.core.errors import ActError, option
from act.core.files import require_folder_name, require_no_other_ending, require_output, written_whole
from act.core.scratch import companion, reserve
from act.profiling.defaults import KEPT

if TYPE_CHECKING:
    from act.evaluation.sides import Sides
    from act.profiles.profile import Profile
    from act.profiling.ranks import Ranks


@dataclass(frozen=True)
class MeasuringOutput:
    """A profile, or a folder with one profile per ability.

    Args:
        path: the file or folder.
        in_folder: whether it is a folder.
        force: whether an existing one may be replaced.
        as_json: whether to print JSON.
    """

    path: Path
    in_folder: bool
    force: bool
    as_json: bool

    def require(self, inputs: Iterable[str]) -> None:
        """Raise :class:`ActError` if the output cannot be written; profiles in it may be those of this very run.

        Until this process ends, no other can write it.
        """
        reserve(self.path)
        if self.force or not self._profiles():
            require_output(self.path, self.force, inputs)
        if self.in_folder:
            require_folder_name(self.path, ", which gets a profile of each text")
        else:
            require_no_other_ending(self.path, ".safetensors")
        if self.path.is_dir() and not self.in_folder:
            raise ActError(f"{self.path} is a folder, and the profile of one text is a file; choose another output")

    def require_of(self, models: Mapping[str, str], known: Mapping[str, Any]) -> None:
        """Raise :class:`ActError` if another run has written the output, and ``force`` is False.

        Args:
            models: folders or hub ids of this run's models, by side.
            known: what is known of its identity before there are models.
        """
        if self.force or not self.path.exists():
            return
        found = self._found()
        if not found:
            require_output(self.path, self.force)
        if different := _difference(found, models, known):
            raise _exists(self.path, different)

    def finished(self, job: str, types: Mapping[str, str | None]) -> bool:
        """Whether this job has already written the output, which is then reported.

        Args:
            job: its identity, as profiles hold it.
            types: those that the models were loaded in, by side.

        Raises:
            ActError: another job has written it, and ``force`` is False.
        """
        if self.force or not self.path.exists():
            return False
        found = self._found()
        if not found or any(profile.provenance.job != job for profile in found):
            raise _exists(self.path, (found and _difference_of_types(found[0], types)) or "other weights or settings")
        if self.as_json:
            console.print_json({"output": str(self.path), "finished_before": True})
        else:
            print(f"{self.path} is finished already, with the same models, corpora and settings; --force runs it again")
            made = dict(zip(self._profiles(), found, strict=True))
            after_profiles(made, self.path if self.path.is_dir() else None)
        return True

    def checkpoints(self) -> list[Path]:
        """All checkpoints of this output, for any number of ranks."""
        first = self._checkpoint("")
        return sorted(first.parent.glob(f"{glob.escape(first.name)}*"))

    def checkpoint_path(self, ranks: Ranks | None) -> Path:
        """The checkpoint of this rank, beside the output.

        Raises:
            ActError: there are checkpoints for another number of ranks, and ``force`` is False.
        """
        name = self._checkpoint("").name
        ending = f"-of-{ranks.size}" if ranks else ""
        others = [
            path.name
            for path in self.checkpoints()
            if not (re.fullmatch(r"-\d+" + ending, path.name.removeprefix(name)) if ranks else path.name == name)
        ]
        if others and not self.force:
            raise ActError(
                f"{', '.join(others[:3])}: a run with another number of ranks is unfinished; start as many to continue "
                "it, or delete these files to start anew"
            )
        return self._checkpoint(f"-{ranks.rank}{ending}" if ranks else "")

    def _checkpoint(self, rank: str) -> Path:
        """A checkpoint beside the output; its name is shortened where that of a rank would become too long."""
        first = companion(self.path, ".checkpoint", room=20)
        return first.with_name(first.name + rank)

    def save(self, profiles: Profile | dict[str, Profile]) -> None:
        """Write the profile, or the folder of profiles by ability."""
        if not isinstance(profiles, dict):
            profiles.save(self.path, force=self.force)
            return
        with written_whole(self.path, force=self.force, directory=True) as folder:
            for ability, profile in profiles.items():
                profile.save(folder / f"{ability}.safetensors")

    def report(self, profiles: Profile | dict[str, Profile], losses: Mapping[str, Sides]) -> None:
        """Print what was measured, the losses of donor and target by text, and any warnings."""
        if isinstance(profiles, dict):
            report_profiles(profiles, self.path, self.as_json, losses)
        else:
            report_profile(profiles, self.path, self.as_json, losses)

    def require_measured(self) -> None:
        """Raise :class:`ActError` unless every parameter lies behind a channel that was counted, in each profile."""
        from act.profiles.profile import load
        from act.profiling.strict import require_measured

        for path in self._profiles():
            require_measured(path, load(path))

    def _found(self) -> list[Profile]:
        """The profiles that the output holds; none where one of them cannot be read."""
        from act.profiles.profile import load

        try:
            return [load(path) for path in self._profiles()]
        except ActError:
            return []

    def _profiles(self) -> list[Path]:
        if os.path.isdir(self.path):
            return sorted(self.path.glob("*.safetensors"))
        return [self.path] if os.path.isfile(self.path) else []


def _exists(path: Path, different: str) -> ActError:
    return ActError(
        f"{path} exists already, from another run ({different}); pass {option('--force', 'force=True')} to replace it, "
        "or choose another output"
    )


def _difference_of_types(found: Profile, types: Mapping[str, str | None]) -> str | None:
    """In which types the models of a profile were loaded other than these; None: in none, as far as it says."""
    from act.profiling.identity import difference

    there = {side: model.dtype for side, model in found.provenance.models.items() if model.dtype}
    return difference({"types": there}, {"types": {side: types[side] for side in there if side in types}})


def _difference(found: Sequence[Profile], models: Mapping[str, str], known: Mapping[str, Any]) -> str | None:
    """In what these profiles are of another run, by what is known of it before there are models; None: in nothing."""
    from act.profiles.attribution import AttributionProfile
    from act.profiling.identity import difference, known_of, listed

    first = found[0]
    read = first.provenance.models
    if read.keys() != models.keys():
        return f"of {listed(read)}, not of {listed(models)}"
    if first.of_tokens == (known["settings"]["measured"] is not None):
        return f"of {'pair' if first.of_tokens else 'attribute'}, which measures something else"
    for side, name in models.items():
        before = read[side].name
        if os.path.isdir(name) and os.path.isdir(before) and not os.path.samefile(name, before):
            return f"its {side} is {before}"
    texts = {one.provenance.corpora[-1].ability: one.provenance.corpora[-1] for one in found}
    kept = first.kept if isinstance(first, AttributionProfile) else ()
    corpora = {name: text.identity() for name, text in texts.items()}
    corpora |= {f"{KEPT}{number}": one.provenance.corpora[-1].identity() for number, one in enumerate(kept)}
    if any(text["ability_column"] for text in known["corpora"].values()):  # which abilities there are is in the records
        if len(known["corpora"]) > 1:
            known = {part: value for part, value in known.items() if part != "corpora"}
        else:
            corpora = dict.fromkeys(known["corpora"], first.provenance.corpora[-1].identity())
    there = {
        "corpora": corpora,
        "settings": first.provenance.settings.to_json(),
        "shard": list(first.provenance.corpora[-1].shard or (0, 1)),
    }
    return difference(known_of(there, known), known)

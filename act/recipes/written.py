"""The file of a recipe, after it was read: where its paths start, and what its errors quote."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from act.core.errors import ActError, Missing
from act.core.near import near_path
from act.data.records import is_hub_id
from act.data.remote import is_remote


@dataclass(frozen=True)
class Written:
    """Where a recipe stands.

    Attributes:
        file: the file; None for a recipe that was made in Python, whose paths start at the working directory.
        lines: the lines of each text that the file gives as a value.
    """

    file: Path | None = None
    lines: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder where paths start."""
        return self.file.parent if self.file else Path()

    def at(self, place: str) -> str:
        """Where a path of the recipe is; one of another system, or a hub id that is no file beside it, as it is."""
        if is_remote(place):
            return place
        beside = os.path.normpath(self.folder / place)
        return place if is_hub_id(place) and not _is_there(beside) else beside

    def whole(self, place: str) -> str:
        """A path that means the same from everywhere; a hub id, or one of another system, as it is."""
        found = self.at(place)
        kept = is_remote(place) or (is_hub_id(place) and found == place)
        return place if kept else os.path.abspath(found)

    def blamed(self, name: str, error: ActError, names: Iterable[str] = ()) -> ActError:
        """An error about an input in the words of the file, with the lines that name it, and what may have been meant.

        Args:
            name: the input as the recipe gives it.
            names: what else might have been named there, beside the files of the folder that ``name`` is in.
        """
        lines = list(dict.fromkeys(self.lines.get(name, ())))
        at_line = f"line{'s' if len(lines) > 1 else ''} {' and '.join(map(str, lines))}"
        line = f"{self.file}, {at_line}: " if self.file and lines else ""
        place = self.folder / name
        advice = ""
        if self.file and not _is_there(str(place)):
            near = difflib.get_close_matches(name, [*names], 1)
            if not near and (beside := near_path(str(place))):  # in the folder that the file names, and no other
                near = [os.path.join(os.path.dirname(os.path.normpath(name)), os.path.basename(beside))]
            if _is_there(name):
                there = os.path.relpath(name, self.folder)
                advice = f"; paths start at the folder of the recipe, so write {there} for what is here"
            elif near:
                advice = f"; did you mean {near[0]}?"
        said, at = error.said if isinstance(error, Missing) else str(error), self.at(name)
        if isinstance(error, Missing) and self.file and not (_is_there(at) or is_hub_id(name) or is_remote(name)):
            advice = advice if os.path.isabs(name) else f"; looked at {os.path.abspath(at)}{advice}"
        return type(error)(f"{line}{said.replace(at, name) if line else said}{advice}")


def _is_there(place: str) -> bool:
    return os.path.lexists(place) or bool(glob.glob(place, recursive=True))

"""The corpora of a recipe: which rows of which place, with which columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from act.core.errors import ActError
from act.data.mapped import Mapped
from act.data.parts import Part
from act.data.records import Entry, Shard, Source, Wanted, every, open_source
from act.recipes.schema import Recipe, Records

SAMPLE = 200
"""Records of each corpus that are read before anything is run."""


def opened(recipe: Recipe, corpus: str) -> Source:
    """The records of a corpus by the name that a section gives it.

    Raises:
        ActError: as :func:`act.data.records.open_source`, with the line of the recipe that names the place.
    """
    records = recipe.records(corpus)
    try:
        return chosen(open_source(recipe.at(records.place)), records)
    except ActError as error:
        raise recipe.written.blamed(records.place, error, recipe.corpora) from error


def chosen(source: Source, records: Records) -> Source:
    """The rows and columns of a source that a recipe names."""
    if records.rows:
        _require_rows(source, records)
        source = Part(source, records.rows[0], records.rows[1])
    return Mapped(source, records.columns) if records.columns else source


def _require_rows(source: Source, records: Records) -> None:
    """Raise :class:`ActError` for rows that a source does not have, if it knows how many it has."""
    assert records.rows
    stop = records.rows[1]
    if source.size is not None and stop > source.size and next(source.read(stop - 1), None) is None:  # may be estimated
        raise ActError(
            f"rows {records.rows} of {records.place} end behind its last: it has about {source.size:,}; give rows that "
            "are there, or leave rows out"
        )


def require_first_records(source: Source) -> None:
    """Raise :class:`ActError` if one of the first :data:`SAMPLE` records cannot be read, or lacks a column."""
    for entry in islice(source.read(), SAMPLE):
        if isinstance(entry.record, ActError):
            raise ActError(f"{entry.place}: {entry.record}")


class Absent:
    """A source that is not on this machine, of which the fingerprint is known from another one."""

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.place: str | None = name
        self.size: int | None = None

    def read(self, start: int = 0, shard: Shard = (0, 1), wanted: Wanted = every) -> Iterator[Entry]:
        """Raises :class:`ActError`."""
        raise ActError(f"no such corpus: {self.name}; what is to be made of it here needs it, so copy it, too")

    def count(self) -> int | None:
        """Unknown."""
        return self.size

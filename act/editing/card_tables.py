"""Tables in the Markdown of a model card: new rows take the place of those of the same text, model and metric."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_CELLS = re.compile(r"(?<!\\)\|")
_KEY = ("corpus", "task")
"""The first column of a table that can be merged."""
OWN = "(this model)"
LEGEND = "± standard error over "
"""What the line below a table begins with that explains its columns."""
FIRST = "the first "
"""What the records of a row begin with where only the first ones were evaluated: a look, no result."""
_NOTE = "**Note:**"
"""What a line below a table begins with that says something of its figures, and stays with them."""


@dataclass(frozen=True)
class Table:
    """A table by its columns, whose rows have no cell for a column in which they are empty."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def __str__(self) -> str:
        """Markdown, without the columns in which no row has anything."""
        shown = [name for name in self.columns if any(row.get(name) for row in self.rows)]
        lines = [shown, ["---"] * len(shown), *([row.get(name, "") for name in shown] for row in self.rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def without(self, other: Table) -> Table:
        """The rows that are of another text, model or metric than every row of ``other``."""
        new = {_what(row, other.columns[0]) for row in other.rows}
        unnamed = {(text, model, "") for text, model, _ in new}  # in a card whose table has no metrics yet
        kept = tuple(row for row in self.rows if _what(row, self.columns[0]) not in new | unnamed)
        return Table(self.columns, kept)

    def with_rows(self, other: Table) -> Table:
        """These rows, then those of ``other``; a column that only one of them has is before the last of the others."""
        columns = dict.fromkeys([*self.columns, *other.columns])
        last = [name for name in columns if name.startswith("p ")]
        return Table((*(name for name in columns if name not in last), *last), (*self.rows, *other.rows))


def _what(row: dict[str, str], first: str) -> tuple[str, str, str]:
    """What the figures of a row are of: text, model and metric; the card's own model has any name."""
    model = row.get("model", "")
    return row.get(first, ""), OWN if model.endswith(OWN) else model, row.get("metric", "")


def cell(text: str) -> str:
    """A text as it stands in a cell.

    >>> from act.editing.card_tables import cell
    >>> print(cell("a|b"))
    a\\|b
    """
    return " ".join(text.replace("|", r"\|").split())


def merged(old: str, new: str) -> str:
    """The Markdown of new results, its tables with those rows of old ones that are of another text, model or metric.

    Tables are told apart by their first column; one that only the old results have is kept, with what is below it.

    >>> from act.editing.card_tables import merged
    >>> head = "| corpus | model | NLL |\\n|---|---|---|\\n"
    >>> print(merged(f"{head}| de | a | 1 |\\n| ma | a | 2 |", f"{head}| de | a | 3 |"))
    | corpus | model | NLL |
    | --- | --- | --- |
    | ma | a | 2 |
    | de | a | 3 |
    """
    kept = {table.columns[0]: (table, below) for table, below in _tables(old)}
    found = []
    for table, below in _tables(new):
        earlier, said = kept.pop(table.columns[0], (None, ""))
        notes = [f"\n\n{line}" for line in said.splitlines() if line.startswith(_NOTE) and line not in below]
        whole = earlier.without(table).with_rows(table) if earlier else table
        if any(name.startswith("p ") for row in whole.rows for name in row):
            below = _explained(below, said)
        found.append(f"{whole}{below}{''.join(notes)}")
    found += [f"{table}{below}" for table, below in kept.values()]
    return "\n\n".join(found) or new


def replaces(old: str, new: str) -> bool:
    """Whether new results have a row of the same text, model and metric as one of the old results.

    >>> from act.editing.card_tables import replaces
    >>> old, new = ("| corpus | NLL |\\n|---|---|\\n| de | 1 |", "| corpus | NLL |\\n|---|---|\\n| fr | 1 |")
    >>> replaces(old, old), replaces(old, new)
    (True, False)
    """
    earlier = {table.columns[0]: table for table, _ in _tables(old)}
    both = ((earlier.get(table.columns[0]), table) for table, _ in _tables(new))
    return any(known is not None and known.without(table) != known for known, table in both)


def measured_whole(markdown: str) -> set[str]:
    """The texts of which results have the card's own model on all records, as they stand in their cells.

    >>> from act.editing.card_tables import measured_whole
    >>> own = "**m** (this model)"
    >>> rows = f"| de | {own} | 40 |\\n| fr | {own} | the first 4 |\\n| it | base | 40 |"
    >>> measured_whole(f"| corpus | model | records |\\n|---|---|---|\\n{rows}")
    {'de'}
    """
    rows = (row for table, _ in _tables(markdown) if table.columns[0] == "corpus" for row in table.rows)
    own = (row for row in rows if row.get("model", "").endswith(OWN))
    return {row.get("corpus", "") for row in own if not row.get("records", "").startswith(FIRST)}


def _explained(below: str, said: str) -> str:
    """What is below a table, with the explanation of p that an earlier one had, whose column is still there."""
    known = next((line for line in said.splitlines() if line.startswith(LEGEND) and "; p: " in line), None)
    if known is None or "; p: " in below:
        return below
    return "\n".join(known if line.startswith(LEGEND) else line for line in below.splitlines())


def _tables(markdown: str) -> Iterator[tuple[Table, str]]:
    """The tables of texts or tasks, each with what is below it up to the next one."""
    lines = markdown.splitlines()
    starts = [number for number, line in enumerate(lines) if _is_head(line) and _is_rule(lines[number + 1 :])]
    for start, end in itertools.pairwise([*starts, len(lines)]):
        columns = tuple(_cells(lines[start]))
        stop = next((number for number in range(start, end) if not lines[number].startswith("|")), end)
        rows = [dict(zip(columns, _cells(line), strict=False)) for line in lines[start + 2 : stop]]
        table = Table(columns, tuple({name: value for name, value in row.items() if value} for row in rows))
        yield table, "\n".join(["", *lines[stop:end]]).rstrip()


def _is_head(line: str) -> bool:
    return line.startswith("|") and _cells(line)[0] in _KEY


def _is_rule(below: Sequence[str]) -> bool:
    return bool(below) and set(below[0]) <= set("|-: ")


def _cells(line: str) -> list[str]:
    return [one.strip() for one in _CELLS.split(line.strip().removeprefix("|").removesuffix("|"))]

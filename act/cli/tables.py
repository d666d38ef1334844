"""Tables for people: no word is broken, whatever the width of the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from act.evaluation.harness import TaskSummary

_FIGURE = re.compile(r"(?!\d+\.\d+\.)(under )?[-+−<~]?\d|-$")  # a version is none


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], alike: Sequence[Sequence[Any]] = ()
) -> None:
    """Print a table to stdout; columns of figures are right-aligned.

    Where it is too wide, its texts are broken between words, then its vertical lines are left out; where that is not
    enough, each row becomes a paragraph, or the long words of a table of two columns are broken.

    Args:
        title: what stands above it.
        columns: their headings.
        rows: the cells of each row.
        alike: the rows of several tables that are to have one layout, these among them.
    """
    from rich.box import HEAVY_HEAD, SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, cells = Console(), [[str(value) for value in row] for row in rows]
    every = [*cells, *([str(value) for value in row] for row in alike)]
    whole = _widths(columns, every, console.width - 3 * len(columns) - 1)
    widths = whole or _widths(columns, every, console.width - 2 * len(columns))
    if widths is None and len(columns) > 2:
        return _print_paragraphs(title, columns, cells)
    lines = whole or not widths
    table = Table(
        box=HEAVY_HEAD if lines else SIMPLE_HEAD,
        show_edge=bool(lines),
        pad_edge=bool(lines),
        padding=(0, 1) if lines else (0, 1, 0, 0),
        show_header=any(columns),
    )
    for number, column in enumerate(columns):
        figures = number and all(not row[number] or _FIGURE.match(row[number]) for row in every)
        width = widths[number] if widths else None
        table.add_column(escape(column), justify="right" if figures else "left", overflow="fold", width=width)
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(escape(title), style="table.title", highlight=False)  # as wide as the terminal, not as the table
    console.print(table)


def fits(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether :func:`print_table` makes a table of these, and no paragraphs."""
    from rich.console import Console

    return _widths(columns, rows, Console().width - 2 * len(columns)) is not None


def broken(heading: str, width: int = 14) -> str:
    """A heading in lines of at most so many columns, broken behind what joins the words of a name, or in a long one.

    >>> from act.cli.tables import broken
    >>> broken("german-validation.jsonl, %").split("\\n")
    ['german-', 'validation.', 'jsonl, %']
    """
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for word in re.findall(r"[^-_./\s]*[-_./\s]|[^-_./\s]+", heading):
        for part in chop_cells(word, width):
            if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def filled(names: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns of a table that have something in them."""
    kept = [place for place, _ in enumerate(names) if any(row[place] for row in rows)]
    return [names[place] for place in kept], [[row[place] for place in kept] for row in rows]


GUESSES = "chance, majority"
"""The column beside that of right answers: what guesses find, and the commonest right answer given to all."""


RIGHT = "right: share of right answers, beside guesses (chance) and the commonest answer alone (majority)"
NLL = "NLL: negative log-likelihood per token in nats, less is better"
P = "p: the probability that chance alone makes such a difference"
"""What the columns of figures are, for the lines below their tables."""


def guesses(chance: float | None, majority: float | None) -> str:
    """Both levels in per cent; empty where no answers are judged."""
    shown = ["-" if level is None else f"{100 * level:.1f}" for level in (chance, majority)]
    return "" if majority is None and chance is None else ", ".join(shown)


def print_tasks(tasks: Sequence[TaskSummary], called: Mapping[str, str] | None = None) -> None:
    """Print figures of tasks of lm-evaluation-harness, if there are any, chance beside accuracies among choices.

    Args:
        called: what to call the models; by default as the figures do.
    """
    from act.evaluation.significance import with_error

    rows = [
        [
            (called or {}).get(one["model"], one["model"]),
            one["task"],
            one["metric"],
            with_error(one["value"], one["se"], 3),
            "" if (chance := one.get("chance")) is None else f"{chance:.3f}",  # not in reports of earlier versions
        ]
        for one in tasks
    ]
    if rows:
        names = ["model", "task", "metric", "value", "chance"]
        print_table("Tasks of lm-evaluation-harness", *filled(names, rows))


def _print_paragraphs(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(title)
    for label, *others in rows:
        cells = [f"{column}: {value}" if column else value for column, value in zip(columns[1:], others, strict=True)
                 if value]  # fmt: skip
        marked = len(label) < 2 and cells  # no label, or a mark only: the first cell tells which row it is
        first = " ".join(filter(None, (label, cells[0] if marked else "")))
        print("\n  ".join([first, *cells[1 if marked else 0 :]]))


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The width of each column, such that no word is broken; None if there is not enough room."""
    from rich.cells import cell_len

    texts = [[column, *(row[place] for row in rows)] for place, column in enumerate(columns)]
    whole = [max(cell_len(line) for text in each for line in text.split("\n")) for each in texts]
    least = [max(cell_len(word) for text in each for word in _words(text)) for each in texts]
    if sum(least) > room:
        return None
    spare, found = room - sum(least), list(least)
    for place in sorted(range(len(columns)), key=lambda place: whole[place] - least[place]):
        more = min(spare, whole[place] - least[place])  # those that need little are whole, the longest is broken
        found[place] += more
        spare -= more
    return found


def _words(text: str) -> list[str]:
    """The words of a text, of which a figure with its error is one, a product, and a name with a star before it."""
    return [text] if "±" in text or "×" in text or text.startswith("* ") else text.split() or [""]

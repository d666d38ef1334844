"""Columns of a source put together to the columns that are read here: ``prompt`` and ``completion``, for example.

Each new column is a template, a text in which ``{name}`` stands for a column and ``{question[stem]}`` for what lies in
one. A template of one column alone gives its value as it is, so that ``messages`` may be a list. Two forms are made of
values: ``{answer:letter}`` is the letter of the option with that number (1 is A; with ``letter0``, 0 is A), and
``{choices[text]:options}`` a list as options, one per line, each with its letter.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from act.core.errors import ActError, brief, one_of
from act.core.near import meant
from act.data.columns import label_of, no_column
from act.data.records import Entry, Record, Shard, Source, Wanted, every

COLUMNS = ("prompt", "completion", "question", "answer", "instruction", "input", "output", "text", "messages")
_PATH = re.compile(r"[^\[\]{}.!:]+(\[[^\[\]]+\])*")
_FORMS = ("", "letter", "letter0", "options")
_NEXT = re.compile(rf",(?=\s*(?:[^=,{{}}]*:)?(?:{'|'.join(COLUMNS)})=)")


class Mapped:
    """The records of a source with other columns.

    Args:
        source: records of any columns.
        columns: new column -> template.
        labels: the column that labels each record, which stays as it is; no other does.

    Raises:
        ActError: no column to map to, one that is not read, or no template. A record that lacks a column becomes an
            error that names those that it has.

    >>> from act.data.mapped import Mapped
    >>> from act.data.records import Memory
    >>> rows = Memory([{"ask": "Which is even?", "options": ["3", "4"], "right": "2"}])
    >>> columns = {"prompt": "{ask}\\n{options:options}\\nAnswer:", "completion": " {right:letter}"}
    >>> [entry.record for entry in Mapped(rows, columns).read()]
    [{'prompt': 'Which is even?\\nA. 3\\nB. 4\\nAnswer:', 'completion': ' B'}]
    """

    def __init__(self, source: Source, columns: Mapping[str, str], labels: str | None = None) -> None:
        self.unmapped, self._labels = source, labels
        self._templates = {name: _Template(name, text) for name, text in columns.items()}
        if not columns:
            raise ActError(f"no columns are mapped; {one_of(COLUMNS)}")
        self.name, self.size = source.name, source.size
        self.place: str | None = None  # where the records lie with the columns that they had
        decided = json.dumps([source.fingerprint, dict(columns)])
        self.fingerprint = source.fingerprint and hashlib.sha256(decided.encode()).hexdigest()[:16]

    def read(self, start: int = 0, shard: Shard = (0, 1), wanted: Wanted = every) -> Iterator[Entry]:
        """See :class:`act.data.records.Source`."""
        for entry in self.unmapped.read(start, shard, wanted):
            yield entry._replace(record=self._mapped(entry.record))

    def count(self) -> int | None:
        """See :class:`act.data.records.Source`."""
        return self.unmapped.count()

    def _mapped(self, record: Record | ActError) -> Record | ActError:
        if not isinstance(record, Mapping):
            return record
        try:
            label = {self._labels: label_of(record, self._labels)} if self._labels else {}
            return {**label, **{name: template.of(record) for name, template in self._templates.items()}}
        except ActError as error:
            return error


def require_templates(columns: Mapping[str, str]) -> None:
    """Raise :class:`ActError` for a column that is not read here, or a text that is no template."""
    for name, text in columns.items():
        _ = _Template(name, text).parts


def columns_of(given: Iterable[str], texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Templates by new column, for each of some texts by their names, of what a command line gives.

    ``NEW=OLD,NEW=OLD``, where ``OLD`` may be a template, is for all texts; ``NAME:NEW=OLD,NEW=OLD`` is for one, and
    takes the place of what is given for all. A text without columns has none here.

    Raises:
        ActError: no ``NEW=OLD``; a text that is not there; a column that is not read here, or is named twice; a text
            that is no template.

    >>> from act.data.mapped import columns_of
    >>> columns_of(["prompt=question,completion= {answer}", "maths:text=body"], ["german", "maths"])
    {'german': {'prompt': '{question}', 'completion': ' {answer}'}, 'maths': {'text': '{body}'}}
    """
    names = [*texts]
    found: dict[str, dict[str, str]] = {}
    for each in given:
        text = ""
        for part in _NEXT.split(each):
            named, equals, old = part.partition("=")
            before, colon, new = named.rpartition(":")
            text, new = before.strip() if colon else text, new.strip()
            if not equals or not old:
                raise ActError(f"columns are {part!r:.80}; expected NEW=OLD, such as prompt=question,completion=answer")
            if new in names and new not in COLUMNS:
                raise ActError(f"columns of one text are given behind a colon: {new}:{old}")
            if colon and text not in names:
                raise ActError(
                    f"columns are given for {text!r}, and no text is called that; {one_of(names)}{meant(text, names)}"
                )
            columns = found.setdefault(text, {})
            if new in columns:
                raise ActError(f"the column {new} is mapped twice; name each new column once")
            columns[new] = old if "{" in old else f"{{{old.strip()}}}"
    for columns in found.values():
        require_templates(columns)
    return {name: found[name if name in found else ""] for name in names if name in found or "" in found}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


class _Template:
    def __init__(self, name: str, text: str) -> None:
        if name not in COLUMNS:
            if (old := text.strip("{} ")) in COLUMNS:
                raise ActError(
                    f"no column {name!r} is read, and {old!r} is: what is read comes first; did you mean {old}={name}?"
                )
            raise ActError(f"no column {name!r} is read; {one_of(COLUMNS)}{meant(name, COLUMNS)}")
        self._name, self._text = name, text

    @cached_property
    def parts(self) -> list[tuple[str, list[str] | None, str]]:
        """What stands before each column, its path (None at the end of the text), and the form of its value."""
        try:
            found = [*string.Formatter().parse(self._text)]
        except ValueError as error:
            raise self._wrong(brief(error)) from error
        parts: list[tuple[str, list[str] | None, str]] = []
        for before, path, form, conversion in found:
            if path is not None and (conversion or form not in _FORMS or not _PATH.fullmatch(path)):
                raise self._wrong(f"{{{path}{':' if form else ''}{form}}} names no column")
            parts.append((before, None if path is None else re.findall(r"[^\[\]]+", path), form or ""))
        if all(path is None for _, path, _ in parts):
            raise self._wrong("it names no column")
        return parts

    def of(self, record: Record) -> Any:
        """The value of the new column."""
        if len(self.parts) == 1 and not self.parts[0][0] and not self.parts[0][2]:
            (_, path, _) = self.parts[0]
            value = self._value(record, path or [])
            return str(value) if isinstance(value, int | float) else value
        return "".join(
            before + ("" if path is None else self._text_of(path, self._value(record, path), form))
            for before, path, form in self.parts
        )

    def _value(self, record: Record, path: Sequence[str]) -> Any:
        value: Any = record
        for step in path:
            if isinstance(value, Mapping) and step in value:
                value = value[step]
            elif _is_list(value) and step.isdigit() and int(step) < len(value):
                value = value[int(step)]
            else:
                purpose = f"of which {self._name} is to be made"
                if value is record:
                    raise no_column(step, purpose, record)
                known = [*map(str, value)] if isinstance(value, Mapping) else []
                there = ", ".join(known) or type(value).__name__
                raise ActError(
                    f"there is no {step!r} in the column {path[0]}, {purpose}; there is {there}{meant(step, known)}"
                )
        return value

    def _text_of(self, path: Sequence[str], value: Any, form: str) -> str:
        where = f"the column {''.join([path[0], *(f'[{step}]' for step in path[1:])])}"
        if form == "options":
            if not _is_list(value) or not 0 < len(value) <= 26:
                raise ActError(f"{where} is {value!r:.60}; expected a list of up to 26 options")
            lettered = zip(string.ascii_uppercase, value, strict=False)
            return "\n".join(f"{letter}. {option}" for letter, option in lettered)
        if form in ("letter", "letter0"):
            first = int(form == "letter")
            number = int(value) - first if str(value).isdigit() else -1
            if not 0 <= number < 26:
                other = ", which letter0 counts from 0" if str(value) == "0" else ""
                raise ActError(f"{where} is {value!r:.60}; expected the number of an option, from {first}{other}")
            return string.ascii_uppercase[number]
        if not isinstance(value, str | int | float):
            raise ActError(f"{where} is {value!r:.60}; expected a text or number")
        return str(value)

    def _wrong(self, why: str) -> ActError:
        return ActError(
            f"the template of {self._name} is {self._text!r:.80}: {why}; expected a text with columns such as "
            "{question}, {choices[text]:options} or {label:letter}"
        )

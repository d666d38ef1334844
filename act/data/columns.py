"""Columns of a record, and keys of its messages, that are not read: may they be ignored, or would text be lost?

Text may be ignored if the name says that it describes the record (``id``, ``source``, ``difficulty``) and it is no
longer than a label, if the name says that it is another form of the answer (``solution``, ``chosen``), or if all of it
stands in the record as it is read. Numbers and flags may be ignored unless the name is that of a part of the prompt
(``context``, ``tools``) or of a choice (``A``, ``opb``). The rest may only be ignored if the user names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from act.core.errors import ActError, option
from act.core.near import meant

LONGEST_LABEL = 60  # characters

_DESCRIBES = re.compile(
    "(id|idx|index|uuid|guid|hash|sha|source|url|uri|link|license|lang|language|locale|split|dataset|subset|category|"
    "categorie|type|kind|subject|topic|domain|level|difficulty|tag|label|score|rating|quality|date|time|timestamp|"
    "created|updated|year|author|name|title|version|model|generator|meta|metadata|info|ability|task|skill|count|length|"
    "size|path|file|filename|format|statu|role|area|field|discipline|grade|genre|country|region|origin|provenance|at|by|"
    "repo|repository|commit|extension|annotator|publisher)s?"
)
_ANSWERS = re.compile(
    "(answer|completion|output|response|solution|explanation|rationale|chosen|rejected|generation|target|gold|equation)s?"
)
_PROMPTS = re.compile(
    "(prompt|system|developer|instruction|question|querie|query|context|input|history|historie|document|passage|"
    "paragraph|article|storie|story|background|premise|evidence|knowledge|fact|hint|persona|tool|function|schema|api|"
    "example|demonstration|shot|choice|option|image|audio|video|table|conversation|dialog|dialogue|message|reasoning|"
    "thinking|thought|cot|prefix|suffix)s?"
)
_CHOICES = re.compile(
    r"[^\W\d_]|(ans|answer)_?[a-h]|(op|opt|option|choice|alternative|candidate|distractor|ending|sol)_?([a-h]|\d+)",
    re.IGNORECASE,
)
_COUNTS = frozenset(
    ("is", "has", "n", "num", "use", "enable")
)  # words before a name that make it one of a number or flag
_NO_TEXT = frozenset(("role", "from", "type"))  # keys inside a column whose values say what is beside them


_TEXTS = ("prompt", "question", "instruction", "text", "input", "completion", "answer", "output")


class Text:
    """A text in which others are looked up, without regard to white space or JSON's escapes."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def _squeezed(self) -> str:
        return "".join(self.text.split())

    def has(self, part: str) -> bool:
        """Whether ``part`` stands in the text; templates trim what they are given, and write some of it as JSON."""
        if part.strip() in self.text:
            return True
        forms = (part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1])
        return any("".join(form.split()) in self._squeezed for form in forms)

    def has_word(self, part: str) -> bool:
        """Whether ``part`` stands in the text, and, if it is a single word or number, not inside another."""
        part = part.strip()
        if part.isascii() and part.isalnum():
            return bool(re.search(rf"(?<![a-zA-Z0-9]){part}(?![a-zA-Z0-9])", self.text))
        return self.has(part)


def values_in(value: Any) -> Iterator[Any]:
    """Every value somewhere in ``value`` that is neither null nor a list or mapping."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _NO_TEXT:
                yield from values_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from values_in(item)
    elif value is not None:
        yield value


def texts_of(value: Any) -> Iterator[str]:
    """Every string that is a value somewhere in ``value``."""
    return (each for each in values_in(value) if isinstance(each, str))


def names_in(record: Mapping[str, Any]) -> Iterator[str]:
    """What may be ignored of a record: its columns, and the keys of the messages in them."""
    for name, value in record.items():
        yield name
        for message in value if isinstance(value, list) else ():
            if isinstance(message, Mapping):
                yield from message


def no_column(name: str, purpose: str, record: Mapping[Any, Any]) -> ActError:
    """The error for a record without a column that was asked for, which names those that it has."""
    known = [*map(str, record)]
    return ActError(f"there is no column {name!r}, {purpose}; there is {', '.join(known)}{meant(name, known)}")


def answer_in(record: Mapping[Any, Any]) -> str | None:
    """The first column whose name says that it is an answer; None if there is none."""
    return next((name for name in map(str, record) if any(map(_ANSWERS.fullmatch, _words(name)))), None)


def mapping_of(record: Mapping[Any, Any]) -> str:
    """The option by which the columns of a record, none of which is read, may be read, as their names suggest."""
    asked, answer = next(filter(_is_prompt, map(str, record)), None), answer_in(record)
    if asked and answer:
        return columns_option({"prompt": f"{{{asked}}}", "completion": f"{{{answer}}}"})
    if len(record) == 1:
        (only,) = map(str, record)
        return columns_option({next(iter(get_close_matches(only.lower(), _TEXTS, 1)), "text"): f"{{{only}}}"})
    return columns_option({"prompt": "{NAME}", "completion": "{NAME}"})


def columns_option(columns: Mapping[str, str]) -> str:
    """How columns are read as others: by an option of commands, or an argument in Python.

    Args:
        columns: templates, such as ``{name}``, by the columns that are made of them.

    >>> from act.data.columns import columns_option
    >>> columns_option({"prompt": "{ask}"})
    "columns={'prompt': '{ask}'}"
    """
    alone = (template[1:-1] if template.count("{") == 1 else f"'{template}'" for template in columns.values())
    typed = ",".join(f"{new}={old}" for new, old in zip(columns, alone, strict=True))
    return option(f"--columns {typed}", f"columns={dict(columns)}")


def ignore_option(*names: str) -> str:
    """How columns, or keys of messages, are left out on purpose: by an option of commands, or an argument in Python.

    >>> from act.data.columns import ignore_option
    >>> ignore_option("context")
    "ignore_columns=['context']"
    """
    return option(f"--ignore-columns {','.join(names)}", f"ignore_columns={[*names]}")


def label_of(record: Mapping[str, Any], column: str) -> Any:
    """The label of a record in the column of its ability; raises :class:`ActError` if there is no such column."""
    if column not in record:
        raise no_column(
            column, f"which is to name the ability ({option('--ability-column', 'ability_column')})", record
        )
    return record[column]


def require_nothing_lost(
    record: Mapping[str, Any], read: Iterable[str], whole: str, essence: Iterable[str], *, only_prompts: bool = False
) -> None:
    """Raise :class:`ActError` if a column that is not read carries text that belongs to the prompt.

    Args:
        record: the columns of a record.
        read: those that are read.
        whole: the record as it is read.
        essence: what is asked and answered; a column that has both is another rendering of the record.
        only_prompts: look only at columns whose name says that they belong to a prompt.
    """
    asked = [each for each in essence if each.strip()]
    left = {name: value for name, value in record.items() if name not in set(read)}
    lost = lost_of({name: left[name] for name in left if _is_prompt(name) or not only_prompts}, Text(whole), asked)
    if lost:
        columns = f"column{'s' if len(lost) > 1 else ''} {', '.join(lost)}"
        verb = "are" if len(lost) > 1 else "is"
        raise ActError(
            f"the {columns} may belong to the prompt, and {verb} not read here; write what belongs to the prompt into "
            f"it{_template(lost, read, record)}, or ignore the rest on purpose ({ignore_option(*lost)})"
        )


def _template(lost: Sequence[str], read: Iterable[str], record: Mapping[str, Any]) -> str:
    """The option that puts columns of text before the prompt of a record, in brackets; empty for messages."""
    there = [name for name in _TEXTS if name in set(read) and name in record]
    if not there or not all(isinstance(record[name], str) for name in lost):
        return ""
    put = " ".join(f"{{{name}}}" for name in (*lost, there[0]))
    others = {name: f"{{{name}}}" for name in there[1:]}
    if there == ["instruction"] and (answer := answer_in(record)):
        return f" ({columns_option({'question': put, 'answer': f'{{{answer}}}'})})"
    return f" ({columns_option({there[0]: put, **others})})"


def lost_of(values: Mapping[str, Any], text: Text, asked: Sequence[str] = ()) -> list[str]:
    """The names of values that may not be ignored, and do not stand in a text.

    Args:
        values: columns or keys that are not read.
        text: the record as it is read.
        asked: what is asked and answered; text that has both is another rendering of the record.
    """
    return [
        name
        for name, value in values.items()
        if any(not text.has_word(part) and not _renders(part, asked) for part in _parts(name, value))
    ]


def _is_prompt(name: str) -> bool:
    """Whether the name of a column says that it belongs to a prompt."""
    return not _describes(name) and bool(_CHOICES.fullmatch(name) or any(map(_PROMPTS.fullmatch, _words(name))))


def _describes(name: str) -> bool:
    words = _words(name)
    return bool(_DESCRIBES.fullmatch(words[-1])) or words[0] in ("meta", "metadata")


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[\W_\d]+", apart.lower()) if word] or [name]


def _parts(name: str, value: Any) -> Iterator[str]:
    """The texts in a column that may not be ignored unless they are read elsewhere."""
    if _describes(name):
        return (part for part in texts_of(value) if not _is_label(part.strip()))
    if _is_prompt(name):
        counts = len(name) > 1 and _words(name)[0] in _COUNTS
        found = (each for each in values_in(value) if not (counts and isinstance(each, bool | int | float)))
    elif any(map(_ANSWERS.fullmatch, _words(name))):
        return iter(())
    else:
        found = (each for each in values_in(value) if isinstance(each, str | bytes))
    return (part for part in map(str, found) if part.strip())  # an image is not text, but lost, too


def _is_label(text: str) -> bool:
    """Whether a text is a few words, or has no white space, as ids and URLs have none."""
    return len(text) <= LONGEST_LABEL or (text.isascii() and not any(map(str.isspace, text)))


def _renders(part: str, asked: Sequence[str]) -> bool:
    text = Text(part)
    return len(asked) > 1 and all(text.has(each) for each in asked)

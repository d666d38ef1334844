"""Columns of a record that are not read: those that may be ignored, and those that would be lost from its prompt.

A column may be ignored if it is empty, one number or a flag; if its name says that it describes the record
(``id``, ``source``, ``difficulty``) or that it is another form of the answer (``solution``, ``chosen``); or if all its
text stands in the record as it is read. A column whose name says that it belongs to the prompt (``system``,
``context``, ``tools``) may not, nor one of any other name that holds more than a label, unless the user names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from act.core.errors import ActError

LONGEST_LABEL = 60  # characters

_DESCRIBES = re.compile(
    "(id|idx|index|uuid|guid|hash|sha|source|url|uri|link|license|lang|language|locale|split|dataset|subset|category|"
    "categorie|type|kind|subject|topic|domain|level|difficulty|tag|label|score|rating|quality|date|time|timestamp|"
    "created|updated|year|author|name|title|version|model|generator|meta|metadata|info|ability|task|skill|count|length|"
    "size|token|path|file|filename|format|statu|role)s?"
)
_ANSWERS = re.compile(
    "(answer|completion|output|response|solution|explanation|rationale|chosen|rejected|generation|target|gold|equation)s?"
)
_PROMPTS = re.compile(
    "(prompt|system|developer|instruction|question|querie|query|context|input|history|historie|document|passage|"
    "paragraph|article|storie|story|background|premise|evidence|knowledge|fact|hint|persona|tool|function|schema|api|"
    "example|demonstration|shot|choice|option|image|audio|video|table|conversation|dialog|dialogue|message|reasoning|"
    "thinking|thought|cot)s?"
)
_NO_TEXT = frozenset(("role", "from", "type"))  # keys inside a column whose values say what is beside them


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
    left = {name: value for name, value in record.items() if name not in set(read) and _may_matter(name, value)}
    if not left:
        return
    text, asked = Text(whole), [each for each in essence if each.strip()]
    lost = [
        name
        for name, value in left.items()
        if (is_prompt(name) or not only_prompts)
        and any(not text.has(part) and not _renders(part, asked) for part in _parts(name, value))
    ]
    if lost:
        columns = f"column{'s' if len(lost) > 1 else ''} {', '.join(lost)}"
        raise ActError(
            f"the {columns} may belong to the prompt, and {'are' if len(lost) > 1 else 'is'} not read here; write "
            f"what belongs to the prompt into it, or ignore the rest on purpose (--ignore-columns {','.join(lost)})"
        )


def is_prompt(name: str) -> bool:
    """Whether the name of a column says that it belongs to a prompt."""
    words = _words(name)
    return not _DESCRIBES.fullmatch(words[-1]) and any(map(_PROMPTS.fullmatch, words))


def _may_matter(name: str, value: Any) -> bool:
    words = _words(name)
    if _DESCRIBES.fullmatch(words[-1]) or words[0] in ("meta", "metadata") or isinstance(value, bool | int | float):
        return False
    return is_prompt(name) or not any(map(_ANSWERS.fullmatch, words))


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[\W_\d]+", apart.lower()) if word] or [name]


def _parts(name: str, value: Any) -> Iterator[str]:
    if is_prompt(name):  # an image is not text, but lost, too
        return (part for part in map(str, values_in(value)) if part.strip())
    return (part for part in texts_of(value) if part.strip() and not _is_label(part.strip()))


def _is_label(text: str) -> bool:
    """Whether a text is a single word, such as an id or URL, or a few words that are no sentence."""
    if text.isascii() and not any(map(str.isspace, text)):
        return True
    return len(text) <= LONGEST_LABEL and "\n" not in text and text[-1] not in ".?!:。？！"


def _renders(part: str, asked: list[str]) -> bool:
    text = Text(part)
    return len(asked) > 1 and all(text.has(each) for each in asked)

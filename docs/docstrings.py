"""Docstrings as the site shows them: this project's references and examples, in Markdown.

An extension of griffe, which reads the package without importing it.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`~?([\w.]+)`")
EXAMPLE = re.compile(r"(?m)^(?P<indent> *)>>>.*\n?(?:(?P=indent)\S.*\n?|(?P=indent) +.*\n?)*")
PUBLIC = re.compile(r"act\.[A-Za-z_]+$")


class Docstrings(Extension):
    """Turns roles into links, and examples into blocks of code."""

    def on_object(self, *, obj: Object, **given: Any) -> None:
        """Change the docstring of an object before it is parsed."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring in Markdown."""
    return EXAMPLE.sub(_fenced, ROLE.sub(_linked, text))


def _linked(found: re.Match[str]) -> str:
    """A link to what is public, else its name."""
    return f"[`{found[1]}`][{found[1]}]" if PUBLIC.match(found[1]) else f"`{found[1]}`"


def _fenced(found: re.Match[str]) -> str:
    indent, code = found["indent"], re.sub(r" +# doctest: .*", "", found[0].rstrip("\n"))
    return f"{indent}```pycon\n{code}\n{indent}```\n"

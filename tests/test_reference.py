"""The reference: it shows all that users call, each with its arguments, its errors and an example that runs."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import yaml
from test_face import EXAMPLES

import act
import act_kernels

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
SHOWN = {
    name: yaml.safe_load(given or "{}") for name, given in re.findall(r"(?m)^::: (\S+)\n(?: +options: (.*)\n)?", PAGE)
}
"""What the reference shows, by its public name, with the options of each."""
FROM_RUNS = {"run", "stream", "batch", "job"}  # what a run hands to its observers


@dataclass(frozen=True)
class Entry:
    """Something that users call.

    Attributes:
        own: its docstring.
        docs: those that may name its arguments: its own, of what it overrides, of its class, and of the fields of that.
        arguments: what it takes.
        raises: whether its own lines raise an error.
        sources: the examples of its own, and those of its class that use it.
    """

    own: str
    docs: list[str]
    arguments: set[str]
    raises: bool
    sources: list[str]


def entries() -> Iterator[tuple[str, Entry]]:
    """All that the reference shows, methods and properties too."""
    for name, options in SHOWN.items():
        thing = found(name)
        if inspect.ismodule(thing):
            for member in options["members"]:
                yield from entries_of(f"{name}.{member}", getattr(thing, member), None)
        else:
            yield from entries_of(name, thing, options.get("members"))


def found(name: str) -> Any:
    """What a public name stands for."""
    first, *others = name.split(".")
    return functools.reduce(getattr, others, importlib.import_module(first))


def entries_of(name: str, thing: Any, shown: list[str] | None) -> Iterator[tuple[str, Entry]]:
    if inspect.isfunction(thing):
        yield name, Entry(doc(thing), [doc(thing)], *called(thing), sources(home(thing)))
    if not inspect.isclass(thing) or issubclass(thing, Exception):
        return
    ours = [each for each in thing.__mro__ if each.__module__.startswith("act")]
    docs = [text for each in ours for text in (doc(each), *of_fields(each))]
    yield name, Entry(doc(thing), docs, *called(vars(thing).get("__init__")), sources(home(thing)))
    kinds = FunctionType | classmethod | staticmethod | property | functools.cached_property
    for key in {key: None for each in ours for key, value in vars(each).items() if isinstance(value, kinds)}:
        if key.startswith("_") or (shown is not None and key not in shown):
            continue
        held = [(each, vars(each)[key]) for each in ours if key in vars(each)]
        own = "\n".join(doc(value) for _, value in held)
        places = [place for each in ours for place in (home(each), *(f"{home(each)}.{other}" for other in vars(each)))]
        used = [one for place in places for one in sources(place) if re.search(rf"\.{key}\b|def {key}\(", one)]
        mine = [one for each, _ in held for one in sources(f"{home(each)}.{key}")]
        yield (
            f"{name}.{key}",
            Entry(own, [own, *docs], *called(getattr(held[0][1], "__func__", held[0][1])), mine + used),
        )


def called(given: Any) -> tuple[set[str], bool]:
    """The names of the arguments, and whether the lines of a function raise an error; nothing for a property."""
    if not inspect.isfunction(given):
        return set(), False
    given = inspect.unwrap(given)
    arguments = {*inspect.signature(given).parameters} - {"self", "cls", *FROM_RUNS}
    if given.__code__.co_filename.startswith("<"):  # made by dataclasses
        return arguments, False
    lines = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(given))))
    return arguments, any(isinstance(line, ast.Raise) and line.exc is not None for line in lines)


def of_fields(thing: type) -> list[str]:
    """The names of fields that a docstring of their own describes."""
    body = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0].body
    pairs = itertools.pairwise(body)
    return [one.target.id for one, text in pairs if isinstance(one, ast.AnnAssign) and isinstance(text, ast.Expr)]


def home(thing: Any) -> str:
    """The name of a class or function where it is defined."""
    return f"{thing.__module__}.{thing.__qualname__}"


def doc(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def sources(place: str) -> list[str]:
    """The lines of the examples at a place, which run in test_face.py."""
    return [example.source for example in EXAMPLES[place].examples] if place in EXAMPLES else []


ENTRIES = dict(entries())


def test_the_page_says_in_a_line_what_each_name_is():
    """Where the page is read without its entries, as on a forge, it is a table of names."""
    rows = dict(re.findall(r"(?m)^\| `(\S+)` \| (.*) \|$", PAGE))
    wanted = {
        name: summary(found(name)) for name in SHOWN if name.startswith("act.") and not inspect.ismodule(found(name))
    }
    assert rows == wanted


def summary(thing: Any) -> str:
    """The first line of a docstring, in Markdown."""
    line = doc(thing).partition("\n")[0].replace("|", "\\|")
    return re.sub(r":\w+:`~?(?:act\.)?([\w.]+)`", r"`act.\1`", line).replace("``", "`")


def test_no_docstring_sends_the_reader_to_what_the_reference_does_not_show():
    sent = {name: re.findall(r":(?:data|mod):`~?([\w.]+)`", entry.own) for name, entry in ENTRIES.items()}
    assert not {name: places for name, places in sent.items() if {*places} - SHOWN.keys()}


@pytest.mark.parametrize("part", ["Args:", "Attributes:"])
def test_every_entry_of_a_list_is_one_that_the_site_can_read(part):
    """Names before a colon on one line, the rest below it deeper; what the site cannot read, it leaves out."""
    unread = {}
    for name, entry in ENTRIES.items():
        for listed in re.findall(rf"(?m)^{part}\n((?:    .*\n|\n)+)", f"{entry.own}\n"):
            firsts = re.findall(r"(?m)^    (\S.*)$", listed)
            unread[name] = [line for line in firsts if not re.match(r"\w+(, \w+)*: ", line)]
    assert not {name: lines for name, lines in unread.items() if lines}
    assert len(unread) > 10


def test_every_public_name_is_shown():
    functions = (name for name in act_kernels.__all__ if inspect.isfunction(getattr(act_kernels, name)))
    values = {"__version__", *act._MODULES}
    wanted = {f"act.{name}" for name in act.__all__ if name not in values} | {
        f"act_kernels.{name}" for name in functions
    }
    for short, module in act._MODULES.items():
        public = vars(importlib.import_module(module))
        names = public.get("__all__", ["profile_dataset"])
        wanted |= {f"act.{short}.{name}" for name in names if inspect.isfunction(public[name])}
    assert not wanted - SHOWN.keys() - ENTRIES.keys()


def test_everything_shown_has_an_example_that_runs():
    assert len(ENTRIES) > 150
    assert not [name for name, entry in ENTRIES.items() if not entry.sources]


@pytest.mark.parametrize("name", ENTRIES)
def test_its_docstring_names_arguments_and_errors(name):
    entry = ENTRIES[name]
    assert entry.own, "no docstring"
    text = "\n".join(entry.docs)
    assert not [each for each in sorted(entry.arguments) if not re.search(rf"\b{each}\b", text)], "without a word"
    assert "Raises:" in text or not entry.raises

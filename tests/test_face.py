"""The public face: every name is there, typed as it is at run time, and every example runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
from support import tiny_model

import act
import act_kernels

PUBLIC = [name for name in act.__all__ if inspect.isclass(getattr(act, name)) or inspect.isfunction(getattr(act, name))]
NEEDED = {"act.editing.mergekit": "mergekit", "act.profiling.ray_data": "ray"}
"""Packages without which the examples of a module do not run."""


def test_every_name_is_there_and_listed_by_dir():
    assert set(act.__all__) <= set(dir(act))
    for name in act.__all__:
        assert getattr(act, name) is not None
    assert {name for name in dir(act) if not name.startswith("__")} == {*act.__all__} - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        act.nothing  # noqa: B018


def test_type_checkers_see_what_is_there_at_run_time():
    """The imports under TYPE_CHECKING name the same homes as the table that ``__getattr__`` uses."""
    tree = ast.parse(Path(act.__file__).read_text(encoding="utf-8"))
    seen = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("act."):
            seen.update({alias.name: node.module for alias in node.names})
    modules = {name: f"{seen.pop(name)}.{name}" for name in act._MODULES}
    assert seen == act._HOMES
    assert modules == act._MODULES
    assert {*act._HOMES, *act._MODULES, "__version__"} == set(act.__all__)


def all_modules() -> list[str]:
    """Every module of the package, and those of the kernels' public functions."""
    found = [info.name for info in pkgutil.walk_packages(act.__path__, "act.")]
    ops = {thing.__module__ for name in act_kernels.__all__ if inspect.isfunction(thing := getattr(act_kernels, name))}
    return ["act", *(name for name in found if not name.endswith("__main__")), *sorted(ops)]


def examples() -> dict[str, doctest.DocTest]:
    """Every docstring with an example, by the name of what it documents."""
    found = {}
    for name in all_modules():
        for test in doctest.DocTestFinder().find(importlib.import_module(name)):
            if test.examples:
                found[test.name] = test
    return found


EXAMPLES = examples()


@pytest.fixture
def namespace(tokenizer, tmp_path, monkeypatch):
    """What examples may use: two tiny models, a corpus, a tokenizer, and an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    questions = [{"question": f"What is {a} plus {b}?", "answer": f"{a + b}"} for a in range(3) for b in range(4)]
    return {
        "act": act,
        "act_kernels": act_kernels,
        "torch": torch,
        "model": tiny_model("llama"),
        "donor": tiny_model("llama"),
        "target": tiny_model("llama", seed=1),
        "tokenizer": tokenizer,
        "corpus": act.Corpus.from_records(questions, tokenizer),
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name.rpartition(".")[0] in NEEDED else name for name in EXAMPLES],
)
def test_the_example_runs(name, namespace):
    if package := NEEDED.get(name.rpartition(".")[0]):
        pytest.importorskip(package)
    test = EXAMPLES[name]
    test.globs.update(namespace)
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=printed.append)
    assert not printed, "".join(printed)


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_function_hides_its_arguments(name):
    thing = getattr(act, name)
    functions = (
        [thing]
        if inspect.isfunction(thing)
        else [member for key, member in inspect.getmembers(thing, inspect.isfunction) if not key.startswith("_")]
    )
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters), function.__qualname__
        assert "Any" not in {str(parameter.annotation) for parameter in parameters}, function.__qualname__
        assert function.__annotations__.get("return") not in (None, "Any"), function.__qualname__

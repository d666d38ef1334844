"""The public face: every name is there, typed as it is at run time, and shown by an example that runs."""

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

PUBLIC = [name for name in act.__all__ if inspect.isclass(getattr(act, name)) or inspect.isfunction(getattr(act, name))]
# Errors, protocols and results have no life of their own: the examples of what takes or gives them show them.
SHOWN_ELSEWHERE = {"ActError"}


MODULES = [
    f"{module}.{name}"
    for module in act._MODULES.values()
    for name in importlib.import_module(module).__dict__.get("__all__", ["profile_dataset"])
    if inspect.isfunction(getattr(importlib.import_module(module), name))
]
"""The functions of public modules, where these are at home or shown."""
NEEDED = {"act.editing.mergekit": "mergekit", "act.profiling.ray_data": "ray"}
"""Packages without which the examples of a module do not run."""


def test_every_name_is_there_and_listed_by_dir():
    assert set(act.__all__) <= set(dir(act))
    for name in act.__all__:
        assert getattr(act, name) is not None
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
    """Every module of the package."""
    found = [info.name for info in pkgutil.walk_packages(act.__path__, "act.")]
    return ["act", *(name for name in found if not name.endswith("__main__"))]


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


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - SHOWN_ELSEWHERE))
def test_every_public_name_has_an_example(name):
    home = f"{act._HOMES[name]}.{name}"
    assert any(found == home or found.startswith(f"{home}.") for found in EXAMPLES), f"{name} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_every_function_of_a_public_module_has_an_example(name):
    module, _, function = name.rpartition(".")
    home = getattr(importlib.import_module(module), function).__module__
    assert f"{home}.{function}" in EXAMPLES, f"{name} has no example"


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

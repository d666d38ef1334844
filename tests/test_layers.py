"""The order of the packages: each imports only those before it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ACT = Path(__file__).resolve().parents[1] / "act"
ORDER = ("core", "models", "data", "profiles", "taps", "profiling", "ranking", "editing", "evaluation")
TOP = ("recipes", "report", "lab", "cli")
FILES = sorted(ACT.rglob("*.py"))
VERBS = ("profile", "rank", "transfer", "tune", "evaluate", "sweep", "compare", "compose", "load")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and package of every import from ``act``, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "a relative import"
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "act" else [f"act.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("act."))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name == "act" or alias.name.startswith("act.")]
            yield from ((node.lineno, ([*name.split("."), "the public face"])[1]) for name in names)


def test_every_package_has_its_place_in_the_order():
    packages = {path.parent.name for path in ACT.glob("*/__init__.py")}
    assert packages == {*ORDER, *TOP}


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_those_before_it(package):
    allowed = ORDER[: ORDER.index(package) + 1]
    upward = [
        f"{path.relative_to(ACT.parent)}:{line} imports {name}"
        for path in FILES
        if path.parent.name == package
        for line, name in imported(path)
        if name not in allowed
    ]
    assert not upward


@pytest.mark.parametrize("package", TOP)
def test_what_stands_on_top_is_imported_by_the_command_line_alone(package):
    allowed = {"cli": TOP, "report": (), "lab": ("report",), "recipes": ("report",)}[package]
    across = [
        f"{path.relative_to(ACT.parent)}:{line} imports {name}"
        for path in FILES
        if path.parent.name == package
        for line, name in imported(path)
        if name not in (*ORDER, package, *allowed)
    ]
    assert not across


def test_no_package_is_named_like_a_public_verb():
    assert not {path.parent.name for path in ACT.glob("*/__init__.py")} & set(VERBS)


@pytest.mark.parametrize("package", [*ORDER, *TOP])
def test_every_package_says_what_it_is_for_and_what_may_not_enter(package):
    docstring = ast.get_docstring(ast.parse((ACT / package / "__init__.py").read_text(encoding="utf-8")))
    assert docstring and len(docstring.splitlines()) == 3


def test_act_kernels_knows_nothing_of_act():
    for path in sorted((ACT.parent / "act_kernels").rglob("*.py")):
        assert not list(imported(path)), path
        assert "transformers" not in path.read_text(encoding="utf-8"), path


def test_the_architecture_page_names_files_that_exist():
    page = (ACT.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page, flags=re.MULTILINE)
    assert tuple(package for package, _ in rooms if package in ORDER) == ORDER
    for package, files in rooms:
        for name in re.findall(r"`(\w+)`", files) if package in ORDER else ():
            assert (ACT / package / f"{name}.py").is_file(), f"{package}/{name}.py"

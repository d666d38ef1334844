"""The documentation: commands, code and links that exist, and pictures as they are drawn. ``make docs`` builds it."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from act.cli import COMMANDS, app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.md"), *ROOT.glob("*.md")]
IDS = [str(path.relative_to(ROOT)) for path in PAGES]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^ *```{language}\n(.*?)^ *```", path.read_text(encoding="utf-8"))


def commands(path: Path) -> list[list[str]]:
    """The words of each command of ours in a page, after the name of the program."""
    lines = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[each.index(program) + 1 :] for each in words for program in ("act-profile", "act") if program in each]


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_commands_and_code_are_those_that_there_are(path):
    group = typer.main.get_command(app)
    for name, *given in commands(path):
        assert name in COMMANDS, f"no command act-profile {name}"
        command = group.get_command(None, name)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options = {word.partition("=")[0] for word in given if word.startswith("--")} if name != "patch" else set()
        assert options <= known | {"--help"}, f"act-profile {name} has no {options - known}"
    for code in blocks(path, "python"):
        ast.parse(code)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_links_lead_somewhere(path):
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text):
        assert ":" in link or (path.parent / link).exists(), link


def test_forms_and_citation_are_yaml():
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]:
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version


def test_pictures_are_as_they_are_drawn():
    found = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    drawn = {f"{picture.name}.svg": picture.svg() for picture in found["pictures"]()}
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "concepts").glob("*.svg")}
    assert committed == drawn, "run python docs/pictures.py"

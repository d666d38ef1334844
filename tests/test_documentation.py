"""The documentation: commands, code and links that exist, and pictures as they are drawn. ``make docs`` builds it."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import re
import runpy
import shlex
import statistics
from pathlib import Path
from typing import Any

import click
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
    found = [each[each.index(name) + 1 :] for each in words for name in ("act-profile", "act") if name in each]
    ends = ("&&", "||", "|", ";", ">", "<")
    return [[*itertools.takewhile(lambda word: word not in ends, each)] for each in found]


def parse(name: str, given: list[str]) -> None:
    """Parse a command as the program does, but for values that only the run looks at."""
    command = typer.main.get_command(app).get_command(None, name)
    assert command is not None, f"no command act-profile {name}"
    if isinstance(command, click.Group):
        command, given = command.get_command(None, given[0]), given[1:]
    try:
        command.make_context(name, [*given])
    except click.exceptions.Exit:  # --help, --example
        pass
    except click.ClickException as error:
        raise AssertionError(f"act-profile {name} {shlex.join(given)}: {error.format_message()}") from error


def test_a_model_that_the_quick_start_saves_has_its_tokenizer():
    code = "".join(blocks(ROOT / "docs" / "quick-start.md", "python"))
    saved = re.findall(r'(?m)^(\w+)\.save_pretrained\("(.*?)"\)', code)
    models = {folder for name, folder in saved if name != "tokenizer"}
    assert models and models == {folder for name, folder in saved if name == "tokenizer"}


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_commands_and_code_are_those_that_there_are(path):
    for name, *given in commands(path):
        parse(name, given)
    for code in blocks(path, "python"):
        ast.parse(code)


@functools.cache
def known_options() -> set[str]:
    """The options of every command, and of the scripts of benchmarks and experiments."""
    found = {"--nproc-per-node", "--max-restarts", "--log", "--dependency", "--inplace"}  # torchrun, sbatch, setup.py
    group = typer.main.get_command(app)
    commands = [group, *(group.get_command(None, name) for name in COMMANDS)]
    while commands:
        command = commands.pop()
        found |= {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        commands += getattr(command, "commands", {}).values()
    for folder in ("benchmarks", "experiments", "act/lab"):
        for script in (ROOT / folder).glob("*.py"):
            found |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text(encoding="utf-8")))
    return found | {"--help", "--version", "--install-completion", "--show-completion"}


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_options_in_sentences_are_those_that_there_are(path):
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", path.read_text(encoding="utf-8"))
    named = [
        option for span in re.findall(r"`([^`]+)`", text) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    ]
    assert not {*named} - known_options()
    for span in re.findall(r"`act-profile ([a-z]+)[^`]*`", text):
        assert span in COMMANDS, f"no command act-profile {span}"


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


def results(name: str) -> Any:
    """A committed result file, by its place without ``.json``."""
    folder, _, stem = name.partition("/")
    return json.loads((ROOT / folder / "results" / f"{stem}.json").read_text(encoding="utf-8"))


def test_figures_in_sentences_are_the_committed_ones():
    """Those that no table holds (tables are filled from their files: test_benchmarks.py)."""
    gain = results("experiments/language")["gain_at_95"]
    mean = {name: f"{statistics.mean(of.values()):.2f}" for name, of in gain.items()}
    cluster = results("benchmarks/cluster")
    memory = cluster["attribute_gib"]
    loading = next(one for one in cluster["runs"] if (one["model"], one["tokens"]) == ("MoE", "10⁹"))
    overheads = [results(f"benchmarks/overhead-{model}-cpu")["results"] for model in ("tiny", "small", "medium")]
    ratios = sorted(one["ratio"] for rows in overheads for one in rows)
    said = {
        "README.md": [f"[{ratios[0]:.2f} to {ratios[-1]:.2f}](benchmarks/README.md#what-profiling-costs)"],
        "docs/scale.md": [f"{loading['parts'].partition(',')[0]} of {loading['gpus_512']}"],
        "docs/limits.md": [mean["attribution / cost"], mean["weight-diff"], mean["interpolation"]],
        "docs/guides/recover.md": [
            f"{memory['Llama-2-7B']:.0f} GiB for Llama",
            f"{memory['Qwen2.5-7B']:.0f} GiB for Qwen",
        ],
    }
    for page, figures in said.items():
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert [figure for figure in figures if figure not in text] == [], page


def test_the_picture_of_a_report_shows_the_committed_figures():
    taken = runpy.run_path(str(ROOT / "docs" / "report_picture.py"))
    picture, demo = taken["PICTURE"].read_bytes(), results("benchmarks/demo-cpu")
    assert f"{taken['DIGEST']}\0{taken['digest'](demo)}".encode() in picture, "run python docs/report_picture.py"
    assert len(picture) < 400_000
    others = {**demo, "moved": {**demo["moved"], "attribution": 0.03}}
    assert taken["digest"](others) != taken["digest"](demo)


def test_the_table_of_the_demo_is_the_committed_one():
    demo = results("benchmarks/demo-cpu")
    rows = re.findall(
        r"(?m)^│ .*?: ([\w-]+).*│ +(\d+)% │ +(.*?) │ +(.*?) │$", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    shares = {**demo["finders"], **demo["controls"]}
    assert {name for name, *_ in rows} == {*shares}
    for name, moved, *figures in rows:
        expected = [f"{shares[name][of]:.2f} ± {demo['errors'][name][of]:.2f}" for of in ("forgotten", "retained")]
        assert (figures, float(moved)) == (expected, round(100 * demo["moved"][name], 1)), name

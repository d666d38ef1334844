"""Hooks of MkDocs: pages of the repository that lie outside docs/, and links that hold in both.

A link in any page is written as it holds in the repository. On the site it leads to the page that the file has there,
or to a copy of the file; a link to what is not there is a warning, which fails the build. The page of the commands gets
their options from the program itself.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import act.cli
from act.cli import app
from act.cli.help import old_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "performance.md",
    "experiments/README.md": "experiments.md",
    "recipes/README.md": "ready-recipes.md",
    "act/lab/checkpoints/README.md": "demo-models.md",
    "act/lab/checkpoints/prose/README.md": "demo-prose.md",
}
"""Pages by their place in the repository, and on the site."""
COMMANDS = "docs/commands.md"
LINK = re.compile(r"(?<!`)(!?\[[^\]\n]*(?:\n[^\]\n]*)?\]\()([^)\s#]*)(#[^)\s]*)?(\))")
LIST = re.compile(r"(?m)^(?P<before>(?![-*|#> ]|\d+\.|$).*)\n(?=[-*] )")
ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "|*_[]<"})
FENCE = re.compile(r"(?ms)^```.*?^```$")

log = logging.getLogger("mkdocs.hooks.repository")
copied: set[str] = set()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and copies of the files that pages lead to."""
    for place, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
    copied.clear()
    for file in [*files.documentation_pages()]:
        place = _place(file)
        for target in _targets(Path(str(file.abs_src_path)).read_text(encoding="utf-8"), place):
            if target not in copied and not _is_page(target) and (ROOT / target).is_file():
                copied.add(target)
                if not target.startswith("docs/"):  # those are there
                    files.append(File.generated(config, _copy(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they hold on the site, an empty line before each list, which GitHub does not need, and all options."""
    place = _place(page.file)

    def relinked(found: re.Match[str]) -> str:
        before, link, anchor, after = found[1], found[2], found[3] or "", found[4]
        if not link or ":" in link:
            return found[0]
        target = _resolved(link, place)
        if not (ROOT / target).is_file():
            log.warning("%s leads to %s, which is no file", place, link)
            return found[0]
        there = _page(target) if _is_page(target) else _copy(target)
        return f"{before}{posixpath.relpath(there, posixpath.dirname(page.file.src_uri) or '.')}{anchor}{after}"

    parts = []
    last = 0
    for fence in FENCE.finditer(markdown):
        parts += [_listed(LINK.sub(relinked, markdown[last : fence.start()])), fence[0]]
        last = fence.end()
    more = options() if place == COMMANDS else ""
    return "".join([*parts, _listed(LINK.sub(relinked, markdown[last:])), more])


def options() -> str:
    """The options of every command, as tables."""
    lines: list[str] = []
    group = typer.main.get_command(app)
    for name in act.cli.COMMANDS:
        command = group.get_command(None, name)  # type: ignore[attr-defined]
        subcommands = {f"{name} {each}": one for each, one in getattr(command, "commands", {}).items()}
        for called, one in (subcommands or {name: command}).items():
            lines += [
                f"\n## act-profile {called}\n",
                (one.help or "").strip(),
                "\n| option | default | |\n|---|---|---|",
            ]
            lines += [_row(parameter) for parameter in one.params if not getattr(parameter, "hidden", False)]
    return "\n".join(lines) + "\n"


def _row(option: Any) -> str:
    shown = [name for name in option.opts if name not in old_names(option)]
    names = [*shown, *option.secondary_opts] if option.opts[0].startswith("-") else [option.name.upper()]
    default = "required" if option.required else ""
    if isinstance(option.default, str | int | float | Path) and option.default not in (False, ""):
        default = f"`{option.default}`"
    text = " ".join((getattr(option, "help", None) or "").split()).translate(ESCAPED)
    return f"| {', '.join(f'`{name}`' for name in names)} | {default} | {text} |"


def _listed(text: str) -> str:
    return LIST.sub(lambda found: f"{found['before']}\n\n", text)


def _place(file: File) -> str:
    """Where a page lies in the repository."""
    return Path(os.path.relpath(str(file.abs_src_path), ROOT)).as_posix()


def _resolved(link: str, place: str) -> str:
    """Where a link leads in the repository: of a folder, to its README."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    return f"{target}/README.md" if (ROOT / target).is_dir() else target


def _targets(text: str, place: str) -> list[str]:
    links = (found[2] for found in LINK.finditer(FENCE.sub("", text)))
    return [_resolved(link, place) for link in links if link and ":" not in link]


def _is_page(target: str) -> bool:
    return target in PAGES or (target.startswith("docs/") and target.endswith(".md"))


def _page(target: str) -> str:
    return PAGES.get(target) or target.removeprefix("docs/")


def _copy(target: str) -> str:
    """Where a file that is no page lies on the site."""
    return (
        target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target.replace('.github', 'github')}"
    )

"""How every command shows itself: options in groups, then examples, as wide as the terminal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from act.cli import options
from act.cli.logs import with_level
from act.cli.mistakes import require_once
from act.core.near import meant

WIDEST, NARROW = 110, 60  # columns; in fewer than the latter, what an option does stands below it
FIRST, EXAMPLES = "Options", "Examples"
_LIST = re.compile(r"<list\[(\w+)\]>")  # of an option that its help calls repeatable


def width() -> int:
    """The width of help in columns: that of the terminal, within limits."""
    return max(30, min(shutil.get_terminal_size().columns, WIDEST) - 1)


class WithExamples:
    """Ends the help with the epilog as it is typed: the examples, which can be copied."""

    epilog: str | None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, and what they need, such as a file, under a heading that ends with a colon."""
        heading, lines = EXAMPLES, list[str]()
        for line in [*(self.epilog or "").strip().splitlines(), ""]:
            if line[:1].isupper() and line.endswith(":"):
                _write_as_it_is(formatter, heading, lines)
                heading, lines = line[:-1], []
            else:
                lines.append(line)
        _write_as_it_is(formatter, heading, lines)


class Suggesting:
    """Offers, for a command that there is not, those with almost its name, or else those whose help begins with it."""

    def known(self) -> dict[str, str]:
        """What each command does, by name."""
        own: Any = self
        return {name: command.help or "" for name, command in own.commands.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words begin with."""
        own: Any = self
        if args and not args[0].startswith("-") and own.get_command(ctx, args[0]) is None:
            ctx.fail(f"no command {args[0]!r}; see {ctx.command_path} --help{_meant(args[0], self.known())}")
        parent: Any = super()
        return parent.resolve_command(ctx, args)


def _meant(given: str, known: dict[str, str]) -> str:
    """The end of a message that offers commands: ``profile`` is what ``run`` and ``pair`` do."""
    if named := meant(given.lower(), known, 2):
        return named
    verbs = {name: said.split(maxsplit=1)[0].lower() for name, said in known.items() if said}
    near = get_close_matches(given.lower(), {*verbs.values()}, 1)
    names = [name for name, verb in verbs.items() if verb in near]
    return f"; did you mean {' or '.join(names)}?" if names else ""


class Group(WithExamples, Suggesting, TyperGroup):
    """Commands of one name, such as those of ``patch``, with an example of each."""


class Command(WithExamples, TyperCommand):
    """A command whose help has a section for each group of its options, and its examples as they are typed.

    An option of one value that is given several times is refused, where others take the last without a word.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the arguments of a command line."""
        *_, order = self.make_parser(ctx).parse_args(args=[*args])
        require_once(order)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options by group (:data:`act.cli.options.GROUPS`), the required ones first."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], FIRST: []}
        groups |= {name: [] for name in options.GROUPS}
        for parameter in sorted(self.get_params(ctx), key=lambda each: not each.required):
            argument = parameter.param_type_name == "argument"
            name = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else FIRST)
            if parameter.name == "help":
                name = options.OUTPUT
            if record := parameter.get_help_record(ctx):
                shown = _LIST.sub(lambda found: f"<{found[1].lower()}>", record[0].replace(" range>", ">"))
                for old in old_names(parameter):
                    shown = shown.replace(f", {old}", "", 1)
                groups.setdefault(name, []).append((_broken(shown, formatter.width - 4), record[1]))
        for name, rows in groups.items():
            if rows:
                with formatter.section(name):
                    write_rows(formatter, rows)


def old_names(parameter: Any) -> list[str]:
    """The earlier names of an option, which are understood but not shown: all but the first of its long ones."""
    return [name for name in parameter.opts if name.startswith("--")][1:] if parameter.name != "help" else []


def _write_as_it_is(formatter: Any, heading: str, lines: list[str]) -> None:
    while lines and not lines[-1]:
        lines.pop()
    if lines:
        with formatter.section(heading):
            for line in lines:
                formatter.write(f"  {line}\n" if line else "\n")


def _broken(name: str, most: int) -> str:
    """The name of an option with its choices, on several lines where they are too many for one."""
    lines = [""]
    for part in re.split(r"(?<=\|)", name):
        if len(lines[-1]) + len(part) > most:
            lines.append(" " * 6)
        lines[-1] += part
    return "\n".join(lines)


def write_rows(formatter: Any, rows: list[tuple[str, str]]) -> None:
    """Write names and what they mean, side by side where there is room."""
    if formatter.width >= NARROW:
        formatter.write_dl(rows, col_max=26)
        return
    for name, meaning in rows:
        formatter.write(f"  {name}\n")
        formatter.indent()
        formatter.write_text(meaning)
        formatter.dedent()


def add(group: typer.Typer, command: Callable[..., None], examples: str, name: str | None = None) -> None:
    """Add a command to a group, with the options that all have."""
    group.command(name, cls=Command, epilog=examples)(with_level(command, options.LogLevel))

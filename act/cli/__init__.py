"""The command ``act-profile``: one file per subcommand, imported when it is asked for.

Options, tables and sentences for people; what a command does belongs in the packages below.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from act.cli import streams
from act.cli.help import Suggesting, add, width, write_rows
from act.cli.mistakes import option_meant, value_mistaken
from act.cli.options import LOOK
from act.cli.signals import Terminated, interrupted, raised
from act.core.errors import ActError, Interrupted, speak_of_options
from act.core.scratch import release_all

COMMANDS = {
    "run": "Profile one model over the counted tokens of a corpus.",
    "pair": "Profile donor and target on the same tokens.",
    "attribute": "Attribute the target's loss to its channels, by gradients.",
    "combine": "Merge the profiles of the shards of one run.",
    "rank": "Choose the channels where an ability lives.",
    "export": "Write profiles or channel sets as CSV or Parquet.",
    "report": "Show where abilities live, in tables and pictures.",
    "transfer": "Move the chosen channels of donors into a target.",
    "sweep": "Evaluate shares of the channels at several strengths.",
    "tune": "Fine-tune lightly after a transfer.",
    "evaluate": "Measure answers and their likelihood, before and after.",
    "recipe": "Run the whole method from one YAML file.",
    "mergekit": "Run a mergekit configuration with merge_method: act.",
    "plan": "Predict what a run will cover and cost.",
    "demo": "Give a small model back the language that it forgot.",
    "env": "Show versions, devices, and which kernels run where.",
    "patch": "Apply, revert, show and compose patches.",
}
"""What each does, said here so that ``act-profile --help`` imports none of them."""


class Commands(Suggesting, TyperGroup):
    """Imports the module of a command when that command is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the method."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, from the module of that name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"act.cli.{cmd_name}")
        group = getattr(module, "app", None)  # a command with subcommands of its own
        if group is None:
            group = typer.Typer(**LOOK)
            add(group, module.command, module.EXAMPLES)
        command = typer.main.get_command(group)
        command.name = cmd_name
        return command

    def known(self) -> dict[str, str]:
        """What each command does, by name."""
        return COMMANDS

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            write_rows(formatter, list(COMMANDS.items()))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Say where to begin."""
        with formatter.section("Begin with"):
            for line in BEGIN.splitlines():
                formatter.write(f"  {line}\n")


BEGIN = """act-profile demo
act-profile recipe --example > my.yaml && act-profile recipe my.yaml
act-profile pair -h"""

_settings: Any = {"help_option_names": ["-h", "--help"]}  # all commands inherit them
app = typer.Typer(
    name="act-profile",
    cls=Commands,
    help="Find where an ability lives inside a language model, and move it.",
    no_args_is_help=True,
    context_settings=_settings,
    **{**LOOK, "add_completion": True},
)


STOPPED = "stopped: SIGINT; nothing half-written was left"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"act-profile {importlib.metadata.version('act-profile')}")
        raise typer.Exit


@app.callback()
def act_profile(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    """Only the subcommands do something."""


def main() -> None:
    """Run the command line.

    An error that the user can fix becomes one sentence on stderr and exit code 2, with ``--json`` also a JSON object on
    stdout; an interruption, exit code 130, as SIGTERM where work is kept for the same command; else SIGTERM and SIGHUP,
    143 and 129. However the command ends, nothing half-written is left.
    """
    speak_of_options()
    ranked = os.environ.get("WORLD_SIZE", "1") != "1"
    streams.prepare()
    try:
        with contextlib.nullcontext() if ranked else raised():  # torchrun's processes end one another
            try:
                code = app(standalone_mode=False, terminal_width=width())
            finally:
                release_all()
        if code == 130:  # typer has caught Ctrl-C
            print(STOPPED, file=sys.stderr)
    except Terminated as done:
        print(f"stopped: {done.name}; nothing half-written was left", file=sys.stderr)
        _end_at_once(int(done.code or 0))  # not waiting for threads that still read
    except SystemExit as done:
        _exit(done.code, ranked)
    except Exception as error:
        if interrupted() and not isinstance(error, Interrupted):  # which a library has made another error of
            print(STOPPED, file=sys.stderr)
            return _exit(130, ranked)
        if (sentence := _sentence(error)) is None:
            raise
        told = isinstance(error, Interrupted)
        rank = os.environ.get("RANK", "0") if ranked else "0"
        who = f"rank {rank}: " if rank != "0" else ""
        code = 130 if told else 2
        if sentence:
            print(f"{who}{'stopped' if told else 'error'}: {sentence}", file=sys.stderr)
            if "--json" in sys.argv and rank == "0":
                print(json.dumps({"error": sentence, "exit_code": code}))
        _exit(code, ranked)
    else:
        _exit(code if isinstance(code, int) else 0, ranked)


def _sentence(error: Exception) -> str | None:
    """What to tell the user of an error; None for one that is ours, empty where the help has told it."""
    backends = sys.modules.get("act_kernels.backends")  # not imported here, because it needs torch
    if isinstance(error, ActError) or (backends is not None and isinstance(error, backends.BackendError)):
        return str(error)
    if not hasattr(error, "format_message"):  # typer's own, of which classes and places differ between its versions
        return "aborted" if isinstance(error, typer.Abort) else None
    usage: Any = error
    if type(error).__name__ == "NoArgsIsHelpError":
        usage.show()
        return ""
    command = getattr(getattr(usage, "ctx", None), "command_path", None) or _typed_command()
    if mistake := value_mistaken(usage):
        return f"{mistake}; see {command} --help"
    if hasattr(usage, "possibilities"):
        near = option_meant(usage)
        others = "" if near else _others_with(usage.option_name)
        return f"no such option: {usage.option_name}{others}; see {command} --help{near}"
    if surplus := re.fullmatch(r"Got unexpected extra arguments? ?\(?s?\)? \((?P<words>.*)\)", usage.format_message()):
        one = "each option takes one value, so repeat it for several, and quote a pattern, or a name with spaces"
        words = surplus["words"].split()
        more = f" and {len(words) - 3} more" if len(words) > 3 else ""
        return f"unexpected {' '.join(words[:3])}{more}; {one}; see {command} --help"
    said = usage.format_message()
    if said.startswith("Missing option") and (word := _word_alone(usage.ctx)):
        return f"missing option '{usage.param.opts[0]}'; did you mean {usage.param.opts[0]} {shlex.quote(word)}?"
    said = f"{said[:1].lower()}{said[1:]}".rstrip(".")
    return said if "; see " in said else f"{said}; see {command} --help"


def _typed_command() -> str:
    """The command that was typed, which typer does not name while it takes options apart."""
    first, *others = [*itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:3])] or [""]
    named = [first, *(others if first == "patch" else [])] if first in COMMANDS else []
    return " ".join(["act-profile", *named])


def _word_alone(context: Any) -> str | None:
    """The first word after a command that takes only options, if that is none."""
    named, above = 0, context.parent
    while above is not None:
        named, above = named + 1, above.parent
    word = next(iter(sys.argv[1 + named :]), "-")
    takes_words = any(each.param_type_name == "argument" for each in context.command.params)
    return None if takes_words or word.startswith("-") else word


def _others_with(option: str) -> str:
    """The commands that have an option, as a clause; empty where none has it."""
    commands: Any = typer.main.get_command(app)
    every = {name: commands.get_command(None, name) for name in COMMANDS}
    have = [name for name, one in every.items() if any(option in each.opts for each in one.params)]
    return f", which {', '.join(have[:4])} {'has' if len(have) == 1 else 'have'}" if have else ""


def _exit(code: str | int | None, ranked: bool) -> None:
    """End the process; if it is one of several ranks, without the interpreter's shutdown.

    Threads of a process group can abort that shutdown, and torchrun then counts a finished rank as failed.
    """
    sys.stdout.flush()
    if not ranked or isinstance(code, str):
        sys.exit(code)
    _end_at_once(code or 0)


def _end_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

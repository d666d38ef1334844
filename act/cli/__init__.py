"""The command ``act-profile``: one file per subcommand."""

from __future__ import annotations

import os
import sys

import typer

from act.cli import (
    combine,
    demo,
    env,
    evaluate,
    mergekit,
    pair,
    patch,
    plan,
    rank,
    recipe,
    report,
    run,
    sweep,
    transfer,
    tune,
)
from act.core.errors import ActError, Interrupted

app = typer.Typer(
    name="act-profile",
    help="Find where an ability is located in a language model, and transfer it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run, pair, combine, rank, report, transfer, sweep, tune, evaluate, recipe, mergekit, plan, demo, env):
    app.command(command.__name__.rpartition(".")[2])(command.command)
app.add_typer(patch.app, name="patch")


def main() -> None:
    """Run the command line.

    An error that the user can fix becomes one sentence on stderr and exit code 2; an interruption, exit code 130.
    """
    ranked = os.environ.get("WORLD_SIZE", "1") != "1"
    try:
        app()
    except SystemExit as done:
        _exit(done.code, ranked)
    except Exception as error:
        if not _can_be_fixed(error):
            raise
        interrupted = isinstance(error, Interrupted)
        rank = os.environ.get("RANK", "0") if ranked else "0"
        who = f"rank {rank}: " if rank != "0" else ""
        print(f"{who}{'stopped' if interrupted else 'error'}: {error}", file=sys.stderr)
        _exit(130 if interrupted else 2, ranked)


def _can_be_fixed(error: Exception) -> bool:
    backends = sys.modules.get("act_kernels.backends")  # not imported here, because it needs torch
    return isinstance(error, ActError) or (backends is not None and isinstance(error, backends.BackendError))


def _exit(code: str | int | None, ranked: bool) -> None:
    """End the process; if it is one of several ranks, without the interpreter's shutdown.

    Threads of a process group can abort that shutdown, and torchrun then counts a finished rank as failed.
    """
    if not ranked or isinstance(code, str):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)

"""The command ``act-profile``: one file per subcommand."""

from __future__ import annotations

import sys

import typer

from act.cli import demo, env, pair, patch, plan, rank, run, transfer
from act.errors import ActError
from act_kernels.backends import BackendError

app = typer.Typer(
    name="act-profile",
    help="Find where an ability lives inside a language model, and move it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run, pair, rank, transfer, plan, demo, env):
    app.command(command.__name__.rpartition(".")[2])(command.command)
app.add_typer(patch.app, name="patch")


def main() -> None:
    """Run the command line; what a person can mend becomes one sentence on stderr and exit code 2."""
    try:
        app()
    except (ActError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

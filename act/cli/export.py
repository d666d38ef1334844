"""``act-profile export``: profiles and channel sets as tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from act.cli import console, options
from act.cli.streams import unread
from act.core.counted import counted
from act.core.errors import ActError
from act.core.files import require_folder_name, reserve_output, written_whole

EXAMPLES = """
act-profile export german.safetensors --output german.parquet
act-profile export channels.safetensors --output - > channels.csv
"""
STDOUT = Path("-")


def command(
    file: Annotated[
        Path, typer.Argument(help="A profile, a channel set, or a folder of them, as several texts in one run make.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            rich_help_panel=options.OUTPUT,
            help="The table: a file that ends with .csv or .parquet, or - for CSV to stdout. Of a folder: a folder, of "
            "a CSV file for each.",
        ),
    ],
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a row for each channel, with its site, layer and statistics, or its score, as CSV or Parquet.

    Columns of a profile of tokens: count, mean, var, mean_abs, max_abs and positive_rate; of a pair with donor_ and
    target_ before them, and mean_diff, var_diff and mean_abs_diff; of a pair --swap also
    swap_, of what the donor's module gives on the target's input, minus the target's output, and product_, of that
    times donor - target. Of attributions: documents, loss_fall_per_token
    (what a token's loss would fall by, in nats, if the channel moved all the way; loss_fall_per_token_se: its error),
    loss_change_mean, _var, _rms and so on (of a document's loss), distance; of what is to be kept with keep_ before it.
    """
    from act.ranking.export import export, lines_of, read, require_table, table_of

    if file.is_dir():
        return _export_folder(file, output, force, as_json)
    if output == STDOUT:
        if as_json:
            raise ActError(
                "--output - writes the table to stdout, and so does --json its result; leave one of them out"
            )
        for lines in lines_of(table_of(read(file))):
            sys.stdout.write(lines)
            if unread():
                break
        return
    require_table(output)
    reserve_output(output, force, [file])
    rows = export(read(file), output, force=force)
    if as_json:
        return console.print_json({"output": str(output), "rows": rows})
    print(f"{output}: {counted(rows, 'channel')}")


def _export_folder(folder: Path, output: Path, force: bool, as_json: bool) -> None:
    """Write a table for each profile and channel set of a folder, into another one."""
    from act.ranking.export import export, read, read_folder

    tables = read_folder(folder)
    if output == STDOUT:
        raise ActError(f"{folder} is a folder, of which each file has a table of its own; give one file, or a folder")
    require_folder_name(output, f", since {folder} is one; or give one of the files in it")
    reserve_output(output, force, tables.values())
    rows: dict[str, int] = {}
    with written_whole(output, force=force, directory=True) as made:
        for name, file in tables.items():
            rows[name] = export(read(file), made / name)
    if as_json:
        return console.print_json({"output": str(output), "rows": rows})
    for name, count in rows.items():
        print(f"{output / name}: {counted(count, 'channel')}")

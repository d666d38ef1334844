"""``act-profile export``: a profile or channel set as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act.cli import console, options
from act.core.counted import counted
from act.core.files import reserve_output

EXAMPLES = """
act-profile export german.safetensors --output german.parquet
act-profile export channels.safetensors --output channels.csv
"""


def command(
    file: Annotated[Path, typer.Argument(help="A profile, or a channel set.")],
    output: Annotated[
        Path, typer.Option(rich_help_panel=options.OUTPUT, help="The table: a file that ends with .csv or .parquet.")
    ],
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a row for each channel, with its site, layer and statistics, or its score, as CSV or Parquet."""
    from act.ranking.export import export, read, require_table

    require_table(output)
    reserve_output(output, force, [file])
    rows = export(read(file), output, force=force)
    if as_json:
        return console.print_json({"output": str(output), "rows": rows})
    print(f"{output}: {counted(rows, 'channel')}")

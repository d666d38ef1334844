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
    """Write a row for each channel, with its site, layer and statistics, or its score, as CSV or Parquet.

    Columns of a profile of tokens: count, mean, var, mean_abs, max_abs and positive_rate; of a pair with donor_ and
    target_ before them, and mean_diff, var_diff and mean_abs_diff. Of attributions: documents, loss_fall_per_token
    (what a token's loss would fall by, in nats, if the channel moved all the way; loss_fall_per_token_se: its error),
    loss_change_mean, _var, _rms and so on (of a document's loss), distance; of what is to be kept with keep_ before it.
    """
    from act.ranking.export import export, read, require_table

    require_table(output)
    reserve_output(output, force, [file])
    rows = export(read(file), output, force=force)
    if as_json:
        return console.print_json({"output": str(output), "rows": rows})
    print(f"{output}: {counted(rows, 'channel')}")

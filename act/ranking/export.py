"""Profiles and channel sets as tables for other programs: CSV or Parquet, one row for each channel."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from act.core.errors import ActError
from act.core.files import require_ending, written_whole
from act.core.tensor_files import files_in, kind_of, require_tensor_file
from act.models.channels import ChannelSpace
from act.profiles.attribution import AttributionProfile
from act.profiles.profile import Profile, load
from act.profiles.tables import ATTRIBUTED, vectors_of
from act.ranking.channel_set import ChannelSet

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".csv", ".parquet")
KINDS = ("act-profile", "act-attribution", "act-channels")
EXPECTED = "a profile, or a channel set"
ROWS_AT_ONCE = 1 << 14


def require_table(path: Path) -> None:
    """Raise :class:`ActError` unless the name of a file ends as that of a table."""
    require_ending(path, "the table", ENDINGS)


def read(path: Path) -> Profile | ChannelSet:
    """The profile or channel set in a file; raises :class:`ActError` if it holds neither."""
    require_tensor_file(path, EXPECTED, KINDS)
    if (kind := kind_of(path)) == "act-patch":
        raise ActError(f"{path} is a patch; expected {EXPECTED}; act-profile patch show tells what a patch holds")
    return ChannelSet.load(path) if kind == "act-channels" else load(path)


def read_folder(folder: Path) -> dict[str, Path]:
    """The files of a folder that hold profiles or channel sets, by the names of their tables.

    Raises:
        ActError: there are none.
    """
    found = files_in(folder, KINDS)
    if not found:
        raise ActError(
            f"{folder} is a folder without profiles or channel sets; expected {EXPECTED}, or a folder of them"
        )
    return {f"{each.stem}.csv": each for each in found}


def export(
    held: Profile | ChannelSet, path: str | Path, *, measured: Profile | None = None, force: bool = False
) -> int:
    """Write a row for each channel: its index, site, kind, layer and row there, and its statistics, or its score.

    The statistics are the columns of :meth:`act.Profile.to_frame`.

    Args:
        held: a profile of any kind, or a channel set, of which the chosen channels are written.
        path: a file that ends with ``.csv`` or ``.parquet``.
        measured: what a channel set was ranked by. Of an attribution profile, its channels get three more columns,
            ``documents``, ``loss_fall_per_token`` and its standard error ``loss_fall_per_token_se``, as in its frame.
        force: replace the file if it exists.

    Returns:
        The number of rows.

    Raises:
        ActError: the file exists and ``force`` is False; another ending.

    >>> from act.ranking.export import export
    >>> channels = act.rank(act.profile_pair(donor, target, corpus), count=3)
    >>> export(channels, "channels.csv")
    3
    >>> open("channels.csv").readline()
    '"channel","site","kind","layer","row","score"\\n'
    """
    path = Path(path)
    require_table(path)
    table = table_of(held, measured)
    with written_whole(path, force=force) as temporary:
        _writer(path)(table, temporary)
    return len(table)


def lines_of(table: pa.Table) -> Iterator[str]:
    """A table as CSV, in pieces of some thousand lines."""
    from pyarrow.csv import WriteOptions, write_csv

    for start in range(0, max(1, len(table)), ROWS_AT_ONCE):
        written = io.BytesIO()
        write_csv(table.slice(start, ROWS_AT_ONCE), written, WriteOptions(include_header=start == 0))
        yield written.getvalue().decode()


def table_of(held: Profile | ChannelSet, measured: Profile | None = None) -> pa.Table:
    """The table that :func:`export` writes."""
    if isinstance(held, ChannelSet):
        index, values = held.index, {"score": held.scores}
        if isinstance(measured, AttributionProfile):
            vectors = measured.count, measured.fall, measured.error
            values |= {name: vector.cpu()[index] for name, vector in zip(ATTRIBUTED, vectors, strict=False)}
    else:
        index, values = torch.arange(len(held.space)), vectors_of(held)
    return _table(held.space, index, values)


def _table(space: ChannelSpace, index: torch.Tensor, values: Mapping[str, torch.Tensor]) -> pa.Table:
    import pyarrow as pa

    parts = [(site, rows) for site, rows in space.split(index) if len(rows)]
    counts = torch.tensor([len(rows) for _, rows in parts], dtype=torch.int64)
    owner = torch.arange(len(parts)).repeat_interleave(counts).numpy()

    def of_sites(values: list[object], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(pa.array(owner))

    rows = torch.cat([index.new_empty(0), *(rows for _, rows in parts)])
    columns = {
        "channel": pa.array(index.numpy()),
        "site": of_sites([site.name for site, _ in parts], pa.string()),
        "kind": of_sites([site.kind for site, _ in parts], pa.string()),
        "layer": of_sites([site.layer for site, _ in parts], pa.int64()),
        "row": pa.array(rows.numpy()),
        **{name: pa.array(vector.cpu().numpy()) for name, vector in values.items()},
    }
    return pa.table(columns)


def _writer(path: Path) -> Callable[[pa.Table, Path], None]:
    if path.suffix.lower() == ".parquet":
        from pyarrow.parquet import write_table

        return lambda table, file: write_table(table, file)
    from pyarrow.csv import write_csv

    return lambda table, file: write_csv(table, file)

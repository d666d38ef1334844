"""Tokens on disk: a corpus is tokenised once, to a Parquet file that later runs read instead of the text."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from act.core.errors import ActError, brief
from act.core.files import written_whole
from act.core.scratch import reserved
from act.data.encode import Encoded
from act.data.records import Entry, Shard, Wanted

SCHEMA = "act-tokens/1"
GROUP = 1024  # records written and read together

Tokenised = tuple[Entry, "Encoded | ActError"]


class TokenCache:
    """The tokens of every record of one corpus, in order, with the errors of bad records.

    Args:
        folder: holds the files of all corpora.
        identity: what decides the tokens, as plain data; its hash is the name of the file.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        content = json.dumps({"schema": SCHEMA, **identity}, sort_keys=True)
        self.path = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.parquet"

    @property
    def there(self) -> bool:
        """Whether the whole corpus was tokenised before."""
        return self.path.is_file()

    def write(self, tokenised: Iterable[Tokenised], report: Callable[[int], None] = lambda done: None) -> None:
        """Write all records; the file appears only when it is complete.

        Args:
            tokenised: the records in order.
            report: called with the number of records written so far.

        Raises:
            ActError: the folder cannot be written, or the disk is full.
        """
        import pyarrow as pa
        from pyarrow import parquet

        names = {"place": pa.string(), "error": pa.string(), "ability": pa.string()}
        schema = pa.schema({**names, "input_ids": pa.list_(pa.int32()), "answer": pa.list_(pa.bool_())})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ActError(
                f"cannot write tokens to {self.path.parent}: {error.strerror}; choose another folder"
            ) from error
        records, done = iter(tokenised), 0
        with reserved(self.path, wait=True):
            if self.there:  # written by the process that was waited for
                return
            with (
                written_whole(self.path, force=True) as path,
                parquet.ParquetWriter(path, schema, compression="zstd") as file,
            ):
                while group := [_row(*one) for one in itertools.islice(records, GROUP)]:
                    file.write_table(pa.Table.from_pylist(group, schema), row_group_size=GROUP)
                    done += len(group)
                    report(done)

    def read(self, start: int, shard: Shard, wanted: Wanted) -> Iterator[Tokenised]:
        """The wanted records of a shard, from number ``start`` on.

        Raises:
            ActError: the file is damaged.
        """
        from pyarrow import ArrowException, parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                for group in range(start // GROUP, file.num_row_groups):
                    numbers = range(max(start, group * GROUP), (group + 1) * GROUP)
                    chosen = [number for number in numbers if number % shard[1] == shard[0] and wanted(number)]
                    if chosen:
                        yield from _read(file.read_row_group(group), chosen)
        except (ArrowException, OSError) as error:
            raise ActError(f"{self.path} is damaged ({brief(error, 120)}); delete the file and run again") from error


def _row(entry: Entry, result: Encoded | ActError) -> dict[str, Any]:
    if isinstance(result, ActError):
        return {"place": entry.place, "error": str(result)}
    return {
        "place": entry.place,
        "ability": result.ability,
        "input_ids": result.input_ids.tolist(),
        "answer": result.answer.tolist(),
    }


def _read(table: Any, numbers: list[int]) -> Iterator[Tokenised]:
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    places, errors, abilities = (columns[name].to_pylist() for name in ("place", "error", "ability"))
    for number in numbers:
        at = number % GROUP
        if at >= len(places):
            return
        entry = Entry(number, places[at], {})
        if errors[at] is not None:
            yield entry, ActError(errors[at])
        else:
            ids, answer = (columns[name][at].values.to_numpy(zero_copy_only=False) for name in ("input_ids", "answer"))
            yield entry, Encoded(ids.astype(np.int32), answer.astype(bool), abilities[at])

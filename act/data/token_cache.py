"""Tokens on disk: a corpus is tokenised once, to a Parquet file that later runs read instead of the text."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from pydantic import TypeAdapter

from act.core.errors import ActError, brief
from act.core.files import written_whole
from act.core.names import require_name
from act.core.plain import Natural, checked, parsed_json
from act.core.scratch import reserved
from act.data.encoded import Encoded
from act.data.records import Entry, Shard, Wanted

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

SCHEMA = "act-tokens/3"
GROUP = 1024  # records written and read together

Tokenised = tuple[Entry, "Encoded | ActError"]


@dataclass
class _Contents:
    """What the metadata of a file says that it holds: whose tokens, how many records, a hash of each group."""

    corpus: str
    records: Natural = 0
    groups: list[str] = field(default_factory=list)


_CONTENTS = TypeAdapter(_Contents)


class TokenCache:
    """The tokens of every record of one corpus, in order, with the errors of bad records.

    Each group of records is checked against its hash when it is read.

    Args:
        folder: holds the files of all corpora.
        identity: what decides the tokens, as plain data; its hash is the name of the file.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        content = json.dumps({"schema": SCHEMA, **identity}, sort_keys=True)
        self._corpus = hashlib.sha256(content.encode()).hexdigest()[:24]
        self.path = folder / f"{self._corpus}.parquet"

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

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ActError(
                f"cannot write tokens to {self.path.parent}: {error.strerror}; choose another folder"
            ) from error
        records, contents = iter(tokenised), _Contents(self._corpus)
        with reserved(self.path, wait=True):
            if self.there:  # written by the process that was waited for
                return
            with (
                written_whole(self.path, force=True) as path,
                parquet.ParquetWriter(path, _columns(), compression="zstd") as file,
            ):
                while group := [_row(*one) for one in itertools.islice(records, GROUP)]:
                    table = pa.Table.from_pylist(group, _columns())
                    file.write_table(table, row_group_size=GROUP)
                    contents.records += len(group)
                    contents.groups.append(_Group(table).hash)
                    report(contents.records)
                file.add_key_value_metadata({SCHEMA: json.dumps(asdict(contents))})

    def read(self, start: int, shard: Shard, wanted: Wanted) -> Iterator[Tokenised]:
        """The wanted records of a shard, from number ``start`` on.

        Raises:
            ActError: the file is damaged, or was written for another corpus.
        """
        from pyarrow import ArrowException, parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                contents = self._contents(file)
                for number in range(start // GROUP, file.num_row_groups):
                    numbers = range(max(start, number * GROUP), min(contents.records, (number + 1) * GROUP))
                    chosen = [number for number in numbers if number % shard[1] == shard[0] and wanted(number)]
                    if not chosen:
                        continue
                    group = _Group(file.read_row_group(number))
                    if group.hash != contents.groups[number]:
                        raise ValueError(f"group {number} of its records is not as it was written")
                    for number in chosen:
                        yield group.record(number)
        except (ArrowException, OSError, ValueError, KeyError) as error:
            raise ActError(f"{self.path} is damaged ({brief(error, 120)}); delete the file and run again") from error

    def _contents(self, file: parquet.ParquetFile) -> _Contents:
        """The contents that the file states; raises ValueError unless it has that many records in whole groups."""
        stated = (file.metadata.metadata or {}).get(SCHEMA.encode())
        if stated is None:
            raise ValueError("it does not say what it holds")
        contents = checked(_CONTENTS, parsed_json(stated))
        if contents.corpus != self._corpus:
            raise ValueError("it was written for another corpus or tokenizer, or renamed")
        if not file.schema_arrow.equals(_columns()):
            raise ValueError("its columns are others")
        records, groups = contents.records, len(contents.groups)
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        if sizes != [min(GROUP, records - number * GROUP) for number in range(groups)] or sum(sizes) != records:
            raise ValueError(f"it has {sum(sizes)} records, and {records} were written")
        return contents


def _columns() -> pa.Schema:
    import pyarrow as pa

    names = {"place": pa.string(), "error": pa.string(), "ability": pa.string()}
    tokens = {"input_ids": pa.list_(pa.int32()), "answer": pa.list_(pa.bool_()), "source": pa.int32()}
    return pa.schema({**names, **tokens})


def _row(entry: Entry, result: Encoded | ActError) -> dict[str, Any]:
    if isinstance(result, ActError):
        return {"place": entry.place, "error": str(result)}
    return {
        "place": entry.place,
        "error": result.unanswered or None,  # with tokens, it is one only where those of an answer count
        "ability": result.ability,
        "input_ids": result.input_ids.tolist(),
        "answer": result.answer.tolist(),
        "source": result.source,
    }


class _Group:
    """The records of one group, as columns.

    Raises:
        ValueError: texts that are not UTF-8; tokens below 0; a mask of another length than its tokens, or more tokens
            of a source than there are.
    """

    def __init__(self, table: pa.Table) -> None:
        self._places, self._errors, self._abilities = (
            table[name].to_pylist() for name in ("place", "error", "ability")
        )
        self._ids, self._starts = _flat(table["input_ids"], np.int32)
        self._answers, answer_starts = _flat(table["answer"], bool)
        if not np.array_equal(self._starts, answer_starts) or (self._ids < 0).any():
            raise ValueError("masks and tokens do not fit")
        self._sources = table["source"].combine_chunks().fill_null(0).to_numpy(zero_copy_only=False)
        if (self._sources < 0).any() or (self._sources > np.diff(self._starts)).any():
            raise ValueError("sources and tokens do not fit")

    @property
    def hash(self) -> str:
        """A hash of all values."""
        texts = json.dumps([self._places, self._errors, self._abilities])
        digest = xxhash.xxh3_128(texts.encode())
        for values in (self._starts, self._ids, self._answers, self._sources):
            digest.update(values.data)
        return digest.hexdigest()

    def record(self, number: int) -> Tokenised:
        """The record with a number of the corpus, as it was tokenised."""
        at = number % GROUP
        entry = Entry(number, self._places[at], {})
        part, ability = slice(self._starts[at], self._starts[at + 1]), self._abilities[at]
        if self._errors[at] is not None and part.start == part.stop:
            return entry, ActError(self._errors[at])
        if ability is not None:
            require_name("an ability in it", ability)
        source, why = int(self._sources[at]), self._errors[at] or ""
        return entry, Encoded(self._ids[part], self._answers[part], ability, source, unanswered=why)


def _flat(column: pa.ChunkedArray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of lists, one list after the other, and where each begins (and the last one ends)."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(dtype)
    return values, np.append(0, lengths.cumsum(dtype=np.int64))

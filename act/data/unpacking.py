"""What a file may unpack to: small ones that fill the memory are refused before they are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from act.data.remote import File

UNPACKED, UNPACKED_RATIO = 64 << 20, 500  # what unpacks to more than both, in bytes and to one, is a bomb
DICTIONARY = 1 << 18  # bytes, in place of the former: every row of a Parquet file may repeat its dictionary
ROWS_TOGETHER = 128  # of a Parquet file: a tenth slower than whole row groups, which may be as large as the file

_DICTIONARY_PAGE = 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


class TooLarge(Exception):
    """A file has more in it than anyone means to read."""


def require_ratio(unpacked: int, packed: int, allowed: int) -> None:
    """Raise :class:`TooLarge` for more than ``allowed`` bytes that are packed too well."""
    if unpacked > allowed and unpacked > UNPACKED_RATIO * packed:
        raise TooLarge(f"the file unpacks to more than {UNPACKED_RATIO} times its size")


def parquet_rows_together(path: File) -> int:
    """How many rows of a Parquet file can be read at once, even if each repeats all of its dictionaries.

    Raises:
        TooLarge: a column unpacks to far more than it takes on disk.
    """
    from pyarrow import parquet

    largest = 1
    with path.open("rb") as file:
        metadata = parquet.read_metadata(file)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            dictionaries = 0
            for column in map(group.column, range(group.num_columns)):
                require_ratio(column.total_uncompressed_size, column.total_compressed_size, UNPACKED)
                if column.num_values:
                    kind, unpacked, packed = _first_page(file, column)
                    if kind == _DICTIONARY_PAGE:
                        require_ratio(unpacked, packed, DICTIONARY)
                        dictionaries += unpacked
            largest = max(largest, dictionaries)
    return min(max(UNPACKED // largest, 1), ROWS_TOGETHER)


def _first_page(file: BinaryIO, column: Any) -> tuple[int, int, int]:
    """Kind, unpacked and packed size of a column's first page: the first fields of its header, in compact Thrift."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    file.seek(start)
    header = iter(file.read(32))
    found = []
    for _ in range(3):
        if next(header, None) != 0x15:  # the next field, a 32-bit integer
            raise ValueError("the header of a page is damaged")
        value = shift = 0
        for byte in header:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        found.append(value >> 1)  # zigzag, of what is not negative
    return found[0], found[1], found[2]


def require_no_arrow_bomb(path: File) -> None:
    """Raise :class:`TooLarge` if a batch of an Arrow file unpacks to far more than it takes on disk."""
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(str(path)) if isinstance(path, Path) else pyarrow.PythonFile(path.open("rb")) as source:
        try:
            ipc.open_stream(source)
            streams = True
        except (OSError, pyarrow.ArrowInvalid):
            streams = False
        source.seek(0)
        dictionaries = 0
        for message in ipc.MessageReader.open_stream(source) if streams else _messages(source):
            body = memoryview(message.body)
            sizes = [struct.unpack_from("<q", body, start)[0] for start in _packed_buffers(message)]
            require_ratio(sum(size for size in sizes if size > 0), len(body), UNPACKED)
            dictionaries += len(body) if message.type == "dictionary" else 0
        if not dictionaries:
            return
        source.seek(0)
        reader = ipc.open_stream(source) if streams else ipc.open_file(source)
        for batch in reader if streams else map(reader.get_batch, range(reader.num_record_batches)):
            unpacked = sum(size for column in batch.columns for size in _without_dictionary(column))
            require_ratio(unpacked, batch.nbytes, UNPACKED)


def _without_dictionary(array: Any) -> Iterator[int]:
    """Bytes of the texts in an array, and in those inside it, of which each may be in a dictionary only once."""
    import pyarrow
    from pyarrow import compute

    if pyarrow.types.is_dictionary(array.type):
        if array.type.value_type in (
            pyarrow.string(),
            pyarrow.large_string(),
            pyarrow.binary(),
            pyarrow.large_binary(),
        ):
            yield compute.sum(compute.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    elif pyarrow.types.is_nested(array.type) and hasattr(array, "flatten"):
        inner = array.flatten()  # an array of a list's items, or a list with the fields of a struct
        for one in inner if isinstance(inner, list) else [inner]:
            yield from _without_dictionary(one)


def _messages(source: Any) -> Iterator[Any]:
    """The messages with the dictionaries and batches of an Arrow file that is no stream."""
    from pyarrow import ipc

    size = source.size()
    (length,) = struct.unpack("<i", source.read_at(4, size - 10))
    footer = _Table(source.read_at(length, size - 10 - length))
    for number in (2, 3):  # dictionaries, batches
        for offset, _, _ in footer.vector(number, "<qi4xq"):
            source.seek(offset)
            yield ipc.read_message(source)


def _packed_buffers(message: Any) -> list[int]:
    """Where the packed buffers of a message begin in its body, each with its unpacked size (-1: stored as it is)."""
    root = _Table(message.metadata.to_pybytes())
    (kind,) = root.scalar(1, "<B")
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return []
    batch = root.table(2)
    if kind == _DICTIONARY_BATCH:
        batch = batch.table(1)
    return [offset for offset, length in batch.vector(2, "<qq") if length] if batch.has(3) else []


class _Table:
    """A table of a flatbuffer (https://flatbuffers.dev/internals), whose fields are found by number."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self._data = data
        self._at = self._follow(0) if at is None else at

    def _follow(self, at: int) -> int:
        return at + int(struct.unpack_from("<I", self._data, at)[0])

    def _place(self, number: int) -> int:
        """Where a field lies; 0 if it is not there."""
        offsets = self._at - struct.unpack_from("<i", self._data, self._at)[0]
        (size,) = struct.unpack_from("<H", self._data, offsets)
        if 4 + 2 * number >= size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, offsets + 4 + 2 * number)
        return self._at + int(offset) if offset else 0

    def has(self, number: int) -> bool:
        return self._place(number) > 0

    def scalar(self, number: int, form: str) -> tuple[int, ...]:
        return struct.unpack_from(form, self._data, self._place(number))

    def table(self, number: int) -> _Table:
        return _Table(self._data, self._follow(self._place(number)))

    def vector(self, number: int, form: str) -> Iterator[tuple[int, ...]]:
        """The items of a vector of structs."""
        if self.has(number):
            start = self._follow(self._place(number))
            (count,) = struct.unpack_from("<I", self._data, start)
            for item in range(count):
                yield struct.unpack_from(form, self._data, start + 4 + item * struct.calcsize(form))

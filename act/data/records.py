"""Sources of records: files, folders, globs, hub ids and lists. Each record has a number, and a place for errors.

JSONL, JSON, CSV and text files are read here, so that an error names its line or item and one bad record can be
skipped. Tables are read with Hugging Face ``datasets``, file by file, so that an error names its file.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar, cast

from act.core.counted import counted
from act.core.errors import ActError, Missing, Unreachable, brief, option
from act.core.near import is_local, near_path
from act.core.plain import DEEPEST, too_deep
from act.data import unpacking
from act.data.arrays import items
from act.data.columns import texts_of
from act.data.delimited import delimited
from act.data.formats import ARRAYS, COMPRESSED, DELIMITED, EVERY_FORMAT, LINES, TABLES
from act.data.images import located
from act.data.remote import File, Remote, is_remote, remote_files
from act.models.hub import unreached

Record = Mapping[str, Any]
Shard = tuple[int, int]
"""``(i, n)``: the records whose number leaves the remainder ``i`` when divided by ``n``."""
Wanted = Callable[[int], bool]
"""Whether the record with a given number is wanted."""

EXPECTED = f"expected a {EVERY_FORMAT}, a folder or glob of them, or a hub id"

LONGEST = 8 << 20  # bytes of a record, which is held whole, while its tokens take many times its size
LONGEST_SKIPPED = 1 << 30  # bytes; beyond them a line is taken to have no end

WHOLE_HASH_BYTES = 256 << 20  # larger files are hashed in samples
SAMPLES, SAMPLE_BYTES = 256, 1 << 16

_File = TypeVar("_File", Path, Remote)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")


def every(number: int) -> bool:
    """A :data:`Wanted` that wants all records."""
    return True


def _none(number: int) -> bool:
    return False


class Entry(NamedTuple):
    """A record, or the reason why it cannot be read.

    Attributes:
        number: counts from 0 over the whole source.
        place: names the record in errors.
        size: bytes of it, where they are known without effort.
    """

    number: int
    place: str
    record: Record | ActError
    size: int = 0


class Source(Protocol):
    """Records that can be read repeatedly, from any number on.

    Attributes:
        name: used in errors and provenance.
        place: the file, folder, glob or hub id by which :func:`open_source` opens it again; None for records in memory.
        fingerprint: hash of the content.
        size: number of records, estimated for large files; None if unknown.
    """

    name: str
    place: str | None
    fingerprint: str
    size: int | None

    def read(self, start: int = 0, shard: Shard = (0, 1), wanted: Wanted = every) -> Iterator[Entry]:
        """The wanted records of a shard from number ``start`` on, in order."""
        ...

    def count(self) -> int | None:
        """The number of records, read from the files if ``size`` is unknown; None for a stream of unknown size."""
        ...


class Memory:
    """Records in memory."""

    def __init__(self, records: Iterable[Record], name: str = "records") -> None:
        if isinstance(records, str | Path | Mapping) or not isinstance(records, Iterable):
            raise ActError(
                f"the records are of type {type(records).__name__}; expected a list of dicts, such as "
                '[{"text": "…"}]; act.Corpus.from_file reads a file'
            )
        self._records = list(records)
        self.name = name
        self.place: str | None = None
        try:
            content = json.dumps(self._records, sort_keys=True, default=plain)
        except (RecursionError, TypeError, ValueError) as error:  # circular, too deep, or keys of several types
            raise ActError(
                f"the records are no plain data ({brief(error)}); expected dicts with texts as keys"
            ) from error
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.size: int | None = len(self._records)

    def read(self, start: int = 0, shard: Shard = (0, 1), wanted: Wanted = every) -> Iterator[Entry]:
        """See :class:`Source`."""
        for number in filter(wanted, range(_first(start, shard), len(self._records), shard[1])):
            yield Entry(number, f"{self.name}, record {number}", self._records[number])

    def count(self) -> int | None:
        """See :class:`Source`."""
        return self.size


def plain(value: Any) -> str:
    """What tells a value apart that JSON does not know: the pixels of an image, or its text."""
    if hasattr(value, "tobytes"):
        return f"{getattr(value, 'size', '')} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return str(value)


class Files:
    """Files, read one after the other in the order given; damage is found when they are read.

    The fingerprint of files on other systems is of what these say of them, for nothing is read twice.

    Raises:
        ActError: there is no file, or one is of an unknown kind.
    """

    def __init__(self, paths: Iterable[File], name: str) -> None:
        self._paths = list(paths)
        self.name = name
        self.place: str | None = name
        if not self._paths:
            raise ActError(f"the folder {name} holds no corpus; {EXPECTED}")
        digest = hashlib.sha256()
        self.size: int | None = 0
        for path in self._paths:
            if _kind(path) is None:
                raise ActError(f"cannot read {path}: its name has none of the endings that are read; {EXPECTED}")
            block, size = _hash_and_size(path)
            digest.update(block)
            self.size = None if size is None or self.size is None else self.size + size
        self.fingerprint = digest.hexdigest()[:16]

    def read(self, start: int = 0, shard: Shard = (0, 1), wanted: Wanted = every) -> Iterator[Entry]:
        """See :class:`Source`; unwanted lines are not parsed.

        A truncated file yields one entry with the error, and reading continues with the next file.
        """
        before = 0
        for path in self._paths:

            def here(row: int, before: int = before) -> bool:
                number = before + row
                return number >= start and number % shard[1] == shard[0] and wanted(number)

            row = -1
            for row, place, record, size in _reader(path)(path, here):
                if here(row):
                    record = located(record, path.parent) if isinstance(record, Mapping) else record
                    yield Entry(before + row, f"{path}, {place}" if place else str(path), record, size)
            before += row + 1

    def count(self) -> int | None:
        """See :class:`Source`; nothing is parsed."""
        if self.size is not None:
            return self.size
        return sum(1 for path in self._paths for _ in _reader(path)(path, _none))


class Dataset:
    """A Hugging Face dataset, map-style or streaming.

    Args:
        dataset: one split, as ``datasets.load_dataset`` returns it.
        name, fingerprint, place: as in :class:`Source`. A map-style dataset brings its fingerprint; that of a stream is
            empty unless given.

    Raises:
        ActError: no dataset, or several splits of one.
    """

    def __init__(
        self, dataset: Any, name: str = "dataset", fingerprint: str | None = None, place: str | None = None
    ) -> None:
        if isinstance(dataset, Mapping):
            splits = [*map(repr, dataset)]
            raise ActError(
                f"the dataset is {counted(len(splits), 'split')}, {', '.join(splits)}; give one, such as "
                f"dataset[{splits[0] if splits else repr('train')}]"
            )
        if isinstance(dataset, str | Path):
            raise ActError(
                f"the dataset is of type {type(dataset).__name__}; expected one as datasets.load_dataset gives; "
                "act.Corpus.from_file reads a file, or a data set of the hub by its id"
            )
        self._dataset = dataset
        self.name = name
        self.place = place
        self.fingerprint = fingerprint or str(getattr(dataset, "_fingerprint", ""))
        self.size: int | None = len(dataset) if hasattr(dataset, "__len__") else _split_size(dataset)

    def read(self, start: int = 0, shard: Shard = (0, 1), wanted: Wanted = every) -> Iterator[Entry]:
        """See :class:`Source`."""
        number = start
        try:
            for record in self._dataset.skip(start) if start else self._dataset:
                if number % shard[1] == shard[0] and wanted(number):
                    yield Entry(number, f"{self.name}, row {number}", record)
                number += 1
        except Exception as error:  # networks, decoders and generators raise anything
            reason = ActError(
                f"the rows from here on cannot be read ({brief(error)}); repair the dataset, or skip them"
            )
            yield Entry(number, f"{self.name}, row {number}", reason)

    def count(self) -> int | None:
        """See :class:`Source`."""
        return self.size


def open_source(corpus: str | Path) -> Source:
    """The source for a file, folder, glob or hub id (``org/name``, ``…:split``, ``…:config:split``).

    Files, folders and globs may be on another system that fsspec knows (``s3://``, ``gs://``, ``hf://``).

    Raises:
        ActError: nothing has that name, or nothing in it can be read.
    """
    name, path = str(corpus), Path(corpus)
    if not name.strip():
        raise ActError(f"the place of the corpus is {name!r}; {EXPECTED}")
    if os.path.isfile(name):  # which takes a name of any length
        return Files([path], name)
    if os.path.isdir(name):
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            return Dataset(_datasets("load_from_disk", name), name, place=name)
        return Files(_records_in(path), name)
    found = sorted(Path(p) for p in glob.glob(name, recursive=True) if os.path.isfile(p))
    if found:
        return Files(found, name)
    if is_remote(name):
        there = remote_files(name)
        return Files(there if len(there) == 1 else _records_among(there), name)
    if is_hub_id(name):
        return _hub(name)
    if name == "-" or os.path.exists(name):
        raise ActError(
            f"the corpus {name} is a pipe or a device, and a text is read more than once; write it to a file, such as "
            "a .jsonl, and give that"
        )
    parts = name.split(",")
    if len(parts) > 1 and all(map(lies_here, parts)):
        raise ActError(f"no such corpus: {name}; give each by itself ({option('--corpus NAME=PLACE', 'a Corpus')})")
    raise Missing(f"no such corpus: {name}; there is no such file or folder", near_path(name))


def _records_in(folder: Path) -> list[Path]:
    """The files of records in a folder; JSON only where there is nothing else, for beside others it describes them.

    Raises:
        ActError: it is the folder of a model.
    """
    if (folder / "config.json").is_file():
        raise ActError(f"the corpus {folder} is the folder of a model (it has a config.json); {EXPECTED}")
    return _records_among(sorted(path for path in folder.rglob("*") if path.is_file()))


def _records_among(files: Iterable[_File]) -> list[_File]:
    """The files of records among these; JSON only where there is nothing else."""
    found = [path for path in files if _kind(path)]
    return [path for path in found if _kind(path) not in ARRAYS] or found


def lies_here(corpus: str) -> bool:
    """Whether a corpus is a file or folder of this machine, or a glob of some."""
    return os.path.exists(corpus) or bool(glob.glob(corpus, recursive=True))


def is_hub_id(corpus: str) -> bool:
    """Whether a corpus is named as one of the hub is, and nothing here has that name."""
    known = any(suffix in _endings(Path(corpus)) for suffix in (*LINES, *ARRAYS, *DELIMITED, *TABLES))
    return bool(_HUB_ID.fullmatch(corpus)) and not lies_here(corpus) and not known and not is_local(corpus)


def is_cached(corpus: str) -> bool:
    """Whether the cache of ``datasets`` has what a hub id names."""
    return _cached(corpus) is not None


def _parts_of(hub_id: str) -> tuple[str, str | None, str]:
    """The data set, configuration and split that a hub id names."""
    identifier, *rest = hub_id.split(":")
    return identifier, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"


def _hub(name: str) -> Dataset:
    identifier, config, split = _parts_of(name)
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(identifier).sha
    except Exception as error:  # the client passes on the errors of its HTTP library
        if unreached(error):
            if cached := _cached(name):
                return cached
            raise Unreachable(
                f"cannot read the corpus {name}: there is no such file, the cache of datasets does not have it, and "
                "the hub cannot be reached; connect, or give a local copy"
            ) from error
        raise ActError(
            f"no such corpus: {name}; there is no such file, and the hub returned an error ({brief(error)})"
        ) from error
    loaded = _datasets("load_dataset", identifier, config, split=split, revision=revision, streaming=True)
    return Dataset(loaded, name, _at_revision(name, revision), name)


def _cached(name: str) -> Dataset | None:
    """What an earlier ``load_dataset`` left of a hub id, which is the same corpus at that revision; None if nothing."""
    from datasets.packaged_modules.cache.cache import Cache

    identifier, config, split = _parts_of(name)
    short = identifier.rpartition("/")[2]
    try:
        builder = Cache(dataset_name=short, repo_id=identifier, config_name=config, version="auto", hash="auto")
        loaded = builder.as_dataset(split=split)
    except Exception:  # of many kinds: no such folder, configuration or split, or several configurations
        return None
    return Dataset(loaded, name, _at_revision(name, builder.hash), name)


def _at_revision(name: str, revision: str | None) -> str:
    return hashlib.sha256(f"{name}@{revision}".encode()).hexdigest()[:16]


def _datasets(function: str, name: str, *arguments: Any, **options: Any) -> Any:
    import datasets

    if function == "load_dataset" and int(datasets.__version__.partition(".")[0]) < 4:
        options["trust_remote_code"] = False  # later versions run no scripts
    try:
        return getattr(datasets, function)(name, *arguments, **options)
    except Exception as error:  # builders raise anything
        raise ActError(f"cannot read the corpus {name}: {brief(error)}") from error


def _split_size(dataset: Any) -> int | None:
    split = (getattr(dataset.info, "splits", None) or {}).get(str(dataset.split))
    return split.num_examples if split else None


def _first(start: int, shard: Shard) -> int:
    return start + (shard[0] - start) % shard[1]


def _kind(path: File) -> str | None:
    """One of the endings of :mod:`act.data.formats`; None for other files, such as the ``config.json`` of a model."""
    endings, texts = _endings(path), (*LINES, *ARRAYS, *DELIMITED)
    if len(endings) > 1 and endings[-1] in COMPRESSED and endings[-2] in texts:
        return endings[-2]
    return endings[-1] if endings and endings[-1] in (*texts, *TABLES) else None


def _endings(path: File) -> list[str]:
    """All endings of the name of a file, in small letters."""
    return [each.lower() for each in path.suffixes]


def _packing(path: File) -> str | None:
    """By what a file is compressed, as its last ending says; None: by nothing."""
    return next((each for each in _endings(path)[-1:] if each in COMPRESSED), None)


def _reader(path: File) -> Callable[[Any, Wanted], Iterator[_Row]]:
    kind = _kind(path)
    return _rows if kind in TABLES else _lines if kind in LINES else _items


class _Row(NamedTuple):
    row: int
    place: str
    record: Record | ActError
    size: int = 0


def _lines(path: File, wanted: Wanted) -> Iterator[_Row]:
    """The rows of a JSONL or text file, without empty lines; only wanted ones are parsed."""
    parse = _text if _kind(path) == ".txt" else _object
    row = -1
    try:
        with _opened(path) as file:
            for line, raw in enumerate(_bounded(file), 1):
                if isinstance(raw, ActError):
                    row += 1
                    yield _Row(row, f"line {line}", raw)
                    continue
                if not (raw := raw.removeprefix(b"\xef\xbb\xbf").strip() if line == 1 else raw.strip()):
                    continue
                row += 1
                yield _Row(row, f"line {line}", _parsed(raw, parse) if wanted(row) else {}, len(raw))
    except Exception as error:  # gzip, zlib and zstandard raise their own types
        if isinstance(error, (GeneratorExit, ActError)):
            raise
        yield _Row(row + 1, "", _damage(error, row, "get the file again"))


def _whole(row: int) -> str:
    """What is said of the rows up to the last one that could be read, if any."""
    return f"; the {counted(row + 1, 'record')} before this {'is' if row == 0 else 'are'} whole" if row >= 0 else ""


def _items(path: File, wanted: Wanted) -> Iterator[_Row]:
    """The items of a JSON array, or the rows of a CSV or TSV file; those that are not wanted are parsed, too."""
    kind, row = _kind(path), -1
    try:
        with _opened(path) as file:
            if kind in ARRAYS:
                found: Iterator[tuple[str, Any]] = (
                    (f"item {n}", item) for n, item in enumerate(items(file, LONGEST), 1)
                )
            else:
                found = delimited(file, LONGEST, "\t" if kind == ".tsv" else None)
            for row, (place, record) in enumerate(found):
                yield _Row(row, place, _TOO_DEEP if too_deep(record) else record)
    except Exception as error:  # gzip, zlib, zstandard and csv raise their own types
        if isinstance(error, GeneratorExit):
            raise
        said = ActError(f"{error}{_whole(row)}; repair it") if isinstance(error, ActError) else None
        yield _Row(row + 1, "", said or _damage(error, row, "get the file again"))


def _damage(error: Exception, row: int, advice: str) -> ActError:
    if isinstance(error, unpacking.TooLarge):
        return ActError(f"{error}{_whole(row)}; take out what is too large, or leave the file out")
    if isinstance(error, UnicodeDecodeError):
        return ActError(f"not UTF-8 ({error}){_whole(row)}; convert the file to UTF-8")
    return ActError(f"the file is truncated or damaged ({brief(error)}){_whole(row)}; {advice}")


def _bounded(file: BinaryIO) -> Iterator[bytes | ActError]:
    """The lines of a file, each as an error if it is too long; so much of that is not held in memory.

    Raises:
        TooLarge: a line without an end.
    """
    while raw := file.readline(LONGEST + 1):
        if len(raw) <= LONGEST:
            yield raw
            continue
        size = len(raw)
        while not raw.endswith(b"\n") and (raw := file.readline(1 << 20)):
            size += len(raw)
            if size > LONGEST_SKIPPED:
                raise unpacking.TooLarge(f"a line has more than {LONGEST_SKIPPED >> 20:,} MiB")
        yield _too_long("line")


def _too_long(what: str) -> ActError:
    return ActError(f"the {what} has more than {LONGEST >> 20} MiB; break it into several records")


def _text(line: str) -> Record:
    return {"text": line}


def _object(line: str) -> Record:
    found = json.loads(line)
    if isinstance(found, list) and any(isinstance(each, Mapping) for each in found):
        raise ActError("a JSON array, while each line is to be a record; name the file .json if it is one array")
    return cast("Record", found)


def _parsed(raw: bytes, parse: Callable[[str], Any]) -> Record | ActError:
    try:
        record: Record = parse(raw.decode())
    except UnicodeDecodeError as error:
        return ActError(f"not UTF-8 ({error}); convert the file to UTF-8")
    except json.JSONDecodeError as error:
        return ActError(
            f"not JSON ({error}); expected one object per line (one of several lines is read from a file named .json)"
        )
    except ActError as error:
        return error
    except RecursionError:
        return _TOO_DEEP
    except ValueError:  # from Python's limit on the digits of an integer
        return ActError("a number has too many digits; write it as a string")
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and too_deep(record):
        return _TOO_DEEP
    return record


_TOO_DEEP = ActError(f"the record is nested more than {DEEPEST} levels deep; expected a few")


def _rows(path: File, wanted: Wanted) -> Iterator[_Row]:
    """The rows of a Parquet or Arrow file, read with ``datasets``."""
    row = -1
    try:
        options = {}
        kind = str(_kind(path))
        if kind == ".parquet":
            options = {"batch_size": unpacking.parquet_rows_together(path)}
        else:
            unpacking.require_no_arrow_bomb(path)
        files = {"data_files": str(path), "split": "train", "streaming": True}
        rows = _datasets("load_dataset", TABLES[kind], **files, **options)
        if hasattr(rows, "decode"):  # not in the first versions; a damaged image is then that of its record
            rows = rows.decode(False)
        for row, record in enumerate(rows):
            size = sum(map(len, texts_of(record)))
            yield _Row(row, f"row {row}", record if size <= LONGEST else _too_long("record"), size)
    except Exception as error:  # pyarrow and datasets raise their own types
        yield _Row(row + 1, "", _damage(error, row, "create the file again, or leave it out"))


@contextlib.contextmanager
def _opened(path: File) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        if _packing(path) and not cast("io.BufferedReader", file).peek(1):
            raise EOFError("it has 0 bytes, which no compressed file has")
        if _packing(path) == ".gz":
            with gzip.open(file) as plain:
                yield _buffered(iter(lambda: plain.read(1 << 20), b""), file)
        elif _packing(path) == ".zst":
            try:
                import zstandard
            except ImportError as error:
                raise ActError(f"{path} needs zstandard: pip install zstandard") from error
            yield _buffered(_unpacked(file, zstandard.ZstdDecompressor), file)
        else:
            yield file


def _unpacked(file: BinaryIO, decompressor: Any) -> Iterator[bytes]:
    """The content of a zstd file, block by block; zstandard's stream readers accept a truncated file as whole.

    What is fed at once is little, since it may unpack to over 30,000 times its size.
    """
    frame = None
    while block := file.read(1 << 11):
        while block:
            frame = frame or decompressor().decompressobj()
            yield frame.decompress(block)
            block = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends inside a compressed frame")


def _buffered(blocks: Iterator[bytes], packed: BinaryIO) -> BinaryIO:
    """Blocks that are unpacked from a file, as a file; reading raises :class:`unpacking.TooLarge` for a bomb."""
    return cast("BinaryIO", io.BufferedReader(_Blocks(blocks, packed), 1 << 20))


class _Blocks(io.RawIOBase):
    def __init__(self, blocks: Iterator[bytes], packed: BinaryIO) -> None:
        self._blocks, self._packed = filter(None, blocks), packed
        self._rest, self._size = memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
            self._size += len(self._rest)
            unpacking.require_ratio(self._size, self._packed.tell(), unpacking.UNPACKED)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _hash_and_size(path: File) -> tuple[bytes, int | None]:
    """A hash of the content (of size and evenly spaced samples, if large) and, if cheap, the number of records."""
    if isinstance(path, Remote):
        return path.mark().encode(), _parquet_rows(path) if _kind(path) == ".parquet" else None
    size = path.stat().st_size
    digest, lines, read = hashlib.sha256(str(size).encode()), 0, 0
    with path.open("rb") as file:
        if size <= WHOLE_HASH_BYTES:
            blocks: Iterable[bytes] = iter(lambda: file.read(1 << 20), b"")
        else:
            blocks = (_at(file, start) for start in range(0, size, size // SAMPLES))
        last = b"\n"
        for block in blocks:
            digest.update(block)
            read += len(block)
            lines += block.count(b"\n")
            last = block[-1:]
    if _kind(path) == ".parquet":
        return digest.digest(), _parquet_rows(path)
    if _kind(path) in LINES and not _packing(path):
        return digest.digest(), lines + (last != b"\n") if read == size else lines * size // read
    return digest.digest(), None


def _at(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    return file.read(SAMPLE_BYTES)


def _parquet_rows(path: File) -> int | None:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            rows: int = pyarrow.parquet.read_metadata(file).num_rows
        return rows
    except (OSError, pyarrow.ArrowException):
        return None  # reading the file reports the error, or skips it

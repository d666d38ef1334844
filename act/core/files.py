"""Writing files and folders so that nothing half-written is left behind, and nothing of the user's is lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from act.core.errors import ActError, option
from act.core.inputs import require_not_input
from act.core.moves import exchange, move_new
from act.core.near import meant
from act.core.scratch import REPLACED, reserve, reserved, scratch_beside

MANIFEST = ".act-profile"  # in each folder written: the files that --force may replace, one per line
_NAMED = 1000  # files that are counted for a message


def require_output(path: Path, force: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Check, before any work, that ``path`` can be written.

    Raises:
        ActError: ``path`` exists and ``force`` is False; it is a folder with files that :func:`written_whole` did not
            write; it is a device, pipe or socket; it would overwrite one of the ``inputs``
            (:func:`act.core.inputs.require_not_input`).
    """
    require_not_input(path, inputs)
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ActError(f"{path} is a device, pipe or socket, which no output replaces; choose another output")
    if os.path.lexists(path) and not force:
        force_it = option("--force", "force=True")
        raise ActError(f"{path} exists already; pass {force_it} to replace it, or choose another output")
    try:
        os.lstat(path)
        _require_own(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ActError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ActError(f"cannot write {path}: {reason}; choose another output") from error
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not os.path.isdir(there):
        raise ActError(f"cannot write {path}: {there} is no folder; choose another output")


def require_writable(path: Path) -> None:
    """Raise :class:`ActError` unless a file can be made in the folder of ``path``, or the nearest that there is.

    Nothing is left there, and no folder is made.
    """
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ActError(
            f"cannot write {path}: no file can be made in {there} ({error.strerror}); choose another output"
        ) from error


def require_ending(path: Path, what: str, endings: Sequence[str]) -> None:
    """Raise :class:`ActError` unless the name of a file ends as one of the formats that it can be written in.

    Args:
        what: what is written, in words.
        endings: those of the formats, such as ``.csv``.

    >>> from act.core.files import require_ending
    >>> require_ending(Path("channels.cvs"), "the table", (".csv", ".parquet"))
    Traceback (most recent call last):
    act.core.errors.ActError: the table channels.cvs ends with .cvs; expected .csv or .parquet; did you mean .csv?
    """
    if path.suffix.lower() not in endings:
        if path.is_dir():
            raise ActError(f"{what} {path} is a folder; expected a file in it, such as {path / f'table{endings[0]}'}")
        expected = " or ".join(filter(None, (", ".join(endings[:-1]), endings[-1])))
        found = f"ends with {path.suffix}" if path.suffix else "has no ending"
        raise ActError(f"{what} {path} {found}; expected {expected}{meant(path.suffix, endings)}")


def require_no_other_ending(path: Path, ending: str) -> None:
    """Raise :class:`ActError` if the name of an output says another format than that of ``ending``; no ending is one.

    >>> from act.core.files import require_no_other_ending
    >>> require_no_other_ending(Path("channels.csv"), ".safetensors")
    Traceback (most recent call last):
    act.core.errors.ActError: the output channels.csv ends with .csv; expected .safetensors, which is what is written
    """
    if path.suffix != ending and path.suffix.lower() in _FORMATS:
        raise ActError(f"the output {path} ends with {path.suffix}; expected {ending}, which is what is written")


def require_folder_name(path: Path, or_else: str = "") -> None:
    """Raise :class:`ActError` if the name of a folder that is to be written ends like a file.

    Args:
        or_else: what else may be written, as the end of a sentence.

    >>> from act.core.files import require_folder_name
    >>> require_folder_name(Path("mended.txt"))
    Traceback (most recent call last):
    act.core.errors.ActError: the output mended.txt ends with .txt like a file; expected the name of a folder
    """
    if path.suffix.lower() in _FORMATS:
        raise ActError(f"the output {path} ends with {path.suffix} like a file; expected the name of a folder{or_else}")


_FORMATS = {
    *(".csv", ".tsv", ".parquet", ".arrow", ".feather", ".xls", ".xlsx", ".ods", ".json", ".jsonl", ".yaml", ".yml"),
    *(".txt", ".md", ".html", ".pdf", ".png", ".svg", ".npy", ".npz", ".pt", ".pth", ".pkl", ".gguf", ".safetensors"),
}


def reserve_output(path: Path, force: bool, inputs: Iterable[str | Path] = ()) -> None:
    """As :func:`require_output`; and until this process ends, no other can write ``path``.

    What a dead process has left beside ``path`` is removed, even if it cannot be written.

    Raises:
        ActError: as :func:`require_output`; another process writes ``path``.
    """
    reserve(path)
    require_output(path, force, inputs)


def _require_own(path: Path) -> None:
    """Raise :class:`ActError` if ``path`` is a folder with files that its manifest does not name."""
    if not os.path.isdir(path):
        return
    known = _manifest(path)
    foreign = [*itertools.islice((name for name in _files(path) if name not in known), _NAMED)]
    if foreign:
        many = f"at least {_NAMED - 1}" if len(foreign) == _NAMED else str(len(foreign) - 1)
        more = f" and {many} more files" if len(foreign) > 1 else ""
        raise ActError(
            f"{path} holds {foreign[0]}{more}, not written by act-profile, so {option('--force', 'force=True')} does "
            "not replace the folder; move them elsewhere, or choose another output"
        )


def _manifest(folder: Path) -> set[str]:
    """The names of the files that were written with a folder.

    Raises:
        ActError: its manifest is damaged: it does not end with its last line, or names what lies elsewhere.
    """
    manifest = folder / MANIFEST
    text = manifest.read_bytes().decode("utf-8", "surrogateescape") if manifest.is_file() else ""
    *names, rest = text.split("\n")
    if rest or any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise ActError(
            f"{manifest} is damaged, so it is unknown which files {option('--force', 'force=True')} may replace; move "
            "those of the folder elsewhere and delete it, or choose another output"
        )
    return {MANIFEST, *names}


def _files(folder: Path) -> Iterator[str]:
    """The relative names of all files below a folder, in order of their folders."""

    def unreadable(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        links = [name for name in folders if os.path.islink(Path(root, name))]
        yield from sorted(Path(root, name).relative_to(folder).as_posix() for name in (*files, *links))


@contextlib.contextmanager
def written_whole(path: Path, *, force: bool = False, directory: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends, or removed if the block raises.

    The result has the permissions that the umask gives a new file. A folder gets a list of its files,
    :data:`MANIFEST`, and is replaced only if it holds no other files; empty folders in it are kept. Other processes
    cannot write ``path`` meanwhile (:func:`act.core.scratch.reserved`).

    Raises:
        ActError: ``path`` exists, or appears while the block runs, and ``force`` is False; it is a folder with files
            that its manifest does not name; its parent folder cannot be made or written to; the disk is full;
            another process writes it.
    """
    require_output(path, force)
    if os.path.isdir(path) and not directory:
        raise ActError(f"cannot write {path}: it is a folder; choose another output")
    if directory and os.path.isfile(path):
        raise ActError(f"cannot write the folder {path}: it is a file; choose another output")
    path = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    with reserved(path), scratch_beside(path) as scratch, written_to(path, scratch):
        temporary = scratch / path.name
        if directory:
            temporary.mkdir()
        yield temporary
        _give_usual_mode(temporary, scratch)
        if directory:
            names = "".join(f"{name}\n" for name in _files(temporary) if name != MANIFEST)
            (temporary / MANIFEST).write_bytes(names.encode("utf-8", "surrogateescape"))
        _put_in_place(temporary, path, force)


def _put_in_place(temporary: Path, path: Path, force: bool) -> None:
    if not force:
        try:
            return move_new(temporary, path)
        except FileExistsError:
            raise ActError(
                f"{path} appeared while it was being written and was left alone; pass "
                f"{option('--force', 'force=True')} to replace it, or choose another output"
            ) from None
    if not temporary.is_dir() or path.is_symlink() or not path.is_dir():
        return os.replace(temporary, path)
    _require_own(path)  # again: files may have been added meanwhile
    _keep_empty_folders(path, temporary)
    if exchange(temporary, path):
        return None
    replaced = temporary.parent / REPLACED / path.name  # a rename cannot replace a folder that holds files
    replaced.parent.mkdir()
    path.rename(replaced)
    try:
        temporary.rename(path)
    except OSError:
        replaced.rename(path)
        raise
    return None


def _keep_empty_folders(old: Path, new: Path) -> None:
    """Make in ``new`` the folders of ``old`` in which no file was written."""
    written = {parent.as_posix() for name in _manifest(old) for parent in Path(name).parents}
    for folder in sorted(path for path in old.rglob("*") if path.is_dir() and not path.is_symlink()):
        name = folder.relative_to(old)
        if name.as_posix() not in written and not os.path.lexists(new / name):
            (new / name).mkdir(parents=True)
            shutil.copystat(folder, new / name)


def _give_usual_mode(written: Path, scratch: Path) -> None:
    """Give written files the mode of any new file (safetensors writes 0600); leave files with other links alone."""
    usual = scratch / "usual"
    usual.touch()
    mode = stat.S_IMODE(usual.stat().st_mode)
    for file in [written / name for name in _files(written)] if written.is_dir() else [written]:
        found = file.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and stat.S_IMODE(found.st_mode) != mode:
            file.chmod(mode)


@contextlib.contextmanager
def written_to(path: Path, inside: Path) -> Iterator[None]:
    """Turn errors of writing ``path``, of which all files lie ``inside`` a folder meanwhile, into :class:`ActError`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _number_of(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise ActError(f"the disk is full while writing {path}; nothing was changed, free some space") from error
        if number == errno.EFBIG:
            raise ActError(
                f"cannot write {path}: the system allows no file of this size (see ulimit -f); nothing was changed"
            ) from error
        ours = isinstance(error, OSError) and str(inside) in f"{error.filename} {error.filename2}"
        if number and (ours or number == errno.EROFS):
            raise ActError(f"cannot write {path}: {os.strerror(number)}; nothing was changed") from error
        raise


def _number_of(error: BaseException) -> int | None:
    """The number by which the system names an error, also from the message of an error in Rust or C++."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os error (\d+)|code: (\d+)|errno (\d+)", str(error))
    if found:
        return int(next(filter(None, found.groups())))
    # torch.save does not say why it cannot write
    full = re.search(r"No space left on device|StorageFull|PytorchStreamWriter failed|inline_container", str(error))
    return errno.ENOSPC if full else None

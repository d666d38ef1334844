"""Writing files and folders so that nothing half-written is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from act.core.errors import ActError

MANIFEST = ".act-profile"  # in each folder written: the files that --force may replace, one per line


def require_output(path: Path, force: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Check, before any work, that ``path`` can be written.

    Raises:
        ActError: ``path`` exists and ``force`` is False; it is a folder with files that :func:`written_whole` did not
            write; its parent folder does not exist; it would overwrite one of the ``inputs``.
    """
    require_not_input(path, inputs)
    if path.exists() and not force:
        raise ActError(
            f"{path} exists already; pass --force (force=True in Python) to replace it, or choose another output"
        )
    _require_own(path)
    if not path.absolute().parent.is_dir():
        raise ActError(f"cannot write {path}: the folder {path.absolute().parent} does not exist; create it first")


def require_not_input(output: Path, inputs: Iterable[str | Path]) -> None:
    """Raise :class:`ActError` if ``output`` is one of the ``inputs``, lies inside one, or contains one."""
    place = output.resolve()
    for one in inputs:
        held = Path(one).resolve()
        if held.exists() and (place == held or held in place.parents or place in held.parents):
            raise ActError(f"the output {output} would overwrite the input {one}; choose another output")


def _require_own(path: Path) -> None:
    """Raise :class:`ActError` if ``path`` is a folder with files that its manifest does not name."""
    if not path.is_dir():
        return
    manifest = path / MANIFEST
    known = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    if foreign := [name for name in _files(path) if name not in {MANIFEST, *known}]:
        more = f" and {len(foreign) - 1} more files" if len(foreign) > 1 else ""
        raise ActError(
            f"{path} holds {foreign[0]}{more}, not written by act-profile, so --force does not replace the folder; "
            "move them elsewhere, or choose another output"
        )


def _files(folder: Path) -> list[str]:
    """The relative names of all files below a folder, sorted."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


@contextlib.contextmanager
def written_whole(path: Path, *, force: bool = False, directory: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends, or removed if the block raises.

    The result has the permissions that the umask gives a new file. A folder gets a list of its files,
    :data:`MANIFEST`, and is replaced only if it holds no other files.

    Raises:
        ActError: ``path`` exists and ``force`` is False; it is a folder with files that its manifest does not name; its
            parent folder does not exist; the disk is full.
    """
    require_output(path, force)
    if path.is_dir() and not directory:
        raise ActError(f"cannot write {path}: it is a folder; choose another output")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    except OSError as error:
        raise ActError(f"cannot write {path}: {error.strerror}; choose another output") from error
    try:
        temporary = scratch / path.name
        if directory:
            temporary.mkdir()
        yield temporary
        if directory:
            names = [name for name in _files(temporary) if name != MANIFEST]
            (temporary / MANIFEST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        _give_usual_mode(temporary, scratch)
        _require_own(path)  # again: files may have been added meanwhile
        if path.is_dir() and not path.is_symlink():
            path.replace(scratch / "replaced")  # a rename cannot replace a folder that holds files
        try:
            os.replace(temporary, path)
        except OSError:
            if (scratch / "replaced").exists():
                (scratch / "replaced").replace(path)
            raise
    except (OSError, SafetensorError) as error:
        if _is_disk_full(error):
            raise ActError(f"the disk is full while writing {path}; nothing was changed, free some space") from error
        if isinstance(error, OSError) and error.filename and str(scratch) in str(error.filename):
            raise ActError(f"cannot write {path}: {error.strerror}; nothing was changed") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _give_usual_mode(written: Path, scratch: Path) -> None:
    """Give written files the mode of any new file (safetensors writes 0600); leave files with other links alone."""
    usual = scratch / "usual"
    usual.touch()
    mode = stat.S_IMODE(usual.stat().st_mode)
    for file in [written / name for name in _files(written)] if written.is_dir() else [written]:
        found = file.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and stat.S_IMODE(found.st_mode) != mode:
            file.chmod(mode)


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "No space left on device" in str(error) or "StorageFull" in str(error)

"""A lock file that says who holds it, and that the system releases when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)


@dataclass(frozen=True)
class Owner:
    """A process, told apart from later ones with the same number.

    Attributes:
        pid: its number.
        started: when it started, in clock ticks since the system did; None if the system does not say.
        boot: the system's id since it started; None if there is none.
        host: the name of the machine.
    """

    pid: int
    started: int | None
    boot: str | None
    host: str

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        boot = None
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return cls(os.getpid(), _start_of(os.getpid()), boot, socket.gethostname())

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" on {self.host}" if self.host != socket.gethostname() else "")

    def may_live(self) -> bool:
        """Whether the process may still run; that of a process on another machine is not known."""
        here = Owner.here()
        if self.host != here.host:
            return True
        if self.boot != here.boot:
            return False
        if self.started is not None:
            return _start_of(self.pid) == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class Busy(Exception):
    """Another process holds the lock: ``owner``, or None if it does not say who."""

    def __init__(self, owner: Owner | None) -> None:
        super().__init__(str(owner or "another process"))
        self.owner = owner


def lock(path: Path) -> int:
    """Create and lock a file, and write this process into it; returns its descriptor.

    Where the filesystem has no locks, the process that the file names decides.

    Raises:
        Busy: another process holds it.
        OSError: the file cannot be created.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(_read(descriptor)) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                owner = _read(descriptor)
                if owner and owner != Owner.here() and owner.may_live():
                    raise Busy(owner) from None
            if _is_at(descriptor, path):  # else its holder has just removed it
                _write(descriptor, path)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def unlock(path: Path, descriptor: int) -> None:
    """Remove a lock file and release it, in this order, so that nobody locks a file that is about to go."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)


def _write(descriptor: int, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(Owner.here())).encode(), 0)
    except OSError:
        path.unlink()
        raise


def _read(descriptor: int) -> Owner | None:
    try:
        return Owner(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError, OSError, RecursionError):
        return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _start_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22; the name in parentheses may hold anything

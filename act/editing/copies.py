"""Copies of model folders: the weights in the background, and every file beside them that transformers may read."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from act.core.copying import can_clone, copy_file
from act.core.errors import ActError
from act.core.files import MANIFEST, written_whole
from act.editing.weight_files import read_mapping, weight_files

if TYPE_CHECKING:  # torch, which takes a second to import
    from act.editing.stored import StoredModel

log = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt")
_CARD = "readme.md"
_OF_TRAINING = {  # what trainers say of the weights that they wrote
    "training.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
}


class Copy:
    """A model folder that is being filled with the files of another one; its shards arrive in the background.

    It fails if a shard changes between the moment before its first byte is copied and the return of :meth:`wait`.

    Attributes:
        source: the folder that is copied.
        folder: where the copy is made.
        output: where it will be once it is whole.
    """

    def __init__(self, source: Path, folder: Path, output: Path) -> None:
        self.source, self.folder, self.output = source, folder, output
        self._arriving: dict[str, Future[None]] = {}
        self._before: dict[str, os.stat_result] = {}  # of the source's shards, from before they were copied
        self._used = False  # what is in the folder may have been written to
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def begin(self) -> None:
        """Begin with the shards, in their order, while it is not yet known which will be written to.

        Where the filesystem can clone, which takes no time, nothing is done yet: those that will not be are clones.
        """
        with contextlib.suppress(ActError, OSError):  # whatever reads the model next reports it
            shards, _ = weight_files(self.source, read_mapping(self.source / "config.json"))
            if not can_clone(self.source / shards[0], self.folder):
                self._before = {name: (self.source / name).stat() for name in shards}
                for name in shards:
                    self._submit(name, clone=False)

    def of(self, model: StoredModel, changed: Iterable[str], *, hard_link: bool = False) -> StoredModel:
        """Copy the :func:`companions` and all shards, those first that hold the tensors ``changed``, in this order.

        A second time, everything is copied again.

        Args:
            changed: the tensors that will be written to.
            hard_link: link the shards of no such tensor instead of copying them. A program that writes in place into
                one of the two files then changes the other, too.

        Returns:
            The copy, whose tensors can be written to (those of ``changed`` only); reading one waits for its shard.

        Raises:
            ActError: shards changed after the copy began or ``model`` was opened.
        """
        under_way = {name: future for name, future in self._arriving.items() if not future.cancel()}
        if self._used:
            futures.wait(under_way.values())
            under_way.clear()
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        elif not all(name in model.found and _same(one, model.found[name]) for name, one in self._before.items()):
            raise self._changed()
        self._arriving, self._before, self._used = under_way, dict(model.found), True
        copy_companions(self.source, self.folder, [*model.shards], model.index)
        touched = dict.fromkeys(model.shard_of(name) for name in changed)
        for name in (*touched, *(name for name in model.shards if name not in touched)):
            if name not in self._arriving and not (hard_link and name not in touched and self._linked(name)):
                self._submit(name, clone=name not in touched)
        if hard_link:
            model.remembered.linked(model.identities())
        return model.arriving_in(self.folder, {name: self._arriving[name] for name in touched})

    def wait(self) -> None:
        """Wait until all shards have arrived.

        Raises:
            ActError: one has changed since its copy began.
        """
        for each in self._arriving.values():
            each.result()
        self.require_unchanged()

    def require_unchanged(self, shards: Iterable[str] | None = None) -> None:
        """Raise :class:`ActError` if a shard, of all or of some, is not the file that it was before it was copied."""
        for name in self._before if shards is None else shards:
            try:
                if _same(self._before[name], (self.source / name).stat()):
                    continue
            except FileNotFoundError:
                pass
            raise self._changed()

    def stop(self) -> None:
        """Copy nothing more."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, name: str, *, clone: bool) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        self._arriving[name] = self._pool.submit(self._copy, name, clone)

    def _copy(self, name: str, clone: bool) -> None:
        try:
            copy_file(self.source / name, self.folder / name, self._stop, clone=clone)
        finally:
            self.require_unchanged([name])  # before anybody maps what may be shorter

    def _linked(self, name: str) -> bool:
        source, destination = self.source / name, self.folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.unlink(missing_ok=True)
        self.require_unchanged([name])
        try:
            os.link(source.resolve(), destination)
        except OSError as error:
            log.warning("%s is copied, because it cannot be linked (%s)", source, error.strerror)
            return False
        self._before[name] = source.stat()  # with the ctime of the link
        return True

    def _changed(self) -> ActError:
        return ActError(f"{self.source} changed while it was copied; run again when nothing writes to it")


@contextlib.contextmanager
def copied(source: Path, output: Path, *, force: bool = False) -> Iterator[Copy]:
    """Write a model folder that begins as a copy of another one (:func:`act.core.files.written_whole`)."""
    with written_whole(output, force=force, directory=True) as folder:
        copy = Copy(source, folder, output)
        try:
            yield copy
            copy.wait()
        except (OSError, ValueError):
            copy.require_unchanged()  # else that is why: a shard is shorter now, or gone
            raise
        finally:
            copy.stop()


def copy_companions(source: Path, folder: Path, shards: Collection[str] = (), index: str | None = None) -> None:
    """Copy the :func:`companions` of a model, except files that ``folder`` has already."""
    for name in companions(source, shards, index):
        if not os.path.lexists(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(source / name, folder / name)


def companions(folder: Path, shards: Collection[str] = (), index: str | None = None) -> Iterator[str]:
    """The files of a model folder that are not its weights, in sub-folders too: what transformers may read there.

    Tokenizer, configurations, chat templates, code. Left out are the README and the records of a training, which
    speak of other weights; weights in other formats and the indices of others than ``index``; checkpoints of a
    training; hidden folders. A sub-folder with
    a configuration is another model's, such as a processor's, and keeps its weights.
    """
    for root, folders, files in os.walk(folder):
        place = Path(root)
        if place != folder and "trainer_state.json" in files:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        own = place != folder and "config.json" in files
        for name in sorted(files):
            relative = (place / name).relative_to(folder).as_posix()
            weights = name.endswith((*_WEIGHTS, ".index.json")) and relative != index and not own
            weights |= relative in shards
            untrue = relative.lower() == _CARD or relative in _OF_TRAINING
            if not (weights or untrue or relative == MANIFEST or not (place / name).is_file()):
                yield relative


def _same(before: os.stat_result, now: os.stat_result) -> bool:
    """Whether a file was neither replaced nor written to; links to it, which change its ctime too, may come and go."""
    one, other = ((each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in (before, now))
    return one == other and (before.st_ctime_ns == now.st_ctime_ns or before.st_nlink != now.st_nlink)

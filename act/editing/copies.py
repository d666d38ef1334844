"""Copies of model folders: the weights in the background, and every file beside them that transformers may read."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from act.core.copying import copy_file
from act.core.files import MANIFEST
from act.editing.stored import StoredModel

log = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt")
_CARD = "readme.md"


@contextlib.contextmanager
def copied(
    source: StoredModel, folder: Path, changed: Iterable[str], *, hard_link: bool = False
) -> Iterator[StoredModel]:
    """Fill ``folder`` with the files of a model: its shards, in their places, and its :func:`companions`.

    Args:
        changed: the tensors that will be written to.
        hard_link: link the shards of no such tensor instead of copying them. A program that writes in place into one
            of the two files then changes the other, too.

    Yields:
        The copy, whose tensors can be written to (those of ``changed`` only). Shards are copied in the background, in
        the order of ``changed``; reading a tensor waits for its shard. All are complete when the block ends.
    """
    copy_companions(source.folder, folder, [*source.shards], source.index)
    touched = dict.fromkeys(source.shard_of(name) for name in changed)
    others = [name for name in source.shards if name not in touched]
    for name in source.shards:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if hard_link:
        others = [name for name in others if not _linked(source.folder / name, folder / name)]
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        arriving = {
            name: pool.submit(copy_file, source.folder / name, folder / name, stop, clone=name not in touched)
            for name in (*touched, *others)
        }
        try:
            yield source.arriving_in(folder, {name: arriving[name] for name in touched})
            for each in arriving.values():
                each.result()
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def copy_companions(source: Path, folder: Path, shards: Collection[str] = (), index: str | None = None) -> None:
    """Copy the :func:`companions` of a model, except files that ``folder`` has already."""
    for name in companions(source, shards, index):
        if not os.path.lexists(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(source / name, folder / name)


def companions(folder: Path, shards: Collection[str] = (), index: str | None = None) -> Iterator[str]:
    """The files of a model folder that are not its weights, in sub-folders too: what transformers may read there.

    Tokenizer, configurations, chat templates, code. Left out are the README, which speaks of other weights; weights in
    other formats and the indices of others than ``index``; checkpoints of a training; hidden folders. A sub-folder with
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
            if not (weights or relative == MANIFEST or relative.lower() == _CARD or not (place / name).is_file()):
                yield relative


def _linked(source: Path, destination: Path) -> bool:
    try:
        os.link(source.resolve(), destination)
    except OSError as error:
        log.warning("%s is copied, because it cannot be linked (%s)", source, error.strerror)
        return False
    return True

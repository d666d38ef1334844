from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import signal
import socket
import stat
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from act.core import files, locks, scratch
from act.core.copying import Stopped, copy_file
from act.core.errors import ActError
from act.core.files import require_output, reserve_output, written_whole
from act.core.locks import Owner, _start_of
from act.core.scratch import clear, companion, release_all, reserved
from act.core.tensor_files import load_tensors, save_tensors
from act.profiles.profile import SCHEMA, load
from act.ranking import channel_set
from act.ranking.channel_set import ChannelSet


@pytest.fixture(autouse=True)
def nothing_stays_reserved():
    yield
    release_all()


def test_a_full_disk_leaves_nothing_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    path.write_text("precious")

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("act.core.tensor_files.save_file", full)
    with pytest.raises(ActError, match=r"disk is full while writing .*kept; nothing was changed"):
        save_tensors(path, {"x": torch.zeros(3)}, "act-test/1", {}, force=True)
    assert path.read_text() == "precious" and [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_a_really_full_disk(tmp_path):
    """/dev/full refuses every byte, as a full disk does."""
    with pytest.raises(ActError, match=r"disk is full"), written_whole(tmp_path / "file") as temporary:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
        temporary.touch()
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_header_and_tensors_come_back(tmp_path):
    tensors = {"a": torch.arange(5), "b": torch.randn(2, 3)[:, ::2]}
    save_tensors(tmp_path / "file", tensors, "act-test/1", {"x": [1, "ü"]})
    found, header = load_tensors(tmp_path / "file", "act-test/1")
    assert header == {"x": [1, "ü"]} and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_every_bit_of_a_file_counts(tmp_path):
    path = tmp_path / "file"
    tensors = {"a": torch.arange(5), "b": torch.tensor(True), "c": torch.ones(2, 0), "d": torch.ones(3).bfloat16()}
    save_tensors(path, tensors, "act-test/1", {"x": [1, "ü"]})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ (1 << place % 8), *whole[place + 1 :]]))
        with pytest.raises(
            ActError, match=r"file (is truncated or damaged|is not a safetensors file|holds) .*make it|expected"
        ):
            load_tensors(path, "act-test/1")
    path.write_bytes(whole)
    assert load_tensors(path, "act-test/1", header_only=True)[1] == {"x": [1, "ü"]}


def test_a_file_of_an_earlier_version_has_no_hash(tmp_path):
    save_file({"a": torch.arange(5)}, tmp_path / "file", {"schema": "act-test/1", "header": "{}"})
    tensors, header = load_tensors(tmp_path / "file", "act-test/1")
    assert torch.equal(tensors["a"], torch.arange(5)) and header == {}


def test_a_file_of_another_kind_is_named(tmp_path):
    save_tensors(tmp_path / "file", {"a": torch.zeros(1)}, "act-other/1", {})
    with pytest.raises(ActError, match="holds act-other/1, expected act-test/1; give an act-test file"):
        load_tensors(tmp_path / "file", "act-test/1")
    (tmp_path / "text").write_text('{"text": "a b c"}')
    with pytest.raises(ActError, match="text is not a safetensors file; expected an act-test file"):
        load_tensors(tmp_path / "text", "act-test/1")
    (tmp_path / "text").write_bytes((tmp_path / "file").read_bytes()[:20])
    with pytest.raises(ActError, match="truncated or damaged"):
        load_tensors(tmp_path / "text", "act-test/1")


@pytest.mark.parametrize(
    "header", [{}, [], {"space": {}}, {"space": {"sites": [{}], "uncovered": []}, "pair": False}], ids=str
)
@pytest.mark.parametrize(("schema", "read"), [(SCHEMA, load), (channel_set.SCHEMA, ChannelSet.load)])
def test_a_damaged_header_is_one_sentence(tmp_path, header, schema, read):
    save_tensors(tmp_path / "file", {"index": torch.arange(2), "scores": torch.zeros(2)}, schema, header)
    with pytest.raises(ActError, match=r"file is .*damaged.*make it again"):
        read(tmp_path / "file")


def test_only_folders_written_here_are_replaced(tmp_path):
    def write(name: str) -> None:
        with written_whole(tmp_path / "folder", force=True, directory=True) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / name).touch()

    (tmp_path / "folder").mkdir()
    write("one")  # an empty folder holds nothing to lose
    write("two")
    assert [path.name for path in (tmp_path / "folder" / "sub").iterdir()] == ["two"]
    for name in ("thesis.tex", "sub/thesis.tex"):
        thesis = tmp_path / "folder" / name
        thesis.write_text("x")
        with pytest.raises(ActError, match=rf"folder holds {name}, not written by act-profile.*move them elsewhere"):
            write("three")
        with pytest.raises(ActError, match="force=True does not replace"):
            require_output(tmp_path / "folder", force=True)
        assert thesis.read_text() == "x"
        thesis.unlink()
    with pytest.raises(ActError, match="late"), written_whole(tmp_path / "folder", force=True, directory=True):
        (tmp_path / "folder" / "late").touch()
    assert (tmp_path / "folder" / "late").exists() and [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("manifest", [b"\xff", b"model.saf", b"/etc/passwd\n", b"a\n../b\n"])
def test_a_damaged_manifest_lets_nothing_be_replaced(tmp_path, manifest):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".act-profile").write_bytes(manifest)
    with pytest.raises(ActError, match=r"^.*folder/\.act-profile is damaged.*choose another output$"):
        require_output(tmp_path / "folder", force=True)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_says_who_may_read(tmp_path, umask, mode):
    linked = tmp_path / "linked"
    linked.touch(0o600)
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "file", {"a": torch.zeros(1)}, "act-test/1", {})
        with written_whole(tmp_path / "folder", directory=True) as folder:
            save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
            os.link(linked, folder / "linked")
    finally:
        os.umask(before)
    written = [tmp_path / "file", tmp_path / "folder" / "model.safetensors"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in written] == [mode, mode]
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE(linked.stat().st_mode) == 0o600


def test_a_users_empty_folders_survive(tmp_path):
    out = tmp_path / "out"
    for name in ("one", "two"):
        with written_whole(out, force=True, directory=True) as folder:
            (folder / "parts").mkdir()
            (folder / "parts" / name).touch()
        (out / "mine" / "inner").mkdir(parents=True, exist_ok=True)
        (out / "mine").chmod(0o700)
    assert sorted(path.name for path in out.rglob("*")) == [".act-profile", "inner", "mine", "parts", "two"]
    assert stat.S_IMODE((out / "mine").stat().st_mode) == 0o700


@pytest.fixture(params=["as it is", "without renameat2", "without links"])
def filesystem(request, monkeypatch):
    """A filesystem as it is here, and those that can do less."""

    def refuse(*_args, **_options):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    if request.param != "as it is":
        monkeypatch.setattr("act.core.moves._renameat2", refuse)
    if request.param == "without links":
        monkeypatch.setattr("act.core.moves.os.link", refuse)
    return request.param


@pytest.mark.parametrize("directory", [False, True], ids=["file", "folder"])
def test_an_output_that_appears_meanwhile_is_left_alone(tmp_path, filesystem, directory, caplog):
    out = tmp_path / "out"

    def write(force: bool) -> None:
        with written_whole(out, force=force, directory=directory) as temporary:
            (temporary / "x" if directory else temporary).write_text("ours")
            if not force:
                out.write_text("theirs")

    with pytest.raises(ActError, match=r"appeared while it was being written and was left alone; pass force=True"):
        write(force=False)
    assert out.read_text() == "theirs" and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert ("cannot rename without replacing" in caplog.text) == (
        filesystem == "without links" or (directory and filesystem != "as it is")
    )
    out.unlink()
    write(force=True)
    write(force=True)
    assert (out / "x" if directory else out).read_text() == "ours"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def die(at: str, place: Path, directory: bool) -> None:
    """Write over an output, and die at some moment, as SIGKILL makes a process die."""

    def dying(*_args, **_options):
        os._exit(9)

    files.exchange = lambda one, other: False
    if at == "before":
        Path.rename = dying
    elif at == "between":
        moved = Path.rename
        Path.rename = lambda self, to: dying() if self.parent != place else moved(self, to)
    elif at == "after":
        scratch.shutil.rmtree = dying
    with written_whole(place / "out", force=True, directory=directory) as temporary:
        if at == "early":
            dying()
        (temporary / "x" if directory else temporary).write_text("new")


@pytest.mark.parametrize("directory", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("at", ["early", "before", "between", "after"])
def test_a_process_that_dies_loses_neither_old_nor_new(tmp_path, at, directory):
    out = tmp_path / "out"
    held = out / "x" if directory else out
    with written_whole(out, directory=directory) as temporary:
        (temporary / "x" if directory else temporary).write_text("old")
    child = os.fork()
    if not child:
        die(at, tmp_path, directory)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.glob(".out.act-tmp-*")]
    clear(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    done = at == "after" or (not directory and at in ("before", "between"))  # a file takes one rename
    assert held.read_text() == ("new" if done else "old")


def test_a_live_process_is_named_and_its_files_are_left(tmp_path):
    with written_whole(tmp_path / "out") as temporary:
        temporary.write_text("x")
        asking, answer = os.pipe()
        if not os.fork():
            try:
                with reserved(tmp_path / "out"):
                    os.write(answer, b"reserved")
            except ActError as error:
                os.write(answer, str(error).encode())
            os._exit(0)
        assert os.read(asking, 1000).decode() == (
            f"process {os.getpid()} is writing {tmp_path / 'out'}; wait until it has ended, or choose another output"
        )
        with written_whole(tmp_path / "out") as again:  # the same process may
            again.write_text("y")
        (tmp_path / "out").unlink()
        assert temporary.exists()
    assert (tmp_path / "out").read_text() == "x"


@pytest.mark.parametrize(
    ("changes", "lives"),
    [({}, True), ({"started": 1}, False), ({"boot": "another"}, False), ({"host": "another", "boot": "x"}, True)],
    ids=["live", "its number was given again", "before a restart", "on another machine"],
)
def test_without_locks_the_process_in_the_file_decides(tmp_path, monkeypatch, changes, lives):
    def unsupported(*_args):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("act.core.locks.fcntl.flock", unsupported)
    child = os.fork()
    if not child:
        signal.pause()
    lock = tmp_path / ".out.act-lock"
    try:
        owner = replace(Owner.here(), **{"pid": child, "started": _start_of(child), **changes})
        lock.write_text(json.dumps(asdict(owner)))
        with pytest.raises(ActError, match=f"process {child}") if lives else contextlib.nullcontext():
            save_tensors(tmp_path / "out", {}, "act-test/1", {})
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert lock.exists() == lives
    if not changes:
        save_tensors(tmp_path / "out", {}, "act-test/1", {})


@pytest.mark.parametrize("length", [200, 250, 255])
def test_a_name_may_be_as_long_as_the_filesystem_allows(tmp_path, length):
    one, other = tmp_path / ("n" * length), tmp_path / ("ü" * (length // 2) + "n" * (length % 2))
    for path in (one, other):
        with written_whole(path) as temporary:
            temporary.write_text("x")
        assert len(os.fsencode(companion(path, ".checkpoint", room=20).name)) <= 235
    assert companion(one, ".checkpoint") != companion(other, ".checkpoint")
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["x", "x"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.EFBIG, "x"), "allows no file of this size"),
        (SafetensorError("I/O error: File too large (os error 27)"), "allows no file of this size"),
        (OSError(errno.EDQUOT, "x"), "disk is full"),
        (SafetensorError('IoError(Os { code: 28, message: "No space left on device" })'), "disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "disk is full"),
        (OSError(errno.EROFS, "x"), "Read-only file system"),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_one_sentence(tmp_path, error, sentence):
    with pytest.raises(ActError, match=rf"{tmp_path}/out.*{sentence}|{sentence}.*{tmp_path}/out"):
        with written_whole(tmp_path / "out"):
            raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("output", "sentence"),
    [("n" * 256, "File name too long"), ("file/out", "file is no folder"), ("file/a/out", "file is no folder")],
)
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, output, sentence):
    (tmp_path / "file").touch()
    for require in (require_output, reserve_output):
        with pytest.raises(ActError, match=rf"cannot write {tmp_path}.*{sentence}"):
            require(tmp_path / output, force=True)


def test_folders_on_the_way_are_made_and_go_again_if_nothing_is_written(tmp_path):
    (tmp_path / "kept").mkdir()
    for output in ("a/b/out", "kept/c/out"):
        reserve_output(tmp_path / output, force=False)
        assert (tmp_path / output).parent.is_dir()
    with written_whole(tmp_path / "a" / "b" / "out") as path:
        path.write_text("whole")
    release_all()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a",
        "a/b",
        "a/b/out",
        "kept",
    ]


def test_a_pipe_or_socket_is_never_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    for name, force in itertools.product(["pipe", "link", "socket"], [False, True]):
        with pytest.raises(ActError, match="is a device, pipe or socket"), written_whole(Path(name), force=force):
            pass
        assert not Path(name).is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link", "socket"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A model and a data set in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "b0").touch()
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "config.json").symlink_to("../../blobs/b0")
    return repository


TAKES = "(would overwrite|lies in|would take the place of a folder with) "


@pytest.mark.parametrize(
    ("given", "output", "how"),
    [
        ("data", "data", "would overwrite"),
        ("data", "data/new", "lies in"),
        ("data/b.jsonl", ".", "would take the place"),
    ],
)
def test_what_an_output_would_do_to_an_input_is_told(tmp_path, monkeypatch, given, output, how):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/b.jsonl").write_text("{}")
    with pytest.raises(ActError, match=f"the output {output} {how}"):
        require_output(Path(output), force=True, inputs=[given])


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("data/*.jsonl", "data/b.jsonl"),
        ("data/**", "data/b.jsonl"),
        ("data", "data"),
        ("data", "data/new"),
        ("data/b.jsonl", "data"),
        ("data/b.jsonl", "."),
        ("link", "data/b.jsonl"),
        ("data/b.jsonl", "link"),
        ("data/b.jsonl", "hard"),
        ("data", "linked/new"),
        ("org/name", "hub/models--org--name/blobs/b0"),
        ("org/name", "hub/models--org--name"),
        ("hub/models--org--name/snapshots/abc", "hub/models--org--name/blobs/b0"),
        ("data/../data/b.jsonl", "data/b.jsonl"),
    ],
)
def test_no_output_is_an_input_however_it_is_given(tmp_path, monkeypatch, hub, given, output):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    for name in "ab":
        (data / f"{name}.jsonl").write_text("{}")
    Path("link").symlink_to(data / "b.jsonl")
    Path("linked").symlink_to(data)
    os.link(data / "b.jsonl", "hard")
    with pytest.raises(ActError, match=f"the output {re.escape(str(Path(output)))} {TAKES}the input"):
        require_output(Path(output), force=True, inputs=["other.jsonl", given])
    require_output(tmp_path / "new", force=True, inputs=[given])


@pytest.mark.parametrize(
    ("adapter", "output"),
    [
        ("adapter", "base"),
        ("adapter", "base/new"),
        ("upper", "base"),
        ("hub/models--org--name/snapshots/abc", "base"),
        ("org/name", "base"),
        ("cached", "hub/models--gpt/blobs/b0"),
    ],
)
def test_no_output_is_the_base_of_an_adapter(tmp_path, monkeypatch, hub, adapter, output):
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    Path("hub/models--gpt/blobs").mkdir(parents=True)
    for name, base in {"adapter": "base", "upper": "adapter", "cached": "gpt", hub / "snapshots/abc": "base"}.items():
        Path(name).mkdir(exist_ok=True)
        Path(name, "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(ActError, match=f"{TAKES}.*, the base model of the adapter {adapter}"):
        require_output(Path(output), force=True, inputs=[adapter])
    for damaged in (
        "[" * 9999,
        "[]",
        '{"base_model_name_or_path": "\\u0000"}',
        '{"base_model_name_or_path": "adapter"}',
    ):
        Path("adapter/adapter_config.json").write_text(damaged)
        require_output(tmp_path / "new", force=True, inputs=["adapter"])


def test_a_list_of_files_that_is_not_utf8_is_no_reason_to_lose_one(tmp_path):
    out = tmp_path / "out"
    with written_whole(out, directory=True) as folder:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).touch()
    require_output(out, force=True)
    (out / ".act-profile").write_bytes(b"\xfe\n")
    with pytest.raises(ActError, match="not written by act-profile"):
        require_output(out, force=True)


@pytest.mark.parametrize("clone", [True, False])
def test_a_copy_holds_the_bytes_and_shares_no_file(tmp_path, clone):
    for size in (0, 1, 3_000_001):
        source, copy = tmp_path / f"source{size}", tmp_path / f"copy{size}"
        source.write_bytes(os.urandom(size))
        copy_file(source, copy, clone=clone)
        assert copy.read_bytes() == source.read_bytes() and not copy.samefile(source)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        copy_file(source, tmp_path / "stopped", stop, clone=False)


@pytest.mark.parametrize("held", [False, True])
def test_a_signal_while_a_lock_is_made_leaves_none(tmp_path, monkeypatch, held):
    kept = []

    def interrupted(place):
        descriptor = locks.lock(place)
        kept.append(descriptor) if held else os.close(descriptor)
        raise SystemExit(143)

    with monkeypatch.context() as patched:
        patched.setattr(scratch, "lock", interrupted)
        with pytest.raises(SystemExit), reserved(tmp_path / "out"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [".out.act-lock"]
    release_all()
    assert not [*tmp_path.iterdir()]
    with reserved(tmp_path / "out"):
        pass
    for descriptor in kept:
        os.close(descriptor)

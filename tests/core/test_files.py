from __future__ import annotations

import errno
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from act.core.errors import ActError
from act.core.files import require_output, written_whole
from act.core.tensor_files import load_tensors, save_tensors
from act.profiles.profile import SCHEMA, load
from act.ranking import channel_set
from act.ranking.channel_set import ChannelSet


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
        with pytest.raises(ActError, match="--force does not replace"):
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

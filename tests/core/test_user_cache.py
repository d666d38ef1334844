from __future__ import annotations

import os
from pathlib import Path

import pytest

from act.core import user_cache
from act.core.errors import ActError
from act.core.user_cache import UserCache


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(user_cache, "_said", set())


def kept(folder: Path, name: str, text: str, most: int = 1000) -> UserCache:
    cache = UserCache(folder, most)
    cache.keep(name, lambda path: path.write_text(text) and None)
    return cache


def test_the_folder_is_the_users_own_and_can_be_moved_or_turned_off(monkeypatch, tmp_path):
    def folder() -> Path | None:
        cache = UserCache.named("things", "ACT_THINGS", 1)
        return cache and cache.folder

    monkeypatch.delenv("ACT_THINGS", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache/act-profile/things"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the convention says to ignore
    assert folder() == tmp_path / ".cache/act-profile/things"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg/act-profile/things"
    monkeypatch.setenv("ACT_THINGS", "~/here")
    assert folder() == tmp_path / "here"
    monkeypatch.setenv("ACT_THINGS", "OFF")
    assert folder() is None
    for nowhere in ("0", "~nobody-of-that-name/here"):
        monkeypatch.setenv("ACT_THINGS", nowhere)
        with pytest.raises(ActError, match=r"ACT_THINGS is .*; give it the whole path"):
            folder()


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    for variable in ("ACT_THINGS", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in a container that runs under any number
    assert UserCache.named("things", "ACT_THINGS", 1) is None


def test_what_is_kept_is_for_this_user_alone_and_replaced_at_once(tmp_path):
    cache = kept(tmp_path / "a/b", "name", "one")
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    found = cache.find("name")
    assert found is not None and found.read_text() == "one" and found.stat().st_mode & 0o777 == 0o600
    with found.open() as earlier:
        kept(tmp_path / "a/b", "name", "two")
        assert (earlier.read(), found.read_text()) == ("one", "two")
    assert cache.find("other") is None
    assert os.listdir(tmp_path / "a/b") == [found.name]


def test_a_writer_that_fails_leaves_what_was(tmp_path, caplog):
    cache = kept(tmp_path, "name", "one")

    def fail(path: Path) -> None:
        path.write_text("tw")
        raise OSError(28, "No space left on device")

    for _ in range(2):
        cache.keep("name", fail)
    found = cache.find("name")
    assert found is not None and found.read_text() == "one" and os.listdir(tmp_path) == [found.name]
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["No space left on device"]


@pytest.mark.parametrize("place", ["file/under", "read-only"])
def test_a_folder_that_cannot_be_written_is_said_once(place, tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("")
    if place == "read-only":  # root may write to any folder

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.mkstemp", refuse)
    for name in ("one", "two"):
        assert kept(tmp_path / place, name, "text").find(name) is None
    assert len(caplog.records) == 1 and "nothing is kept in" in caplog.text


@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize("whose", ["of another user", "writable by others", "a link"])
def test_what_others_may_have_written_is_left_alone(whose, what, tmp_path, caplog, monkeypatch):
    folder = tmp_path / "cache"
    cache = kept(folder, "name", "text")
    kept_at = cache.find("name")
    assert kept_at is not None
    path = folder if what == "folder" else kept_at
    if whose == "of another user":
        if os.geteuid():
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        else:
            os.chown(path, 12345, 12345)
    elif whose == "writable by others":
        path.chmod(0o777)
    elif what == "file":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        return  # a folder may be a link of the user's own
    assert cache.find("name") is None and cache.find("name") is None
    assert len(caplog.records) == (whose != "a link")
    if what == "folder" and whose != "a link":
        kept(folder, "other", "text")
        assert os.listdir(folder) == [kept_at.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may write into the home of another user")
def test_root_makes_no_folder_in_the_home_of_another_user(tmp_path, caplog):
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 12345, 12345)
    kept(tmp_path / "home/.cache/things", "name", "text")
    assert not os.listdir(tmp_path / "home") and "belongs to another user" in caplog.text


def test_what_was_not_used_for_longest_goes_and_nothing_of_others(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("of the user.bin", "folder/of the user.bin"):
        (tmp_path / name).write_text("x" * 5000)
        os.utime(tmp_path / name, (0, 0))
    abandoned = tmp_path / f"1{user_cache._UNFINISHED}"
    abandoned.write_text("")
    os.utime(abandoned, (0, 0))
    for number, name in enumerate(["old", "used", "new"]):
        cache = kept(tmp_path, name, "x" * 400)
        if path := cache.find(name):
            os.utime(path, (number, number))
        cache.find("used")
    assert [bool(cache.find(name)) for name in ("old", "used", "new")] == [False, True, True]
    kept(tmp_path, "vast", "x" * 2000)
    assert not any(map(cache.find, ("used", "new", "vast"))) and not abandoned.exists()
    assert all((tmp_path / name).exists() for name in ("of the user.bin", "folder/of the user.bin"))

"""Ctrl-C: what a library makes of it, and what is left of an output that was being made."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import chosen, tiny_model

import act
from act import cli
from act.core.errors import ActError
from act.models.channels import ChannelSpace


@pytest.fixture(autouse=True)
def heard(monkeypatch) -> Iterator[None]:
    """Ctrl-C is heard, also where a shell ignores it for tests in the background, and this process stays as it was."""
    monkeypatch.setattr(cli, "speak_of_options", lambda: None)
    monkeypatch.setattr(cli.streams, "prepare", lambda: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [ActError("x.safetensors is truncated or damaged"), ModuleNotFoundError("x")])
def test_an_interruption_that_became_another_error_is_told_as_one(error, monkeypatch, capsys):
    def load(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    monkeypatch.setattr(cli, "app", load)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped: SIGINT; nothing half-written was left\n"


def test_an_error_after_an_earlier_interruption_is_an_error(monkeypatch, capsys):
    def fail(**_: object) -> None:
        raise ActError("no such file: x")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and capsys.readouterr().err == "error: no such file: x\n"


def test_a_patch_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    target = tiny_model("llama", 0)
    target.save_pretrained(tmp_path / "target")
    patch = act.transfer(tiny_model("llama", 1), target, chosen(ChannelSpace.from_model(target), 0.2), 1.0)
    patch.save(tmp_path / "p.safetensors")

    def interrupted(*_: object, **__: object) -> None:
        assert len([*tmp_path.iterdir()]) > 2  # the copy is under way
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("act.editing.folders.write_card", interrupted)
    given = ["patch", "apply", "p.safetensors", "--model", "target", "--output", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["act-profile", *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130 and {each.name for each in Path().iterdir()} == {"target", "p.safetensors"}

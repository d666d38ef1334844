"""Copies that begin early, and what is known of two tokenizers without loading them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from support import chosen, tiny_model, train_tokenizer

from act.core.errors import ActError
from act.editing import copies
from act.editing.copies import companions, copied
from act.editing.donor import Donor
from act.editing.folders import transfer_folders, transfer_into
from act.editing.same_tokens import same_tokenizer_files
from act.editing.stored import StoredModel
from act.editing.transfer_plan import TransferPlan
from act.models.channels import ChannelSpace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(place, max_shard_size="20KB")
    train_tokenizer(["one two three"]).save_pretrained(place)
    return place


@pytest.mark.parametrize("clones", [False, True])
@pytest.mark.parametrize("hard_link", [False, True])
def test_a_copy_that_began_early_is_whole_and_of_files_of_its_own(folder, tmp_path, monkeypatch, clones, hard_link):
    began = []

    def copy_file(source, destination, stop=None, *, clone=True):
        began.append((source.name, clone))
        shutil.copyfile(source, destination)

    monkeypatch.setattr(copies, "can_clone", lambda *_: clones)
    monkeypatch.setattr(copies, "copy_file", copy_file)
    model = StoredModel(folder)
    first, *_, last = model.shards
    with copied(folder, tmp_path / "out") as copy:
        if not hard_link:
            copy.begin()
            copy.wait()
            assert began == ([] if clones else [(name, False) for name in model.shards])
        copy.of(model, [model.shards[last][0]], hard_link=hard_link)
    copied_shards = dict(one for one in began if one[0] in model.shards)
    assert copied_shards.pop(last) is False  # what will be written to shares no blocks
    assert len(copied_shards) == (0 if hard_link else len(model.shards) - 1)
    assert set(copied_shards.values()) <= {clones}
    assert os.path.samefile(folder / first, tmp_path / "out" / first) == hard_link
    assert not os.path.samefile(folder / last, tmp_path / "out" / last)
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_records_of_a_training_are_not_those_of_the_copy(tmp_path):
    for name in ("config.json", "training.json", "trainer_state.json", "README.md", "processor/training.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [*companions(tmp_path)] == ["config.json", "processor/training.json"]


def test_a_copy_of_what_is_no_model_begins_with_nothing_and_leaves_nothing(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ActError, match="no such model"), copied(tmp_path / "empty", tmp_path / "out") as copy:
        copy.begin()
        StoredModel(copy.source)
    assert os.listdir(tmp_path) == ["empty"]


def write(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"1")


def write_and_put_the_time_back(shard: Path) -> None:
    before = shard.stat()
    time.sleep(0.03)  # the clock of a filesystem moves on in steps
    write(shard)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(shard: Path) -> None:
    shutil.copy2(shard, new := shard.with_name("new"))
    new.rename(shard)


def shorten(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size - 2000)


@pytest.mark.parametrize("change", [write, write_and_put_the_time_back, replace, shorten, Path.unlink])
@pytest.mark.parametrize("moment", ["after an early copy", "after it is opened"])
def test_a_target_that_changes_while_it_is_copied_is_refused(folder, tmp_path, monkeypatch, change, moment):
    target = Path(shutil.copytree(folder, tmp_path / "target"))
    shard = target / max(StoredModel(target).shards)
    os.utime(shard, (0, 0))
    make = TransferPlan.make

    def late(*arguments):
        if moment == "after it is opened":
            change(shard)
        return make(*arguments)

    monkeypatch.setattr(TransferPlan, "make", late)
    monkeypatch.setattr(copies, "can_clone", lambda *_: False)
    donor = Donor(folder, chosen(ChannelSpace.from_model(tiny_model("llama")), 0.1, 3), 0.4)
    with pytest.raises(ActError, match="target changed while it was copied"), copied(target, tmp_path / "out") as copy:
        copy.begin()
        copy.wait()
        if moment == "after an early copy":
            change(shard)
        transfer_into(copy, [donor])
    assert os.listdir(tmp_path) == ["target"]


def test_a_link_to_a_target_that_another_program_makes_is_no_change(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "target")
    make = TransferPlan.make

    def late(*arguments):
        time.sleep(0.03)
        for name in StoredModel(folder).shards:
            os.link(tmp_path / "target" / name, tmp_path / name)
        return make(*arguments)

    monkeypatch.setattr(TransferPlan, "make", late)
    donor = Donor(folder, chosen(ChannelSpace.from_model(tiny_model("llama")), 0.1), 0.4)
    transfer_folders([donor], tmp_path / "target", tmp_path / "out", hard_link=True)


def test_tokenizers_of_the_same_bytes_need_not_be_loaded(folder, tmp_path):
    def other(name: str, file: str, text: str | None) -> bool:
        shutil.copytree(folder, tmp_path / name)
        if text is None:
            (tmp_path / name / file).unlink()
        else:
            (tmp_path / name / file).write_text(text)
        return same_tokenizer_files(folder, tmp_path / name)

    config = json.loads((folder / "config.json").read_text())
    assert other("same", "README.md", "another card")
    assert other("other weights", "config.json", json.dumps({**config, "hidden_size": 3}))
    assert not other("other tokens", "tokenizer.json", "{}")
    assert not other("other class", "config.json", json.dumps({**config, "model_type": "gpt2"}))
    assert not other("other code", "tokenization.py", "")
    assert not other("none", "tokenizer.json", None)
    assert not same_tokenizer_files(tmp_path / "none", tmp_path / "none")
    assert not same_tokenizer_files(folder, tmp_path / "nowhere")

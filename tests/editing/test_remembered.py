"""Fingerprints from earlier runs: when they are believed, and what is done where they are wrong."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import chosen, tiny_model

import act
from act.core import user_cache
from act.editing import remembered, stored
from act.editing.donor import Donor
from act.editing.folders import patch_folder, patch_of_folders, transfer_folders
from act.editing.remembered import FileIdentity
from act.editing.stored import Parameters, StoredModel, fingerprints
from act.models.channels import ChannelSpace
from act.models.fingerprint import Diagonal, fingerprint
from act.profiles.provenance import ModelRead
from act.ranking.rule import Rule

MODELS = tiny_model("llama", 0, torch.bfloat16), tiny_model("llama", 1, torch.bfloat16)
SPACE = ChannelSpace.from_model(MODELS[1])


class Reads:
    """How many parameters were read; files settle at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.cache, self.count = cache, 0
        whole = Diagonal.of

        def counted(parameter: torch.Tensor) -> Diagonal:
            self.count += 1
            return whole(parameter)

        monkeypatch.setattr(stored.Diagonal, "of", staticmethod(counted))
        monkeypatch.setattr(remembered, "SETTLED", 0)
        monkeypatch.setattr(remembered, "_wrong", set())
        monkeypatch.setattr(user_cache, "_said", set())
        monkeypatch.setenv("ACT_FINGERPRINTS", str(cache))

    def of(self, folder: Path) -> tuple[str, int]:
        """The fingerprint of a folder, and how many parameters were read for it."""
        self.count = 0
        (found,) = fingerprints(StoredModel(folder).parameters(SPACE))
        return found, self.count


@pytest.fixture
def reads(monkeypatch, tmp_path) -> Reads:
    for name, model in zip(("donor", "target"), MODELS, strict=True):
        model.save_pretrained(tmp_path / name, max_shard_size="20KB")
    return Reads(monkeypatch, tmp_path / "cache")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}


def changed(folder: Path, name: str, row: int, *, keep_time: bool = False) -> None:
    """Change a value of a tensor in its file."""
    model = StoredModel(folder)
    path = folder / model.shard_of(name)
    before = path.stat()
    place = model._where[name]
    with path.open("r+b") as file:
        file.seek(place.start + row * place.shape[1] * place.dtype.itemsize)
        old = file.read(2)
        file.seek(-2, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1, old[1]]))
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def channels_of(folder: Path, share: float = 0.1, include: str | None = None) -> act.ChannelSet:
    """Channels chosen for the models as they are."""
    space = SPACE
    found = chosen(space, share)
    kept = [i for i in found.index.tolist() if include is None or include in space.locate(i)[0].name]
    index = torch.tensor(kept)
    models = {
        name: ModelRead(name, fingerprint(StoredModel(folder / name).parameters(space))) for name in ("donor", "target")
    }
    return act.ChannelSet(space, index, torch.zeros(len(index)), Rule(models=models))


def test_a_checkpoint_is_read_once(reads, tmp_path):
    right, count = reads.of(tmp_path / "target")
    assert right == fingerprint(MODELS[1]) and count == len(list(MODELS[1].parameters()))
    assert reads.of(tmp_path / "target") == (right, 0)
    (tmp_path / "moved").mkdir()
    (tmp_path / "target").rename(tmp_path / "moved/target")
    assert reads.of(tmp_path / "moved/target") == (right, count)


@pytest.mark.parametrize("field", FileIdentity._fields)
def test_a_file_that_differs_in_anything_is_read_again(field, reads, tmp_path, monkeypatch):
    right, count = reads.of(tmp_path / "target")
    shard = min(StoredModel(tmp_path / "target").shards)
    whole = FileIdentity.of

    def other(path: Path, found: os.stat_result, header: bytes) -> FileIdentity:
        one = whole(path, found, header)
        value = getattr(one, field)
        other = value + "x" if isinstance(value, str) else value - 1
        return one._replace(**{field: other}) if path.name == shard else one

    monkeypatch.setattr(FileIdentity, "of", other)
    found, again = reads.of(tmp_path / "target")
    assert found == right and 0 < again <= count
    assert (again < count) == (field != "path")  # the other shards are believed; with another path, it is another entry
    assert reads.of(tmp_path / "target") == (right, 0)


def test_values_that_change_are_seen_even_if_the_time_is_set_back(reads, tmp_path):
    right, _ = reads.of(tmp_path / "target")
    for keep_time in (False, True):
        changed(tmp_path / "target", "model.layers.0.mlp.up_proj.weight", 3, keep_time=keep_time)
        found, count = reads.of(tmp_path / "target")
        assert count and found == fingerprint(weights(tmp_path / "target"))
        assert (found == right) == keep_time  # the bit changed back


def test_nothing_is_kept_of_files_that_may_still_be_written_to(reads, tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "SETTLED", 60 * 10**9)
    assert reads.of(tmp_path / "target")[1] and reads.of(tmp_path / "target")[1]
    monkeypatch.setattr(remembered, "SETTLED", 0)
    future = time.time_ns() + 10**12
    for path in (tmp_path / "target").glob("*.safetensors"):
        os.utime(path, ns=(future, future))
    assert reads.of(tmp_path / "target")[1] and reads.of(tmp_path / "target")[1]


def test_what_was_kept_in_the_future_is_not_believed(reads, tmp_path, monkeypatch):
    right, count = reads.of(tmp_path / "target")
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() - 10**12)
    assert reads.of(tmp_path / "target") == (right, count)


@pytest.mark.parametrize("harm", ["cut", "bit", "empty", "other"])
def test_a_damaged_entry_is_said_and_replaced(harm, reads, tmp_path, caplog):
    right, count = reads.of(tmp_path / "target")
    (entry,) = reads.cache.iterdir()
    whole = entry.read_bytes()
    middle = len(whole) // 2
    text = {
        "cut": whole[:middle],
        "bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "other": b"not what it was" * 10,
    }[harm]
    entry.write_bytes(text)
    assert reads.of(tmp_path / "target") == (right, count)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"fingerprints of {tmp_path / 'target'} are computed again"
    ]
    assert reads.of(tmp_path / "target") == (right, 0)


def test_without_a_cache_everything_is_computed(reads, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACT_FINGERPRINTS", "off")
    assert reads.of(tmp_path / "target") == reads.of(tmp_path / "target")
    assert not reads.cache.exists() and not caplog.records
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACT_FINGERPRINTS", str(tmp_path / "file"))
    assert reads.of(tmp_path / "target") == reads.of(tmp_path / "target")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("hard_link", [False, True])
def test_a_transfer_gives_the_same_bytes_with_what_is_kept_and_keeps_its_own(hard_link, reads, tmp_path, monkeypatch):
    channels = channels_of(tmp_path)

    def transfer(output: str) -> int:
        reads.count = 0
        donor = Donor(tmp_path / "donor", channels, 0.4)
        transfer_folders([donor], tmp_path / "target", tmp_path / output, hard_link=hard_link)
        return reads.count

    monkeypatch.setenv("ACT_FINGERPRINTS", "off")
    plain = transfer("plain")
    monkeypatch.setenv("ACT_FINGERPRINTS", str(reads.cache))
    shutil.rmtree(reads.cache, ignore_errors=True)
    cold, warm = transfer("cold"), transfer("warm")
    columns = sum("embed" in part.key for rows in channels.rows() for part in [rows.parameter])
    assert cold == plain and warm == 2 * columns  # all of a matrix whose columns move is read anyway
    outputs = {name: weights(tmp_path / name) for name in ("plain", "cold", "warm")}
    for name in ("cold", "warm"):
        assert all(torch.equal(x, outputs["plain"][key]) for key, x in outputs[name].items())
        assert (tmp_path / name / "README.md").read_text() == (tmp_path / "plain/README.md").read_text()
    found, count = reads.of(tmp_path / "warm")
    assert found == fingerprint(outputs["warm"])
    assert (count == 0) == (not hard_link)


def forge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files look as they did, whatever is written to them."""
    seen: dict[str, FileIdentity] = {}
    whole = FileIdentity.of

    def same(path: Path, found: os.stat_result, header: bytes) -> FileIdentity:
        return seen.setdefault(str(path), whole(path, found, header))

    monkeypatch.setattr(FileIdentity, "of", same)


@pytest.mark.parametrize(
    ("to", "side"),
    [("folder", "donor"), ("folder", "target"), ("patch", "donor"), ("patch", "target"), ("model", "donor")],
)
@pytest.mark.parametrize("kind", ["up_proj", "embed"])
def test_a_change_that_no_identity_shows_is_seen_where_it_is_read(to, kind, side, reads, tmp_path, monkeypatch, caplog):
    forge(monkeypatch)
    channels = channels_of(tmp_path, include=kind)
    for name in ("donor", "target"):
        assert reads.of(tmp_path / name)[1]
    rows = next(one for one in channels.rows() if kind in one.parameter.key)
    row = int(rows.rows[0]) if kind != "embed" else 5
    changed(tmp_path / side, rows.parameter.key, row)
    target = MODELS[1] if to == "model" else tmp_path / "target"

    def transfer() -> None:
        donor = Donor(tmp_path / "donor", channels, 0.4)
        if to == "folder":
            transfer_folders([donor], tmp_path / "target", tmp_path / "out")
        elif to == "patch":
            patch_of_folders([donor], tmp_path / "target")
        else:
            act.transfer_many([donor], target)

    with pytest.raises(act.ActError, match=f"the {side} given has other weights"):
        transfer()
    assert f"the kept fingerprint of {tmp_path / side} does not fit its values" in caplog.text
    assert not (tmp_path / "out").exists()
    models = {**channels.rule.models, side: ModelRead(side, fingerprint(weights(tmp_path / side)))}
    channels = act.ChannelSet(SPACE, channels.index, channels.scores, Rule(models=models))
    if to == "folder":
        transfer()  # right from now on
        assert reads.of(tmp_path / "out")[0] == fingerprint(weights(tmp_path / "out"))


def test_a_target_spoiled_by_a_wrong_entry_is_copied_again(reads, tmp_path, monkeypatch, caplog):
    forge(monkeypatch)
    channels = channels_of(tmp_path)
    channels = act.ChannelSet(SPACE, channels.index, channels.scores)  # for any models
    reads.of(tmp_path / "target")
    last = [one for one in channels.rows() if "down_proj" in one.parameter.key][-1]
    changed(tmp_path / "target", last.parameter.key, int(last.rows[0]))
    donor = Donor(tmp_path / "donor", channels, 0.4)
    done = transfer_folders([donor], tmp_path / "target", tmp_path / "out")
    monkeypatch.setenv("ACT_FINGERPRINTS", "off")
    right = transfer_folders([Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target", tmp_path / "right")
    assert "does not fit" in caplog.text
    assert done.provenance.before == right.provenance.before and done.provenance.after == right.provenance.after
    assert all(torch.equal(x, weights(tmp_path / "out")[name]) for name, x in weights(tmp_path / "right").items())


@pytest.mark.parametrize("hard_link", [False, True])
def test_what_is_copied_again_is_the_target_of_then(hard_link, reads, tmp_path, monkeypatch):
    reads.of(tmp_path / "target")
    require, others = Parameters.require, "model.norm.weight"

    def late(self: Parameters, *_) -> None:
        monkeypatch.setattr(Parameters, "require", require)
        path = tmp_path / "target" / self.stored.shard_of(others)
        rewritten = {**load_file(path), others: MODELS[1].model.norm.weight.detach() + 1}
        save_file(rewritten, path, metadata={"format": "pt"})
        (tmp_path / "target/generation_config.json").write_text("{}")
        raise remembered.Outdated(self.stored.remembered)

    monkeypatch.setattr(Parameters, "require", late)
    channels = channels_of(tmp_path, include="up_proj")
    channels = act.ChannelSet(SPACE, channels.index, channels.scores)  # for any models
    donor = Donor(tmp_path / "donor", channels, 0.4)
    done = transfer_folders([donor], tmp_path / "target", tmp_path / "out", hard_link=hard_link)
    transfer_folders([donor], tmp_path / "target", tmp_path / "right")
    assert done.provenance.after == fingerprint(weights(tmp_path / "out"))
    assert done.provenance.after == reads.of(tmp_path / "out")[0]
    for path in (tmp_path / "right").glob("*.[sj]*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_patch_is_applied_to_a_folder_whose_fingerprint_is_kept(reads, tmp_path):
    patch = patch_of_folders(
        [Donor(tmp_path / "donor", channels_of(tmp_path, include="proj"), 0.4)], tmp_path / "target"
    )
    reads.count = 0
    patch_folder(patch, tmp_path / "target", tmp_path / "new")
    assert reads.count == 0
    patch_folder(patch, tmp_path / "new", tmp_path / "back", revert=True)
    assert all(torch.equal(x, weights(tmp_path / "back")[name]) for name, x in weights(tmp_path / "target").items())


def test_a_target_that_changes_during_the_transfer_has_the_fingerprint_of_what_was_copied(reads, tmp_path, monkeypatch):
    reads.of(tmp_path / "target")
    channels = chosen(SPACE, 0.1)
    remember = Parameters.remember

    def late(self: Parameters) -> None:
        if self.stored.folder == tmp_path / "target":
            changed(tmp_path / "target", "model.layers.0.mlp.up_proj.weight", 3)
            monkeypatch.setattr(Parameters, "remember", remember)
        remember(self)

    monkeypatch.setattr(Parameters, "remember", late)
    done = transfer_folders([Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target", tmp_path / "out")
    assert done.provenance.after == fingerprint(StoredModel(tmp_path / "out").parameters(SPACE))

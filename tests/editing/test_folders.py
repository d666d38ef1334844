from __future__ import annotations

import copy
import os
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import chosen, state, tiny_model

import act
from act.editing.donor import Donor
from act.editing.folders import patch_folder, patch_of_folders, transfer_folders
from act.editing.patch import Patch
from act.editing.stored import StoredModel
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.profiles.provenance import ModelRead
from act.ranking.rule import Rule


def shards(folder) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=["llama", "llama-tied-bias", "gpt2"])
def models(request, tmp_path):
    donor, target = (tiny_model(request.param, seed, torch.bfloat16) for seed in (0, 1))
    donor.save_pretrained(tmp_path / "donor")
    target.save_pretrained(tmp_path / "target", max_shard_size="20KB")
    return donor, target


def test_on_disk_gives_the_bytes_of_memory_and_leaves_the_inputs(models, tmp_path):
    donor, target = models
    space = ChannelSpace.from_model(target)
    channels = chosen(space, 0.02)
    assert fingerprint(StoredModel(tmp_path / "target").parameters(space)) == fingerprint(target)
    inputs = {name: shards(tmp_path / name) for name in ("donor", "target")}
    transfer_folders([Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target", tmp_path / "out")
    patch = act.transfer(donor, target, channels, 0.4)
    assert same(shards(tmp_path / "out"), {name: state(target)[name] for name in inputs["target"]})
    assert all(same(shards(tmp_path / name), held) for name, held in inputs.items())
    changed = {change.parameter.name for change in patch.changes}
    transfer_folders(
        [Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target", tmp_path / "links", hard_link=True
    )
    assert same(shards(tmp_path / "links"), shards(tmp_path / "out"))
    for file, names in StoredModel(tmp_path / "target").shards.items():
        own, linked = (os.path.samefile(tmp_path / "target" / file, tmp_path / out / file) for out in ("out", "links"))
        assert not own and linked == (not changed & set(names))


def test_strength_zero_writes_the_target(models, tmp_path):
    channels = chosen(ChannelSpace.from_model(models[1]), 0.3)
    made = transfer_folders([Donor(tmp_path / "donor", channels, 0.0)], tmp_path / "target", tmp_path / "out")
    assert made.values == 0 and same(shards(tmp_path / "out"), shards(tmp_path / "target"))


def test_a_patch_file_applies_and_reverts_to_the_bit_on_disk(models, tmp_path):
    _, target = models
    channels = chosen(ChannelSpace.from_model(target), 0.3)
    held = shards(tmp_path / "target")
    patch_of_folders([Donor(tmp_path / "donor", channels, 0.7)], tmp_path / "target").save(tmp_path / "p")
    assert same(shards(tmp_path / "target"), held)
    patch = Patch.load(tmp_path / "p")
    patch_folder(patch, tmp_path / "target", tmp_path / "new")
    assert not same(shards(tmp_path / "new"), held)
    patch_folder(patch, tmp_path / "new", tmp_path / "back", revert=True)
    assert same(shards(tmp_path / "back"), held)
    with pytest.raises(act.ActError, match="does not hold the values"):
        patch_folder(patch, tmp_path / "donor", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(act.ActError, match="would overwrite the input"):
        patch_folder(patch, tmp_path / "target", tmp_path / "target", force=True)


def test_several_donors_follow_the_overlap_rule():
    one, two, target = (tiny_model("llama", seed) for seed in range(3))
    channels = chosen(ChannelSpace.from_model(target), 1.0)
    before, first, second = state(target), state(one), state(two)
    expected = {
        "sum": lambda t, a, b: t + 0.4 * (a - t) + 0.2 * (b - t),
        "mean": lambda t, a, b: t + (0.4 * (a - t) + 0.2 * (b - t)) / 2,
        "first": lambda t, a, b: t + 0.4 * (a - t),
    }
    for overlap, rule in expected.items():
        patch = act.transfer_many([Donor(one, channels, 0.4), Donor(two, channels, 0.2)], target, overlap)
        for name, value in state(target).items():
            wanted = rule(*(x[name].double() for x in (before, first, second)))
            torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6)
        patch.revert(target)
        assert same(state(target), before)


def test_composing_reports_rows_that_two_patches_change():
    donor, other, target = (tiny_model("llama", seed) for seed in range(3))
    channels = chosen(ChannelSpace.from_model(target), 0.3)
    patches = []
    for giver in (donor, other):
        patches.append(act.transfer(giver, target, channels))
        patches[-1].revert(target)
    with pytest.raises(act.ActError, match="changed by two patches: "):
        act.compose(patches)
    before = state(target)
    joined = act.compose(patches, "last")
    joined.apply(target)
    held = state(target)
    joined.revert(target)
    assert same(state(target), before)
    patches[1].apply(target)
    assert same(state(target), held)


def made_and_reverted(donor, target, channels):
    patch = act.transfer(donor, target, channels)
    patch.revert(target)
    return patch


def test_a_second_patch_is_refused_with_the_way_to_have_both():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    space = ChannelSpace.from_model(target)
    one, two = (
        made_and_reverted(
            donor, target, act.ChannelSet(space, torch.arange(8) + space.site(name).offset, torch.ones(8))
        )
        for name in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
    )
    one.apply(target)
    held = state(target)
    with pytest.raises(act.ActError, match=r"rows that this patch does not change are others, as after another patch"):
        two.apply(target)
    with pytest.raises(
        act.ActError, match=r"two patches in one model, compose both \(act.compose\) and apply the result"
    ):
        two.apply(target)
    assert same(state(target), held)
    one.revert(target)
    joined = act.compose([one, two])
    joined.apply(target)
    with pytest.raises(
        act.ActError, match=r"not as the patch left it .* revert what was done last, such as the compos"
    ):
        one.revert(target)
    joined.revert(target)
    again = act.transfer(donor, target, chosen(space, 0.5))
    with pytest.raises(act.ActError, match=r"if that has another patch in it by now, compose both \(act.compose\) and"):
        two.apply(target)
    again.revert(target)
    with pytest.raises(act.ActError, match=r"the patches are one act.Patch; expected a list of them"):
        act.compose(one, two)


def test_another_vocabulary_is_left_out_and_said_or_aligned():
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    donor.resize_token_embeddings(310)
    channels = chosen(ChannelSpace.from_model(target), 1.0)
    before = state(target)
    patch = act.transfer(donor, target, channels, 1.0)
    assert [("lm_head" in note, "embed_tokens" in note) for note in patch.notes] == [(False, True), (True, False)]
    assert torch.equal(target.lm_head.weight, before["lm_head.weight"])
    patch.revert(target)
    ids = torch.arange(5, 300)
    act.transfer(donor, target, channels, 1.0, tokens=(ids + 10, ids))
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(state(target)[name][5:], state(donor)[name][15:])
        assert torch.equal(state(target)[name][:5], before[name][:5])


FAMILIES = {family: (tiny_model(family), tiny_model(family, seed=1)) for family in ("llama", "llama-tied-bias", "gpt2")}


@settings(deadline=None, max_examples=20)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    share=st.floats(0.001, 1),
    strength=st.floats(0, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 100),
)
def test_a_saved_patch_reverts_to_the_original_bytes(family, share, strength, dtype, seed):
    donor, target = (copy.deepcopy(model).to(dtype) for model in FAMILIES[family])
    before = state(target)
    made = act.transfer(donor, target, chosen(ChannelSpace.from_model(target), share, seed), strength)
    after = state(target)
    with tempfile.TemporaryDirectory() as folder:
        made.save(f"{folder}/patch")
        patch = Patch.load(f"{folder}/patch")
    assert patch.provenance.before == made.provenance.before and patch.provenance.after == fingerprint(target)
    patch.revert(target)
    assert same(state(target), before) and fingerprint(target) == patch.provenance.before
    patch.apply(target)
    assert same(state(target), after)


def test_a_failing_transfer_leaves_nothing_and_a_wrong_target_is_noticed(models, tmp_path):
    _, target = models
    space = ChannelSpace.from_model(target)
    held = chosen(space, 0.2)
    rule = Rule(models={"target": ModelRead("another", "0" * 16)})
    channels = act.ChannelSet(space, held.index, held.scores, rule)
    with pytest.raises(act.ActError, match="chosen for the target another"):
        transfer_folders([Donor(tmp_path / "donor", channels, 0.4)], tmp_path / "target", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["donor", "target"]
    for dtype, advice in (
        ("bfloat16", r"or give the target as it was profiled"),
        ("float32", r"or load them in the type .*dtype=torch\.float32"),
    ):
        rule = Rule(models={"target": ModelRead("another", "0" * 16, dtype=dtype)})
        other = act.ChannelSet(space, held.index, held.scores, rule)
        with pytest.raises(act.ActError, match=advice):
            act.transfer(*models, other, 0.4)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{oops", "config.json is not JSON"),
        ("config.json", "[]", "config.json holds list, expected a JSON object"),
        ("model.safetensors.index.json", "", "index.json is not JSON"),
        ("model.safetensors.index.json", "{}", "has no weight_map from tensors to files"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', "has no weight_map from tensors to files"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "b.safetensors"}}',
            "b.safetensors is missing, truncated",
        ),
        ("model.safetensors", "", "model.safetensors is missing, truncated"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path, file, text, message):
    tiny_model("llama").save_pretrained(tmp_path, **({"max_shard_size": "20KB"} if "index" in file else {}))
    (tmp_path / file).write_text(text)
    with pytest.raises(act.ActError, match=message):
        StoredModel(tmp_path)


@pytest.mark.parametrize("header", [b"[]", b'{"a": []}', b'{"a": {"dtype": "F32"}}', b'{"a": {"data_offsets": 3}}'])
def test_a_header_that_is_none_is_one_sentence(tmp_path, header):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(act.ActError, match="is missing, truncated or damaged"):
        StoredModel(tmp_path)


def test_a_folder_without_weights_and_an_adapter_are_told_apart(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(act.ActError, match="is an adapter, not a model"):
        StoredModel(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(act.ActError, match="holds no weights"):
        StoredModel(tmp_path)

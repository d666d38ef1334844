"""Convolutions and parameters that scale others move like any other channels, in memory and on disk, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from support import state
from tiny_families import tiny

import act
from act.editing.donor import Donor
from act.editing.folders import patch_folder, patch_of_folders, transfer_folders
from act.editing.stored import StoredModel
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.ranking.channel_set import ChannelSet

FAMILIES = {
    "mamba": {"conv1d.weight": 0, "conv1d.bias": 0, "A_log": 0, "D": 0, "dt_proj.weight": 0},
    "gpt_oss": {"sinks": 0},
    "rwkv": {"time_mix_key": 2, "time_decay": 0},
    "deepseek_v4": {"attn_hc.fn": 0, "attn_hc.base": 0, "compressor.position_bias": 1},
}
"""Parameters with the dimension along which their channels lie."""
SINGLE = "model.safetensors"


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_move_as_by_hand_and_back(family, tmp_path):
    try:
        target, donor = tiny(family), tiny(family, seed=1)
        donor.save_pretrained(tmp_path / "tried")
    except (KeyError, ValueError) as error:
        pytest.skip(f"no tiny {family} in this version of transformers: {str(error)[:100]}")
    space = ChannelSpace.from_model(target)
    rows = torch.tensor([1, 3])
    sites = {
        site.name: {part.name: part.dim for part in site.parameters}
        for site in space
        if any(part.name.endswith(f".{ending}") for part in site.parameters for ending in FAMILIES[family])
    }
    dims = {name: dim for parts in sites.values() for name, dim in parts.items()}
    for ending, dim in FAMILIES[family].items():
        assert {found for name, found in dims.items() if name.endswith(f".{ending}")} == {dim}
    index = torch.cat([rows + space.site(name).offset for name in sites]).sort().values
    channels = ChannelSet(space, index, torch.zeros(len(index)))
    before = state(target)
    expected = copy.deepcopy(before)
    for name, dim in dims.items():
        expected[name].movedim(dim, 0)[rows] = state(donor)[name].movedim(dim, 0)[rows]
    for name, model in (("donor", donor), ("target", target)):
        model.save_pretrained(tmp_path / name)
    patch = act.transfer(donor, target, channels, 1.0)
    assert same(state(target), expected) and not same(state(target), before)
    assert fingerprint(target) == patch.provenance.after
    own = load_file(tmp_path / "target" / SINGLE)
    transfer_folders([Donor(tmp_path / "donor", channels, 1.0)], tmp_path / "target", tmp_path / "out")
    out = load_file(tmp_path / "out" / SINGLE)
    assert sum(not torch.equal(out[name], own[name]) for name in out) == len(dims)  # some have other names on disk
    assert all(torch.equal(out[name], expected[name]) for name in dims.keys() & out.keys())
    assert fingerprint(StoredModel(tmp_path / "out").parameters(space)) == fingerprint(target)
    patch_of_folders([Donor(tmp_path / "donor", channels, 1.0)], tmp_path / "target").save(tmp_path / "patch")
    made = act.Patch.load(tmp_path / "patch")
    patch_folder(made, tmp_path / "out", tmp_path / "back", revert=True)
    assert same(load_file(tmp_path / "back" / SINGLE), own)
    made.revert(target)
    assert same(state(target), before) and fingerprint(target) == patch.provenance.before

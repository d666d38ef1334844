"""Transfers to and from folders of models of text and images, whose names on disk are others than in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from multimodal import config_of, multimodal, of_text, require_stock_forward
from safetensors.torch import load_file, save_file
from support import random_batches

import act
from act.editing.donor import Donor
from act.editing.folders import patch_folder, patch_of_folders, transfer_folders
from act.editing.stored import StoredModel, fingerprints
from act.models.fingerprint import fingerprint

THOROUGH = [pytest.mark.slow, pytest.mark.thorough]
FAMILIES = [
    *("gemma3", "qwen2_5_vl", "llama4"),
    *(pytest.param(family, marks=THOROUGH) for family in ("llava", "idefics3", "paligemma")),
]


def loaded(folder: Path) -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()


def with_names_of_memory(folder: Path, model: torch.nn.Module) -> None:
    """Store the weights under the names that they have in memory, as later versions of transformers may."""
    save_file(
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("new", [False, True], ids=["names as saved", "names in memory"])
def test_on_disk_and_in_memory_give_the_same(tmp_path, family, new):
    require_stock_forward(family)
    donor = (
        multimodal(family)
        if transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config_of(family).get_text_config()), None) is None
        else of_text(family)
    )
    target = multimodal(family, 1)
    for name, model in (("donor", donor), ("target", target)):
        model.save_pretrained(tmp_path / name)
    if new:
        with_names_of_memory(tmp_path / "target", target)
    pair = act.profile_pair(donor, target, random_batches(vocabulary=200))
    channels = act.rank(pair, top=0.2)
    stored = StoredModel(tmp_path / "target").parameters(pair.space)
    assert fingerprint(target) in fingerprints(stored)
    donors = [Donor(tmp_path / "donor", channels, 1.0)]
    transfer_folders(donors, tmp_path / "target", tmp_path / "out")
    patch = patch_of_folders(donors, tmp_path / "target")
    act.transfer(donor, target, channels, 1.0)
    done = loaded(tmp_path / "out").state_dict()
    assert all(torch.equal(done[name], tensor) for name, tensor in target.state_dict().items())
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("target", "out")]
    assert files[0].keys() == files[1].keys()
    patch_folder(patch, tmp_path / "out", tmp_path / "back", revert=True)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        tmp_path / "target" / "model.safetensors"
    ).read_bytes()

"""Profiles merged, saved and read."""

from __future__ import annotations

import pytest
import torch
from support import random_batches, tiny_model

import act


def test_adding_profiles_equals_one_run():
    donor, target, batches = tiny_model("llama"), tiny_model("llama", seed=1), random_batches(4)
    whole = act.profile_pair(donor, target, batches)
    parts = [act.profile_pair(donor, target, batches[:1]), act.profile_pair(donor, target, batches[1:])]
    for merged in (parts[0] + parts[1], parts[1] + parts[0]):
        torch.testing.assert_close(merged.moments.arena, whole.moments.arena, rtol=1e-6, atol=1e-9)
        assert len(merged.provenance.corpora) == 2


def test_saved_profiles_come_back_whole(tmp_path):
    donor, target = tiny_model("llama"), tiny_model("llama", seed=1)
    for number, profile in enumerate(
        (act.profile(donor, random_batches()), act.profile_pair(donor, target, random_batches()))
    ):
        profile.save(tmp_path / f"{number}.safetensors")
        again = act.load(tmp_path / f"{number}.safetensors")
        assert type(again) is type(profile) and again.provenance == profile.provenance and again.space == profile.space
        assert torch.equal(again.moments.arena, profile.moments.arena)


def test_profiles_of_other_models_cannot_be_added():
    one, other = (act.profile(tiny_model("llama", seed=seed), random_batches()) for seed in (0, 1))
    with pytest.raises(act.ActError, match="different models"):
        _ = one + other
    with pytest.raises(act.ActError, match="cannot add"):
        _ = one + act.profile_pair(tiny_model("llama"), tiny_model("llama", seed=1), random_batches())

"""Models spread over devices or offloaded by accelerate: the same numbers, and the model as it was."""

from __future__ import annotations

import sys

import pytest
import torch
from support import random_batches, tiny_model

import act
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint
from act.models.placement import input_device, run_devices
from act.profiles.moments import Moments
from act.ranking.weights import weight_diff
from act_kernels import column_moments

accelerate = pytest.importorskip("accelerate")


def layers_apart(model, rest="cpu"):
    """A device map: the first layer, embedding, norm and head on the CPU, the other layers on ``rest``."""
    parts = {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
    layers = {f"model.layers.{i}": rest if i else "cpu" for i in range(len(model.model.layers))}
    return {**parts, **layers, "lm_head": "cpu"}


def hooked(model):
    return accelerate.dispatch_model(model, layers_apart(model), main_device="cpu", force_hooks=True)


def offloaded(model):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def split_by_layer(model, names):
    """Pretends that layers live on devices of their own: tensors are on the CPU, arenas are kept by the device asked."""
    places = run_devices(model, names)
    assert set(places.values()) == {torch.device("cpu")}
    return {name: torch.device("cpu", int("layers.1." in name)) for name in places}


def paths_of(profile):
    return profile.provenance.corpora[0].paths


def test_an_arena_on_each_device_is_gathered(monkeypatch):
    donor, model = tiny_model("qwen2", seed=1), tiny_model("qwen2")
    whole = act.profile(model, random_batches())
    monkeypatch.setattr(sys.modules["act.profiling.job"], "run_devices", split_by_layer)
    for run in (lambda: act.profile(model, random_batches()), lambda: act.profile_pair(donor, model, random_batches())):
        profile = run()
        assert profile.moments.arena is profile.moments.arena  # one arena again, not a copy
        assert torch.equal(profile.count, whole.count)
        torch.testing.assert_close(profile.mean, whole.mean, rtol=1e-6, atol=1e-7)


def test_moments_of_several_devices_behave_as_one():
    space = ChannelSpace.from_model(tiny_model("llama"))
    places = {site.name: torch.device("cpu", number % 3) for number, site in enumerate(space)}
    apart, one = Moments(space, device=places), Moments(space)
    more = Moments(space, device=places)
    for number, site in enumerate(space):
        x = torch.randn(20, site.width, generator=torch.Generator().manual_seed(number))
        for moments in (apart, one, more):
            column_moments(x, moments.block(site.name))
    assert len({block.untyped_storage().data_ptr() for block in map(apart.block, places)}) == 3
    assert torch.equal(apart.arena, one.arena) and apart.rows_counted(space.sites[-1].name) == 20
    for moments in (apart, one):
        moments.merge(more)
    apart.gather()
    assert torch.equal(apart.arena, one.arena)
    apart.block(space.sites[3].name).zero_()
    assert (apart.arena[:, space.sites[3].channels] == 0).all()


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_a_device_map_keeps_the_fused_paths(family):
    plain = act.profile(tiny_model(family), random_batches())
    model = tiny_model(family)
    if family == "gpt2":
        accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    else:
        hooked(model)
    forwards = {name: vars(module)["forward"] for name, module in model.named_modules() if "forward" in vars(module)}
    batch = {name: x for name, x in random_batches(1)[0].items() if name != "count_mask"}
    before = model(**batch).logits
    profile = act.profile(model, random_batches())
    if family != "gpt2":  # hooks of one that is whole on one device are placed on the model itself
        assert forwards
    # A tensor that a hook hands over is a new object: a sum at a border of the map may be read by itself.
    assert paths_of(profile).get("gated_mlp") == paths_of(plain).get("gated_mlp")
    assert paths_of(profile)["add_norm"] >= paths_of(plain)["add_norm"] - 1
    torch.testing.assert_close(profile.mean_abs, plain.mean_abs, rtol=1e-6, atol=1e-7)
    assert forwards == {name: vars(module)["forward"] for name, module in model.named_modules() if name in forwards}
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("family", ["qwen2", "llama-tied-bias"])
def test_offloaded_models_are_profiled_and_known_again(family, tmp_path):
    plain = act.profile(tiny_model(family), random_batches())
    on_disk = tiny_model(family)
    devices = layers_apart(on_disk, "disk")
    accelerate.dispatch_model(on_disk, devices, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    for model in (offloaded(tiny_model(family)), on_disk):
        assert any(parameter.is_meta for parameter in model.parameters())
        assert input_device(model) == torch.device("cpu")
        for _ in range(2):  # a forward makes its parameters anew
            profile = act.profile(model, random_batches())
            assert torch.equal(profile.count, plain.count)
            torch.testing.assert_close(profile.mean_abs, plain.mean_abs, rtol=1e-6, atol=1e-7)
        assert profile.provenance.models == plain.provenance.models
        assert profile.space == plain.space
        assert any(parameter.is_meta for parameter in model.parameters())


def test_an_offloaded_donor_runs_in_lockstep():
    donor, target = tiny_model("qwen2"), tiny_model("qwen2", seed=1)
    expected = act.profile_pair(donor, target, random_batches(), swap=True)
    found = act.profile_pair(offloaded(donor), hooked(target), random_batches(), swap=True)
    torch.testing.assert_close(found.mean_abs_diff, expected.mean_abs_diff, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.product.mean, expected.product.mean, rtol=1e-5, atol=1e-7)
    assert found.provenance.models == expected.provenance.models


@pytest.mark.parametrize("side", ["donor", "target"])
def test_an_offloaded_model_is_not_attributed(side, tokenizer):
    models = {"donor": tiny_model("llama", seed=1), "target": tiny_model("llama")}
    offloaded(models[side])
    corpus = act.Corpus.from_records([{"prompt": "a b", "completion": " c"}], tokenizer)
    with pytest.raises(act.ActError, match=rf"of the {side} is not in memory .* load the model without offloading"):
        act.attribute(models["donor"], models["target"], corpus)


def test_weights_that_are_not_in_memory_are_refused():
    donor, target = tiny_model("llama", seed=1), tiny_model("llama")
    channels = act.rank(act.profile_pair(donor, target, random_batches()), score="paired", top=0.05)
    offloaded(target)
    with pytest.raises(act.ActError, match=r"of the target is not in memory .* load the model without offloading"):
        act.transfer(donor, target, channels)
    with pytest.raises(act.ActError, match="not in memory"):
        weight_diff(donor, target)
    with torch.device("meta"):
        empty = tiny_model("llama")
    with pytest.raises(act.ActError, match=r"has no values .* load the model with its weights"):
        fingerprint(empty)

"""Parameters that no process holds as a whole, or at all, are refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from support import chosen, random_batches, tiny_model

import act
from act.models.channels import ChannelSpace

SPREAD = r"weight is spread over processes \(.*FSDP.*\), of which each holds a part"


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def by_columns(model, mesh):
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    parallelize_module(model.model.layers[0].mlp, mesh, {"gate_proj": ColwiseParallel()})


def fully(model, mesh):
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=mesh)


def flat(model, mesh):
    class FlatParameter(torch.nn.Parameter):  # that of FSDP needs an accelerator
        pass

    model.lm_head.weight = FlatParameter(model.lm_head.weight.data.flatten())


@pytest.mark.parametrize("spread", [by_columns, fully, flat])
def test_a_spread_model_is_refused_everywhere(mesh, spread):
    whole, model = tiny_model("llama", 1), tiny_model("llama")
    channels = chosen(ChannelSpace.from_model(model), 0.1)
    patch = act.transfer(whole, model, channels)
    spread(model, mesh)
    for use in (
        lambda: ChannelSpace.from_model(model),
        lambda: act.profile(model, random_batches()),
        lambda: act.profile_pair(whole, model, random_batches()),
        lambda: act.transfer(whole, model, channels),
        lambda: act.transfer(model, whole, channels),
        lambda: patch.revert(model),
    ):
        with pytest.raises(act.ActError, match=SPREAD):
            use()


def test_a_replica_is_the_model_itself(mesh):
    model = tiny_model("llama")
    expected = act.profile(copy.deepcopy(model), random_batches())
    found = act.profile(torch.nn.parallel.DistributedDataParallel(model), random_batches())
    assert found.space == expected.space
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-7)  # with a mask, and without


def test_a_model_without_values_is_refused():
    target = tiny_model("llama")
    empty = tiny_model("llama").to("meta")
    patch = act.transfer(tiny_model("llama", 1), target, chosen(ChannelSpace.from_model(target), 0.1))
    for use in (
        lambda: act.profile(empty, random_batches()),
        lambda: act.profile_pair(empty, target, random_batches()),
    ):
        with pytest.raises(act.ActError, match=r"has no values \(it is on the meta device\)"):
            use()
    with pytest.raises(act.ActError, match="is not in memory"):
        patch.revert(empty)

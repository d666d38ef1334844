"""Experts in another order: seen in their routers, and put back without changing what the model computes."""

from __future__ import annotations

import copy

import pytest
import tiny_families
import torch
import transformers
from support import ATTENTION, SMALL, tiny_model

import act
from act.models.blocks import Experts
from act.models.channels import ChannelSpace
from act.models.expert_order import align_experts, other_orders


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 20)[None], use_cache=False).logits


def mixed(model: torch.nn.Module, order: list[int], layer: str) -> torch.nn.Module:
    """A copy of which every tensor under ``layer`` that has one part for each expert is in another order."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.startswith(layer) and "shared" not in name and len(tensor) == len(order):
                tensor.copy_(tensor[order].clone())
    return model


def experts_of(model: torch.nn.Module) -> Experts:
    """The last experts that tokens are routed to."""
    return next(
        one for one in reversed(ChannelSpace.from_model(model).blocks) if isinstance(one, Experts) and one.router
    )


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_experts_in_another_order_are_seen_and_put_back(family):
    target = tiny_families.tiny(family)
    experts = experts_of(target)
    order = torch.randperm(experts.count, generator=torch.Generator().manual_seed(1)).tolist()
    donor = mixed(target, order, experts.name.rpartition(".")[0])
    assert other_orders(target, target) == {}
    (found,) = other_orders(donor, target).values()
    assert [order[number] for number in found] == list(range(experts.count))
    assert align_experts(donor, target) == {experts.name: found}
    assert all(map(torch.equal, donor.state_dict().values(), target.state_dict().values()))
    assert align_experts(donor, target) == {}


@pytest.mark.parametrize("family", ["mixtral", "dbrx", "jetmoe", "lfm2_moe", "llama4_text"])
def test_the_donor_computes_what_it_did(family):
    donor = tiny_families.tiny(family)
    experts, before = experts_of(donor), logits(donor)
    target = copy.deepcopy(donor)
    router = target.get_submodule(ChannelSpace.from_model(donor).site(experts.router).module)
    with torch.no_grad():
        router.weight.copy_(router.weight.roll(1, 0))
    assert list(align_experts(donor, target)) == [experts.name]
    assert torch.allclose(logits(donor), before, atol=1e-5)


def test_models_that_are_not_alike_are_left_alone():
    assert other_orders(tiny_families.tiny("mixtral"), tiny_families.tiny("mixtral", seed=1)) == {}
    assert act.align_experts(tiny_model("llama"), tiny_model("llama", seed=1)) == {}


def test_other_numbers_of_experts_are_one_sentence():
    def model(count: int) -> torch.nn.Module:
        config = transformers.MixtralConfig(**SMALL, **ATTENTION, num_local_experts=count)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config)

    with pytest.raises(act.ActError, match=r"model\.layers\.0\.mlp\.experts holds 4 experts against 8"):
        align_experts(model(4), model(8))


def test_groups_of_experts_stay_together():
    target = tiny_families.tiny("deepseek_v3")
    block = experts_of(target)
    donor = mixed(target, [*range(1, block.count), 0], block.name.rpartition(".")[0])
    target.config.n_group = donor.config.n_group = block.count // 2
    with pytest.raises(act.ActError, match="would take the donor's groups apart"):
        align_experts(donor, target)

"""``--match-experts``: a donor whose experts are in another order than the target's."""

from __future__ import annotations

import pytest
import torch
import transformers
from command_line import act_profile
from support import ATTENTION, SMALL, chosen

from act.models.channels import ChannelSpace


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SMALL, **ATTENTION, num_local_experts=4)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path / "target")
    chosen(ChannelSpace.from_model(model), 0.2).save(path / "set.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(path / "alike")
        experts = model.model.layers[1].mlp
        for tensor in (experts.gate.weight, experts.experts.gate_up_proj, experts.experts.down_proj):
            tensor.copy_(tensor.flip(0).clone())
    model.save_pretrained(path / "mixed")
    for name in ("target", "alike", "mixed"):
        tokenizer.save_pretrained(path / name)
    return path


def transfer(folder, donor, output, *more):
    models = ("--donor", folder / donor, "--target", folder / "target", "--channels", folder / "set.safetensors")
    return act_profile("transfer", *models, "--output", output, *more)


def test_a_transfer_warns_or_matches(folder, tmp_path):
    plain = transfer(folder, "alike", tmp_path / "alike", "--in-memory")
    assert plain.returncode == 0 and "experts" not in plain.stderr
    warned = transfer(folder, "mixed", tmp_path / "mixed", "--in-memory")
    assert "experts in model.layers.1.mlp.experts look like the target's in another order" in warned.stderr
    matched = transfer(folder, "mixed", tmp_path / "matched", "--in-memory", "--match-experts")
    assert "were put in the target's order" in matched.stderr
    wanted, found, other = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("alike", "matched", "mixed")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert not all(torch.equal(other[name], tensor) for name, tensor in wanted.items())


def test_files_are_not_matched(folder, tmp_path):
    refused = transfer(folder, "mixed", tmp_path / "mixed", "--match-experts")
    assert refused.returncode == 2 and "add --in-memory" in refused.stderr

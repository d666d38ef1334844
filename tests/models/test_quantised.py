"""Quantised models: measured through the outputs of their linears, never transferred."""

from __future__ import annotations

import json

import pytest
import torch
from support import chosen, random_batches, state, tiny_model
from torch import nn

import act
from act.editing.donor import Donor
from act.editing.folders import transfer_folders
from act.models.channels import ChannelSpace
from act.models.fingerprint import fingerprint


class Packed(nn.Module):
    """As GPTQ and AWQ store a linear: eight values of four bits in one of 32, in buffers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("scales", linear.weight.abs().amax(1) / 7)
        values = (linear.weight / self.scales[:, None]).round().int() + 8
        shifted = values.view(self.out_features, -1, 8) << torch.arange(0, 32, 4)
        self.register_buffer("qweight", shifted.sum(-1).int())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = (self.qweight[..., None] >> torch.arange(0, 32, 4)) & 15
        return nn.functional.linear(x, (values.flatten(1) - 8) * self.scales[:, None])


class Float8(nn.Linear):
    """As float8 checkpoints store a linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


def four_bits(linear):
    nf4 = pytest.importorskip("bitsandbytes").nn
    made = nf4.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
    made.weight = nf4.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    return made.to("cpu")


def eight_bits(linear):
    int8 = pytest.importorskip("bitsandbytes").nn
    made = int8.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
    made.weight = int8.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    return made.to("cpu")


def hqq(linear):
    quantize = pytest.importorskip("hqq.core.quantize")
    config = quantize.BaseQuantizeConfig(nbits=4, group_size=16)
    return quantize.HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")


def each_linear(made):
    def quantise(model):
        for name, module in [*model.named_modules()]:
            if isinstance(module, nn.Linear) and name != "lm_head":
                model.set_submodule(name, made(module))

    return quantise


def torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig())


def quanto(model):
    package = pytest.importorskip("optimum.quanto")
    package.quantize(model, weights=package.qint8, exclude="lm_head")
    package.freeze(model)


def compressed(model):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    weights = quantization.QuantizationArgs(num_bits=8, strategy="channel")
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    config = quantization.QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format="pack-quantized", quantization_status="frozen"
    )
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data.fill_(0.01)
    compressors.ModelCompressor(quantization_config=config).compress_model(model)


KINDS = {
    "packed": each_linear(Packed),
    "float8": each_linear(Float8),
    "bitsandbytes, 4 bits": each_linear(four_bits),
    "bitsandbytes, 8 bits": each_linear(eight_bits),
    "hqq": each_linear(hqq),
    "torchao": torchao,
    "quanto": quanto,
    "compressed-tensors": compressed,
}


@pytest.mark.parametrize(("kind", "family"), [*((kind, "llama") for kind in KINDS), ("packed", "phi3")])
def test_a_quantised_model_is_measured_through_its_outputs(kind, family):
    plain, model, (batch,) = tiny_model(family), tiny_model(family), random_batches(1)
    with torch.no_grad():
        KINDS[kind](model)
    profile, expected = act.profile(model, [batch]), ChannelSpace.from_model(plain)
    assert [(site.name, site.kind, site.width) for site in profile.space] == [
        (site.name, site.kind, site.width) for site in expected
    ]
    packed = [site for site in profile.space if not site.parameters]
    assert {site.kind for site in packed} == {*"qkvo", "gate", "up", "down"} and profile.space.blocks
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(site.module).register_forward_hook(
            lambda module, args, output, name=site.module: outputs.update({name: output.clone()})
        )
        for site in profile.space
    ]
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    for hook in hooks:
        hook.remove()
    mask = batch["count_mask"] & batch["attention_mask"].bool()
    for site in profile.space:
        rows = outputs[site.module][mask][:, site.outputs(torch.arange(site.width))].double()
        torch.testing.assert_close(profile.site(site.name).mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    other = tiny_model(family, 1)
    with torch.no_grad():
        KINDS[kind](other)
    assert len({fingerprint(each) for each in (plain, model, other)}) == 3
    pair = act.profile_pair(other, model, [batch])
    with pytest.raises(act.ActError, match=r"is quantised, .* load the unquantised checkpoint"):
        act.transfer(other, model, act.rank(pair, top=0.1))
    with pytest.raises(act.ActError, match="is quantised"):
        act.transfer(plain, model, chosen(expected, 0.1))


@pytest.mark.parametrize("held", [torch.tensor(2), torch.ones(3, dtype=torch.bool), torch.ones(4, 3).byte()])
def test_a_linear_that_holds_integers_beside_its_weight_is_not_quantised(held):
    linear = nn.Linear(3, 4)
    linear.register_buffer("held", held)
    (site,) = ChannelSpace.from_model(nn.Sequential(linear))
    assert [part.name for part in site.parameters] == ["0.weight", "0.bias"]


def test_a_quantised_folder_is_refused_and_nothing_is_written(tmp_path):
    model = tiny_model("llama")
    for name in ("donor", "target"):
        model.save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "target" / "config.json").write_text(json.dumps(config))
    donor = Donor(tmp_path / "donor", chosen(ChannelSpace.from_model(model), 0.1))
    with pytest.raises(act.ActError, match=r"is quantised, .* give the unquantised checkpoint"):
        transfer_folders([donor], tmp_path / "target", tmp_path / "out")
    assert not (tmp_path / "out").exists() and state(model)

"""Fused parts: found by what they compute, and a model that runs through them stays the same model."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from support import CONFIGS, random_batches, tiny_model
from torch import nn
from transformers.models.llama import modeling_llama

import act
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.taps import head
from act.taps.fusion import Fusion
from act.taps.fusion import recognise as recognised
from act.taps.probed import Probed
from act.taps.sink import ReaderSink
from act.taps.tapped import Taps, taps
from act_kernels.backends import choose

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GATED = {"llama", "llama-tied-bias", "qwen2", "qwen3", "mistral", "gemma2", "phi3"}
ROTARY_WITH_MOMENTS = GATED - {"qwen3"}  # Qwen3 norms q and k between projection and embedding


def recognise(model) -> Fusion:
    """What of a model can run fused."""
    return recognised(model, Probed.of(model, ChannelSpace.from_model(model)).recording)


def inputs_of(batch):
    return {name: tensor for name, tensor in batch.items() if name != "count_mask"}


def profiled(model, batch, **options):
    """The moments of one batch, and the path of each site."""
    moments = Moments(ChannelSpace.from_model(model))
    with torch.inference_mode(), taps(model, moments, **options) as tapped:
        tapped.forward(inputs_of(batch), batch["count_mask"])
        return moments, dict(tapped.paths)


def logits(model, batch, **options):
    """Logits with taps on; ``None`` as options: without taps."""
    with torch.inference_mode():
        if options.get("off"):
            return model(**inputs_of(batch)).logits
        with taps(model, Moments(ChannelSpace.from_model(model)), **options) as tapped:
            tapped.start(batch["count_mask"])
            return model(**inputs_of(batch)).logits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_sites_ride_along(family, dtype):
    model = tiny_model(family, dtype=dtype)
    _, paths = profiled(model, random_batches(1)[0])
    by_kind = {site.kind: paths[site.name] for site in ChannelSpace.from_model(model)}
    assert by_kind["head"] == "column_moments"
    if family in GATED:
        assert all(path == "gated_mlp" for kind, path in by_kind.items() if kind in ("gate", "up", "gate_up"))
        assert all(by_kind[kind] == "add_norm" for kind in ("o", "down", "norm"))
    if family in ROTARY_WITH_MOMENTS:
        assert all(path == "rotary" for kind, path in by_kind.items() if kind in ("q", "k", "v", "qkv"))
    assert set(paths) == {site.name for site in ChannelSpace.from_model(model)}


@pytest.mark.skipif(
    choose("cpu").backend.name != "native" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="the C++ kernels follow the order of PyTorch's AVX2 and AVX-512 builds",
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", sorted(GATED - {"gemma2"}))
def test_logits_are_bit_equal(family, dtype):
    if family == "phi3" and dtype == torch.float32:
        pytest.skip("PyTorch computes the last values of each row of a strided gate by another exp")
    model, batch = tiny_model(family, dtype=dtype), random_batches(3)[2]
    assert torch.equal(logits(model, batch), logits(model, batch, off=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_hardly_move_and_not_at_all_without_fusion(family, dtype):
    model, batch = tiny_model(family, dtype=dtype), random_batches(1)[0]
    stock = logits(model, batch, off=True)
    assert torch.equal(logits(model, batch, fused=False), stock)
    attended = batch["attention_mask"].bool()
    error = (logits(model, batch).double() - stock.double())[attended].norm() / stock.double()[attended].norm()
    assert error <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_moments_are_those_of_plain_hooks(mode, attention):
    model, batch = tiny_model("llama"), random_batches(1)[0]
    model.config._attn_implementation = attention
    model.train(mode == "train")
    fused, _ = profiled(model, batch)
    plain, paths = profiled(model, batch, fused=False)
    assert set(paths.values()) == {"column_moments"}
    torch.testing.assert_close(fused.arena, plain.arena, rtol=1e-4, atol=1e-5)
    assert model.training == (mode == "train")


def test_greedy_text_is_the_same():
    model, batch = tiny_model("qwen2"), random_batches(1)[0]
    assert torch.equal(logits(model, batch).argmax(-1), logits(model, batch, off=True).argmax(-1))


def test_gradients_flow_as_if_nothing_were_there():
    model, batch = tiny_model("llama").train(), random_batches(1)[0]
    plain = copy.deepcopy(model)
    plain(**inputs_of(batch)).logits.square().sum().backward()
    moments = Moments(ChannelSpace.from_model(model))
    with taps(model, moments) as tapped:
        tapped.start(batch["count_mask"])
        model(**inputs_of(batch)).logits.square().sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert (moments.arena[0] > 0).all()


def test_gradients_of_a_partly_frozen_model():
    model, batch = tiny_model("llama").requires_grad_(False), random_batches(1)[0]
    gate = model.model.layers[0].mlp.gate_proj.weight.requires_grad_()
    model(**inputs_of(batch)).logits.square().sum().backward()
    expected, gate.grad = gate.grad, None
    with taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
        tapped.start(batch["count_mask"])
        model(**inputs_of(batch)).logits.square().sum().backward()
    torch.testing.assert_close(gate.grad, expected, rtol=1e-4, atol=1e-4)


def test_layers_that_run_twice_are_measured_twice():
    model, batch = tiny_model("llama"), random_batches(1)[0]
    model.model.layers[1] = model.model.layers[0]
    fused, plain = (profiled(model, batch, fused=fused)[0] for fused in (True, False))
    torch.testing.assert_close(fused.arena, plain.arena, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_everything_is_put_back(family):
    model = tiny_model(family)
    modeling = __import__(type(model).__module__, fromlist=["_"])
    rotary = modeling.apply_rotary_pos_emb
    before = {name: (dict(module.__dict__), module.forward) for name, module in model.named_modules()}
    one, other = (
        Taps(model, ChannelSpace.from_model(model), ReaderSink(lambda *_: None, lambda *_: None)) for _ in range(2)
    )
    assert modeling.apply_rotary_pos_emb is not rotary
    one.remove()  # the first to come is the first to go
    other.remove()
    other.remove()
    assert modeling.apply_rotary_pos_emb is rotary
    for name, module in model.named_modules():
        assert "forward" not in module.__dict__ and module.forward == before[name][1]
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_an_exception_in_the_model_restores_it():
    model = tiny_model("llama")
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        profiled(model, random_batches(1)[0])
    handle.remove()
    assert all("forward" not in module.__dict__ and not module._forward_hooks for module in model.modules())


def test_the_head_sees_counted_rows_only_in_chunks(monkeypatch):
    model, batch = tiny_model("llama"), random_batches(3)[2]
    expected, _ = profiled(model, batch)
    monkeypatch.setattr(head, "HEAD_CHUNK_BYTES", 1)
    shapes = []
    original = model.lm_head.forward
    model.lm_head.forward = lambda rows: shapes.append(tuple(rows.shape)) or original(rows)
    found, _ = profiled(model, batch, fused=False)
    shapes = [shape for shape in shapes if len(shape) == 2]  # the probe gives it all rows
    counted = int((batch["count_mask"] & True).sum())
    assert sum(rows for rows, _ in shapes) == counted and max(rows for rows, _ in shapes) <= 16
    block = "lm_head"
    torch.testing.assert_close(found.block(block), expected.block(block), rtol=1e-5, atol=1e-7)


def test_an_unwanted_head_never_runs():
    model, batch = tiny_model("llama"), random_batches(1)[0]

    def refuse(*_):
        raise AssertionError("the LM head ran")

    model.lm_head.forward = refuse
    profile = act.profile(model, [batch], exclude=["head"])
    head = profile.site("lm_head")
    assert (head.count == 0).all() and head.mean.isnan().all()
    assert (profile.site("model.norm").count > 0).all()
    assert profile.provenance.corpora[0].irregular == {}
    pair = act.profile_pair(model, tiny_model("llama", seed=1), [batch], exclude=["head", "embed"])
    assert (pair.site("model.embed_tokens").count == 0).all() and (pair.site("model.norm").count > 0).all()


def test_an_unknown_kind_is_refused():
    with pytest.raises(act.ActError, match="no module kind heads; this model has down, embed"):
        act.profile(tiny_model("llama"), random_batches(1), exclude=["heads"])


def test_patched_modules_are_still_measured():
    """As libraries of faster kernels leave a model: classes swapped, instances patched, a submodule bypassed."""
    model, batch = tiny_model("llama"), random_batches(1)[0]
    expected, _ = profiled(model, batch, fused=False)

    def other_mlp(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)).mul_(self.up_proj(x)))

    def other_norm(self, x):
        wide = x.float()
        return (wide / (wide.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt() * self.weight).to(x.dtype)

    for layer in model.model.layers:
        layer.mlp.forward = types.MethodType(other_mlp, layer.mlp)
        layer.input_layernorm.forward = types.MethodType(other_norm, layer.input_layernorm)
    found, paths = profiled(model, batch)
    assert paths["model.layers.0.mlp.gate_proj"] == paths["model.layers.0.input_layernorm"] == "column_moments"
    assert paths["model.layers.0.post_attention_layernorm"] == "add_norm"
    torch.testing.assert_close(found.arena, expected.arena, rtol=1e-4, atol=1e-5)
    assert model.model.layers[0].mlp.forward.__func__ is other_mlp


def test_an_mlp_that_computes_something_else_is_left_alone():
    model, batch = tiny_model("llama"), random_batches(1)[0]

    class Clipped(modeling_llama.LlamaMLP):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=0.01) * self.up_proj(x))

    for layer in model.model.layers:
        layer.mlp.__class__ = Clipped
    assert not recognise(model).mlps
    stock = logits(model, batch, off=True)
    torch.testing.assert_close(logits(model, batch), stock, rtol=1e-5, atol=1e-5)


def test_a_hook_that_edits_the_residual_sum_keeps_its_effect():
    model, batch = tiny_model("llama"), random_batches(1)[0]
    plain = logits(model, batch, off=True)

    def double(module, args, output):
        (output[0] if isinstance(output, tuple) else output).mul_(2)

    model.get_submodule("model.layers.0").register_forward_hook(double)
    hooked = logits(model, batch, off=True)
    assert not torch.equal(hooked, plain)
    assert torch.equal(logits(model, batch), hooked)


def test_a_hook_on_an_activation_is_still_called():
    model, batch = tiny_model("llama"), random_batches(1)[0]
    calls = []
    model.get_submodule("model.layers.0.mlp.act_fn").register_forward_hook(lambda *call: calls.append(call))
    with torch.inference_mode(), taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
        calls.clear()
        tapped.start(batch["count_mask"])
        model(**inputs_of(batch))
    assert len(calls) == 1


def test_gelus_are_told_apart():
    for family in ("gemma2",):
        for dtype in DTYPES:
            fusion = recognise(tiny_model(family, dtype=dtype))
            assert {mlp.activation for mlp in fusion.mlps.values()} == {"gelu_tanh"}
            assert {norm.style for norm in fusion.norms.values()} == {"rms_one_plus"}


def test_a_model_that_cannot_be_probed_runs_as_it_is():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, input_ids, attention_mask, use_cache):
            return self.first(attention_mask[..., None].expand(-1, -1, 4).float())

    profile = act.profile(Odd(), random_batches())
    assert profile.provenance.corpora[0].paths == {"column_moments": 1}


def test_two_runs_give_the_same_bits():
    arenas = [profiled(tiny_model("qwen2"), random_batches(1)[0])[0].arena for _ in range(2)]
    assert torch.equal(*arenas)


def test_rotary_of_a_model_beside_the_tapped_one_is_unchanged():
    model, other, batch = tiny_model("llama"), tiny_model("llama", seed=1), random_batches(1)[0]
    expected = logits(other, batch, off=True)
    with torch.inference_mode(), taps(model, Moments(ChannelSpace.from_model(model))) as tapped:
        tapped.start(batch["count_mask"])
        assert torch.equal(other(**inputs_of(batch)).logits, expected)


def test_a_rotary_function_that_also_turns_q_alone_stays_one(monkeypatch):
    turn = modeling_llama.apply_rotary_pos_emb

    def either(q, k=None, cos=None, sin=None, unsqueeze_dim=1):
        return turn(q, q, cos, sin, unsqueeze_dim)[0] if k is None else turn(q, k, cos, sin, unsqueeze_dim)

    model, batch = tiny_model("llama"), random_batches(1)[0]
    _, paths = profiled(model, batch)
    plain = logits(model, batch, off=True)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", either)
    assert profiled(model, batch)[1] == paths
    with taps(model, Moments(ChannelSpace.from_model(model))):
        x = torch.randn(1, 2, 3, 8)
        cos, sin = torch.randn(2, 1, 3, 8)
        alone = modeling_llama.apply_rotary_pos_emb(x, cos=cos, sin=sin)
        assert torch.equal(alone, turn(x, x, cos, sin)[0])
    assert torch.equal(logits(model, batch), plain)

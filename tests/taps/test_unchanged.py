"""A tensor is fused as unchanged only where the model leaves it as it is between the ops that are fused."""

from __future__ import annotations

import types

import pytest
import torch
import transformers
from support import random_batches, tiny_model
from tiny_families import tiny
from transformers.models.llama import modeling_llama

import act
from act.moments import Moments
from act.taps import taps


def logits(model, batch, *, tapped: bool) -> torch.Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "count_mask"}
    with torch.no_grad():
        if not tapped:
            return model(**inputs).logits
        with taps(model, Moments(act.ChannelSpace.from_model(model))) as running:
            running.start(batch["count_mask"])
            return model(**inputs).logits


def steer(change):
    """A decoder layer whose forward changes its residual sum in place."""

    def forward(self, hidden_states, **named):
        output = modeling_llama.LlamaDecoderLayer.forward(self, hidden_states, **named)
        change(output)
        return output

    return forward


CHANGES = {
    "adds": lambda x: x.add_(0.5),
    "adds through a view": lambda x: x[:, -1:].add_(0.5),
    "multiplies by one": lambda x: x.mul_(1.0),
    "leaves alone": lambda x: x,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_residual_sum_changed_in_place(change):
    model, batch = tiny_model("llama"), random_batches(1)[0]
    for layer in model.model.layers:
        layer.forward = types.MethodType(steer(change), layer)
    assert torch.equal(logits(model, batch, tapped=True), logits(model, batch, tapped=False))
    fused, plain = (act.profile(model, [batch], fused=fused) for fused in (True, False))
    torch.testing.assert_close(fused.moments.arena, plain.moments.arena, rtol=1e-4, atol=1e-5)


def test_a_change_that_the_probe_did_not_see_is_an_error():
    model, batches = tiny_model("llama"), random_batches(1)
    marked = steer(lambda x: x.add_(0.5) if x.shape[0] == 2 else x)
    model.model.layers[0].forward = types.MethodType(marked, model.model.layers[0])
    with pytest.raises(act.ActError, match=r"did not pass its residual sum .*fused=False"):
        act.profile(model, batches)
    assert act.profile(model, batches, fused=False).count.min() > 0


@pytest.mark.parametrize("kind", ["q", "k"])
@pytest.mark.parametrize("seen", [True, False], ids=["in the probe", "later"])
def test_a_projection_changed_in_place_before_it_is_rotated(kind, seen):
    model, batches = tiny_model("llama"), random_batches(1)
    attention = model.model.layers[0].self_attn
    made = []

    class Kept(torch.nn.Linear):
        def forward(self, x):
            made.append(super().forward(x))
            return made[-1]

    class Changing(torch.nn.Linear):
        def forward(self, x):
            if seen or len(x) == len(batches[0]["input_ids"]):
                made[-1].mul_(2)
            return super().forward(x)

    getattr(attention, f"{kind}_proj").__class__ = Kept
    attention.v_proj.__class__ = Changing
    if seen:
        fused, plain = (act.profile(model, batches, fused=fused) for fused in (True, False))
        torch.testing.assert_close(fused.moments.arena, plain.moments.arena, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(act.ActError, match=r"changed the output of .*fused=False"):
            act.profile(model, batches)


def test_a_norm_that_changes_its_input_in_place_is_left_alone():
    class Doubling(modeling_llama.LlamaRMSNorm):
        def forward(self, x):
            output = super().forward(x)
            x.mul_(2)
            return output

    model, batch = tiny_model("llama"), random_batches(1)[0]
    model.model.layers[1].post_attention_layernorm.__class__ = Doubling
    assert torch.equal(logits(model, batch, tapped=True), logits(model, batch, tapped=False))


def test_a_model_that_sets_itself_to_full_attention_on_short_texts_keeps_its_sparse_one():
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BigBirdConfig(**small, vocab_size=300, max_position_embeddings=512, block_size=16)
    config.num_random_blocks = 1
    model = transformers.BigBirdForMaskedLM(config).eval()
    ids = torch.randint(5, 300, (2, 256))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        modules = list(model.modules())
        profile = act.profile(model, [{"input_ids": ids}])
        after = model(input_ids=ids).logits
    assert torch.equal(before, after)
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))
    assert int(profile.site("bert.encoder.layer.1.attention.self.query").count[0]) == 512


@pytest.mark.parametrize("flag", ["output_hidden_states", "output_router_logits"])
def test_what_a_model_installs_once_it_does_not_install_again(flag):
    family = "mixtral" if "router" in flag else "llama"
    measured, other = tiny(family), tiny(family)
    ids = torch.randint(5, 100, (2, 6))
    act.profile(measured, [{"input_ids": ids}])
    with torch.no_grad():
        one, two = (model(input_ids=ids, **{flag: True}) for model in (measured, other))
    name = flag.removeprefix("output_")
    assert len(one[name]) == len(two[name])

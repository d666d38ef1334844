"""Padding without a mask: only where no token sees what follows."""

from __future__ import annotations

import pytest
import torch
import transformers
from support import CONFIGS, random_batches, tiny_model
from tiny_families import tiny

import act
from act.data.batching import given_batches
from act.models.limits import causal, default_token_budget


def bidirectional() -> torch.nn.Module:
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=300
    )
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(config).eval()


@pytest.mark.parametrize("family", CONFIGS)
def test_decoders_are_causal(family):
    assert causal(tiny_model(family))


def test_a_model_that_looks_ahead_is_not():
    assert not causal(bidirectional())
    assert not causal(tiny("prophetnet"))  # in one of its later streams


def seen_keys(model, batches) -> set[str]:
    """The inputs that the model was given."""
    seen: set[str] = set()
    handle = model.register_forward_pre_hook(
        lambda _, __, given: seen.update(name for name, x in given.items() if isinstance(x, torch.Tensor)),
        with_kwargs=True,
    )
    act.profile(model, batches)
    handle.remove()
    return seen


@pytest.mark.parametrize("family", CONFIGS)
def test_statistics_are_those_of_the_masked_forward(family, monkeypatch):
    model = tiny_model(family)
    unmasked = act.profile(model, random_batches())
    monkeypatch.setattr("act.profiling.job.causal", lambda model: False)
    torch.testing.assert_close(
        unmasked.moments.arena, act.profile(model, random_batches()).moments.arena, rtol=1e-4, atol=1e-4
    )


def test_the_mask_is_left_out_only_for_padding_on_the_right():
    model = tiny_model("llama")
    right = random_batches()
    left = [{name: x.flip(1) for name, x in batch.items()} for batch in right]
    assert all(batch.padded_right for given in right for batch in given_batches(given))
    assert not any(batch.padded_right for given in left for batch in given_batches(given))
    assert "attention_mask" not in seen_keys(model, right)
    assert "attention_mask" in seen_keys(model, left)


def test_a_bidirectional_model_keeps_its_mask(monkeypatch):
    model = bidirectional()
    assert "attention_mask" in seen_keys(model, random_batches())


def test_batches_are_as_large_on_every_machine():
    assert default_token_budget(torch.device("cpu")) == 2048
    assert default_token_budget(torch.device("cuda", 1)) == 8192

"""Trials of a model on a few tokens: quick where its type is emulated, and of no effect on anything else."""

from __future__ import annotations

import pytest
import torch
from support import tiny_model
from torch.nn.functional import linear

from act.models import trials
from act.models.channels import ChannelSpace
from act.models.trials import QuickLinears, tried
from act.profiles.moments import Moments
from act.taps.tapped import taps


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(trials, "_is_emulated", lambda weight: weight.dtype in (torch.bfloat16, torch.float16))
    monkeypatch.setattr(trials, "AT_ONCE", 200)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linears_give_what_the_type_gives_to_one_rounding(dtype, emulated):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=g).to(dtype) for shape in ((2, 5, 48), (31, 48), (31,)))
    expected = linear(x.double(), weight.double(), bias.double())
    with QuickLinears():
        found, without = linear(x, weight, bias), linear(x, weight)
    assert found.dtype == without.dtype == dtype and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(without.double(), expected - bias.double(), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_everything_else_keeps_its_bits(emulated):
    model, ids = tiny_model("llama"), torch.arange(6)[None]
    with torch.no_grad():
        plain = model(ids).logits
        with tried(model):
            assert torch.equal(model(ids).logits, plain)
        few = torch.randn(2, 48).bfloat16(), torch.randn(8, 48).bfloat16()
        with QuickLinears():
            assert torch.equal(linear(*few), torch.nn.functional.linear(*few))


def test_a_model_of_an_emulated_type_is_read_by_the_ops_of_any_other(emulated):
    paths = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("llama").to(dtype)
        with taps(model, Moments(ChannelSpace.from_model(model))) as tapped, torch.no_grad():
            tapped.forward({"input_ids": torch.arange(10)[None]}, torch.ones(1, 10, dtype=torch.bool))
        paths.append(tapped.paths)
    assert paths[0] == paths[1]

"""Taps and ``torch.compile``: inside the taps the graph stays whole; a model compiled before is refused."""

from __future__ import annotations

import pytest
import torch
from support import random_batches, tiny_model

import act
from act.models.channels import ChannelSpace
from act.profiles.moments import Moments
from act.taps.tapped import taps


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 7), reason="PyTorch 2.6 does not trace the decorators of transformers 5")
@pytest.mark.parametrize("fused", [True, pytest.param(False, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("qwen3", "gemma2"))]
)
def test_compiling_inside_the_taps_measures_the_same(family, fused):
    torch._dynamo.reset()
    model, batch = tiny_model(family), random_batches(1)[0]
    inputs = {name: tensor for name, tensor in batch.items() if name != "count_mask"}
    eager, compiled = (Moments(ChannelSpace.from_model(model)) for _ in range(2))
    with torch.no_grad(), taps(model, eager, fused=fused) as tapped:
        tapped.start(batch["count_mask"])
        expected = model(**inputs).logits
    with torch.no_grad(), taps(model, compiled, fused=fused) as tapped:
        run = torch.compile(model, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            compiled.arena.zero_()
            tapped.start(batch["count_mask"])
            found = run(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled.arena, eager.arena, rtol=1e-4, atol=1e-5)


def test_a_model_compiled_before_is_refused():
    model = tiny_model("llama")
    with pytest.raises(act.ActError, match=r"compiled by torch\.compile, which ignores hooks"):
        act.profile(torch.compile(model, backend="eager"), random_batches())
    model.model.layers[0].compile(backend="eager")
    with pytest.raises(act.ActError, match=r"compiled by torch\.compile, which ignores hooks"):
        act.profile_pair(model, tiny_model("llama", seed=1), random_batches())

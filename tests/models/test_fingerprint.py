"""Fingerprints: no value changes unseen, and neither type nor device nor place of the weights matters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_model

from act.models.fingerprint import Diagonal, digest, fingerprint

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(DTYPES), st.data())
def test_one_changed_value_is_seen_wherever_it_is(shape, dtype, data):
    weights = {"w": torch.randn(shape).to(dtype)}
    before = fingerprint(weights)
    place = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    new = data.draw(st.sampled_from([torch.nan, torch.inf, -weights["w"][place].item(), 0.123]))
    weights["w"][place] = new
    assert fingerprint(weights) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wider_type_or_another_layout_keeps_it(dtype):
    model = tiny_model("qwen2", dtype=dtype)
    narrow = {name: parameter.detach() for name, parameter in model.named_parameters()}
    wide = {name: parameter.float() for name, parameter in narrow.items()}
    widest = {name: parameter.double() for name, parameter in narrow.items()}
    turned = {name: p.T.contiguous().T if p.dim() == 2 else p for name, p in narrow.items()}
    assert len({fingerprint(weights) for weights in (model, narrow, wide, widest, turned)}) == 1


def test_many_rows_are_summed_in_parts():
    weights = torch.randn(70, 3000).half()
    before = fingerprint({"w": weights})
    assert before == fingerprint({"w": weights.float()})
    weights[69, 1] = 5
    assert fingerprint({"w": weights}) != before


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(DTYPES), st.data())
def test_what_follows_from_changed_rows_is_what_reading_all_gives(shape, dtype, data):
    weights = torch.randn(shape).to(dtype)
    before = Diagonal.of(weights)
    dim = data.draw(st.integers(0, min(len(shape), 2) - 1))
    rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, shape[dim] - 1), min_size=1))))
    weights.index_fill_(dim, rows, 0.5)
    assert digest({"w": before.reread(weights, dim, rows)}) == fingerprint({"w": weights})

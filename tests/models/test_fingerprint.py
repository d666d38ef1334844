"""Fingerprints: no value changes unseen, and neither type nor device nor place of the weights matters."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_model

from act.models.channels import ChannelSpace
from act.models.fingerprint import Diagonal, digest, fingerprint, sums_rows
from act.models.sites import ParameterSlice

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


PARTS = [  # shape of a parameter, and parts of it that share no value
    ((5,), [ParameterSlice("w", 0)]),
    ((6, 9), [ParameterSlice("w", 0)]),
    ((6, 9), [ParameterSlice("w", 1)]),
    ((4, 6, 9), [ParameterSlice("w", 0, expert=e, span=span) for e in (0, 3) for span in ((0, 3, 1), (3, 6, 1))]),
    ((4, 6, 9), [ParameterSlice("w", 1, expert=e) for e in (1, 2)]),
    ((5, 4, 12), [ParameterSlice("w", 1, expert=e, span=span) for e in (0, 4) for span in ((0, 12, 2), (1, 12, 2))]),
    ((4, 12), [ParameterSlice("w", 0, expert=e, span=span) for e in (0, 3) for span in ((0, 12, 2), (1, 12, 2))]),
    ((4, 1, 1), [ParameterSlice("w", 0, expert=2)]),
    ((12, 5), [ParameterSlice("w", 0, expert=e, rows=3) for e in (0, 3)]),
    ((12, 5), [ParameterSlice("w", 1, expert=e, rows=3) for e in (1, 2)]),
]


class Changed(NamedTuple):
    parameter: ParameterSlice
    rows: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PARTS), st.sampled_from(DTYPES), st.data())
def test_what_follows_from_changed_rows_is_what_reading_all_gives(places, dtype, data):
    shape, parts = places
    weights = {"w": torch.randn(shape).to(dtype)}
    before = Diagonal.of(weights["w"])
    changes = []
    for part in parts:
        matrix = part.matrix(weights)
        rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(matrix) - 1), min_size=1))))
        old = matrix[rows]
        matrix[rows] = torch.randn_like(old)
        changes.append(Changed(part, rows, old, matrix[rows]))
    assert digest({"w": before.after(changes)}) == fingerprint(weights)
    after = Diagonal.of(weights["w"])
    for one in changes:
        assert before.holds(one.parameter, one.rows, one.before) and after.holds(one.parameter, one.rows, one.after)
        if sums_rows(one.parameter, len(shape)) and len(changes) == 1:
            assert not before.holds(one.parameter, one.rows, one.after)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from(DTYPES), st.data())
def test_reading_in_pieces_is_reading_whole(shape, dtype, data):
    weights = torch.randn(shape).to(dtype)
    pieces = [((0,) * len(shape), weights)]
    for dim, size in enumerate(shape):
        cut = data.draw(st.integers(0, size))
        pieces = [
            ((*start[:dim], low, *start[dim + 1 :]), piece.narrow(dim, low, high - low))
            for start, piece in pieces
            for low, high in ((0, cut), (cut, size))
            if high > low
        ]
    assert digest({"w": Diagonal.of_pieces(tuple(shape), pieces)}) == fingerprint({"w": weights})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_parameter_without_values_has_no_channels_and_a_fingerprint():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 0, bias=False))
    assert [site.name for site in ChannelSpace.from_model(model)] == ["0"] and len(fingerprint(model)) == 16
    empty = model[1].weight.detach()
    whole, pieces = Diagonal.of(empty), Diagonal.of_pieces((0, 4), [((0, 0), empty)])
    assert digest({"w": whole}) == digest({"w": pieces})

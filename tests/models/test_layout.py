"""Layouts: rows come out token by token, whatever the order of the dimensions, and other shapes do not fit."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import permutations

import pytest
import torch
from pydantic import TypeAdapter

from act.models.layout import PLAIN, Layout, Sizes

AXES = ("batch", "length", 4)
SPLITS = [lambda a, b, c: ((a,), (b,), (c,)), lambda a, b, c: ((a, b), (c,)), lambda a, b, c: ((a, b, c),)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("axes", list(permutations(AXES)), ids=str)
@pytest.mark.parametrize(("batch", "length"), [(2, 5), (4, 4)])
def test_rows_are_in_the_order_of_tokens(axes, split, batch, length):
    by_token = torch.arange(batch * length * 4 * 3).view(batch, length, 4, 3)
    sizes = {"batch": batch, "length": length, 4: 4}
    layout = Layout(split(*axes))
    output = by_token.permute(*(AXES.index(axis) for axis in axes), 3).reshape(
        *[torch.Size([sizes[axis] for axis in dim]).numel() for dim in layout.dims], 3
    )
    assert layout.lead_of(output) == layout.lead(Sizes(batch, length)) and layout.rows_per_token == 4
    assert torch.equal(layout.rows(output, Sizes(batch, length)), by_token.reshape(-1, 3))
    assert layout.tokens_first == (axes[:2] == ("batch", "length"))
    assert layout.lead_of(output) not in (layout.lead(Sizes(batch, length + 1)), layout.lead(Sizes(batch + 1, length)))


def test_an_output_that_all_rows_of_the_batch_share_counts_for_each():
    layout = Layout(((), ("length",)))
    positions = torch.randn(1, 5, 3)
    assert torch.equal(layout.rows(positions, Sizes(2, 5)), positions.expand(2, 5, 3).reshape(-1, 3))
    assert layout.shared() == PLAIN and PLAIN.shared() is None


def test_channels_may_come_in_groups():
    output = torch.randn(2, 5, 2, 8)
    layout = Layout(PLAIN.dims, groups=2)
    assert layout.lead_of(output) == (2, 5) and torch.equal(layout.rows(output, Sizes(2, 5)), output.reshape(10, 16))
    assert str(layout) == "[batch, length, 2, channels]"


def test_plain_data_and_back():
    layout = Layout((("batch", 4), ("length",)), groups=2, item=1)
    assert TypeAdapter(Layout).validate_python(json.loads(json.dumps(asdict(layout)))) == layout

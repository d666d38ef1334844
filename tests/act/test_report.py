"""The map of a channel set."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_model

from act.channel_set import ChannelSet
from act.channels import ChannelSpace
from act.errors import ActError
from act.report.pictures import draw_channel_map, share_by_layer


@pytest.fixture
def channels():
    space = ChannelSpace.from_model(tiny_model("llama"))
    q = space.site("model.layers.1.self_attn.q_proj")
    head = space.site("lm_head")
    index = torch.cat([torch.arange(q.offset, q.offset + q.width // 4), torch.tensor([head.offset])])
    return ChannelSet(space, index, torch.ones(len(index)).double(), {})


def test_shares_are_of_the_right_layer_and_module(channels):
    rows, columns, share = share_by_layer(channels)
    assert rows == ["input", "layer 0", "layer 1", "output"]
    assert columns == ["embed", "q", "k", "v", "o", "gate", "up", "down", "norm", "head"]
    assert share[rows.index("layer 1"), columns.index("q")] == 0.25
    assert share[rows.index("output"), columns.index("head")] == 1 / 300
    assert share[rows.index("layer 0"), columns.index("q")] == 0
    assert math.isnan(share[rows.index("input"), columns.index("q")])


def test_the_picture_is_a_png_and_replaces_nothing(channels, tmp_path):
    path = tmp_path / "map.png"
    draw_channel_map(channels, path, "where")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ActError, match="exists already"):
        draw_channel_map(channels, path, "where")

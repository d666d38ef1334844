"""The parameters behind expert channels are the rows that one would write into by hand."""

from __future__ import annotations

import pytest
import torch
from experts_reference import expert_weights
from tiny_families import SOME_WITH_EXPERTS, expert_families, tiny

from act.models.channels import ChannelSpace


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in SOME_WITH_EXPERTS.split() else [pytest.mark.slow, pytest.mark.thorough])
        for name in expert_families()
    ],
)
def test_slices_are_the_rows_by_hand(family):
    model = tiny(family)
    expected, parameters = expert_weights(model), dict(model.named_parameters())
    sites = {site.name: site for site in ChannelSpace.from_model(model) if site.expert is not None}
    assert sites.keys() == expected.keys()
    for name, views in expected.items():
        found = [part.matrix(parameters) for part in sites[name].parameters]
        for one, other in zip(found, views, strict=True):
            assert torch.equal(one, other.reshape(len(other), -1)) and one.data_ptr() == other.data_ptr(), name

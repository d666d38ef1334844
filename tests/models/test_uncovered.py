"""What lies behind no channel, family by family, against a list that is kept beside this file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from families import expert_families, families, shapes

from act.models.channels import ChannelSpace

KEPT = Path(__file__).with_name("uncovered.txt")
"""A line for each family that has such parameters, named by the last two parts of their paths."""


@pytest.mark.slow
@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="the list is of transformers 5")
def test_no_family_gains_a_parameter_that_nobody_covers():
    kept = dict(line.split(": ") for line in KEPT.read_text(encoding="utf-8").splitlines())
    found = {}
    for family in sorted({*families(), *expert_families()}):
        try:
            model = shapes(family)
        except Exception:
            continue
        names = ChannelSpace.from_model(model).coverage.uncovered
        ends = {".".join(re.sub(r"\.\d+(?=\.)", "", name).split(".")[-2:]) for name in names}
        found[family] = " ".join(sorted(ends))
    assert {family: ends for family, ends in found.items() if ends} == kept

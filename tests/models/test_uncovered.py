"""What lies behind no channel, family by family, against a list that is kept beside this file, with the reasons."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from tiny_families import expert_families, families, shapes

from act.models.channels import ChannelSpace

KEPT = Path(__file__).with_name("uncovered.txt")
"""A line for each reason: the reason, and the families with their parameters, by the last two parts of their paths."""


@pytest.mark.slow
@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="the list is of transformers 5")
def test_no_family_gains_a_parameter_that_nobody_covers():
    found: dict[str, set[str]] = {}
    for family in sorted({*families(), *expert_families()}):
        try:
            model = shapes(family)
        except Exception:
            continue
        coverage = ChannelSpace.from_model(model).coverage
        assert coverage.reasons.keys() == coverage.uncovered.keys()
        for name, reason in coverage.reasons.items():
            end = ".".join(re.sub(r"\.\d+(?=\.)", "", name).split(".")[-2:])
            found.setdefault(reason, set()).add(f"{family}:{end}")
    lines = [f"{reason}: {' '.join(sorted(ends))}" for reason, ends in sorted(found.items())]
    assert lines == KEPT.read_text(encoding="utf-8").splitlines()

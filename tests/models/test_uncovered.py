"""What lies behind no channel, and what parameters scale, family by family, against lists kept beside this file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from tiny_families import expert_families, families, shapes

from act.models.channels import ChannelSpace

UNCOVERED = Path(__file__).with_name("uncovered.txt")
"""A line for each reason: the reason, and the families with their parameters, by the last two parts of their paths."""
SCALED = Path(__file__).with_name("scaled.txt")
"""A line for each parameter and the site that it scales, both as above, with the families; test_what_scales.py tries them."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not transformers.__version__.startswith("5.23."), reason="the lists are of transformers 5.23"),
]


@pytest.fixture(scope="module")
def spaces() -> dict[str, ChannelSpace]:
    found = {}
    for family in sorted({*families(), *expert_families(), "mpnet (masked)"}):
        try:
            model = shapes(family)
        except Exception:
            continue
        found[family] = ChannelSpace.from_model(model)
    return found


def end_of(name: str) -> str:
    return ".".join(re.sub(r"\.\d+(?=\.)", "", name).split(".")[-2:])


def test_no_family_gains_a_parameter_that_nobody_covers(spaces):
    found: dict[str, set[str]] = {}
    for family, space in spaces.items():
        assert space.coverage.reasons.keys() == space.coverage.uncovered.keys()
        for name, reason in space.coverage.reasons.items():
            found.setdefault(reason, set()).add(f"{family}:{end_of(name)}")
    lines = [f"{reason}: {' '.join(sorted(ends))}" for reason, ends in sorted(found.items())]
    assert lines == UNCOVERED.read_text(encoding="utf-8").splitlines()


def test_what_a_parameter_scales_stays(spaces):
    found: dict[str, dict[str, None]] = {}
    for family, space in spaces.items():
        for site in (site for site in space if site.scales):
            found.setdefault(f"{end_of(site.name)} -> {end_of(site.scales)}", {})[family] = None
    lines = [f"{pair}: {' + '.join(families)}" for pair, families in sorted(found.items())]
    assert lines == SCALED.read_text(encoding="utf-8").splitlines()

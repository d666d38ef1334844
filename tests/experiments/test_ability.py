"""The experiment: a short run of the whole, and that every rule moves as many channels as its controls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.thorough
def test_a_short_run_has_the_promised_fields(tmp_path):
    out = tmp_path / "ability.json"
    result = subprocess.run(
        [sys.executable, "experiments/ability.py", "--quick", "--seeds", "0", "--json", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())
    assert set(figures["controls"]) < set(figures["recovery"]) == set(figures["gain_at_95"])
    assert set(figures["merge_controls"]) < set(figures["merging"])
    for part in ("recovery", "merging"):
        assert all(0 <= by_seed["0"] <= 1 for by_seed in figures[part].values())
    assert figures["recovery"]["attribution / cost"]["0"] > figures["recovery"]["random"]["0"]
    assert {"settings", "machine", "command", "analysis", "tuned", "verdict"} <= set(figures)


def test_every_rule_and_control_moves_as_many_channels(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import ability

    lab = ability.InventedLab(ability.QUICK, tmp_path, seed=0)
    for share in (0.01, 0.3):
        sizes = {rule: int(lab.top(score, share).sum()) for rule, score in lab.scores().items()}
        assert set(sizes.values()) == {round(share * len(lab.space))}
        assert {name for name in ability.CONTROLS if name in sizes} and {"random", "weight-diff"} <= set(sizes)

"""The one-call GPU proof, rehearsed on the CPU: every phase runs through the code that a GPU will run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_rehearsal_goes_through_every_phase(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--minutes", "0.7", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert result["device"] == "cpu" and result["rehearsal"] is True
    assert list(result["phases"]) == ["environment", "correctness", "forwards", "kernels", "sanitizer"]
    assert not any("error" in phase for phase in result["phases"].values())
    found = {name: phase["found"] for name, phase in result["phases"].items()}
    assert found["environment"]["backends"] and found["environment"]["commit"] is not None
    assert found["correctness"]["passed"] > 0 and found["correctness"]["failed"] == 0
    forwards = found["forwards"]
    assert forwards["plain_s"] > 0 and forwards["profiled_s"] > 0 and "add_norm" in forwards["paths"]
    assert all(error.startswith(("cut", "RuntimeError: nnsight")) for error in forwards["errors"].values())
    assert {row["op"] for row in found["kernels"]} >= {"small", "column_moments", "pair_moments", "blend_rows"}
    assert not any("error" in row for row in found["kernels"])
    assert result["targets"] and {row["state"] for row in result["targets"]} == {"not measured"}


def test_a_machine_without_a_gpu_is_told_how_to_rehearse():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert run.returncode == 2 and "no GPU is available" in run.stderr and "--device cpu" in run.stderr

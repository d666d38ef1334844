"""The one-call GPU proof, rehearsed on the CPU: every phase runs through the code that a GPU will run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "gpu.py"
PHASES = ["environment", "correctness", "forwards", "kernels", "sanitizer"]

WITHOUT = """
import runpy, sys
absent = {"pytest", "typer", "rich", "matplotlib", "nnsight", "greenlet", "hypothesis", "accelerate"}

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, *arguments)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Finder(finder) for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

BROKEN = """
import json, sys, time
sys.path += sys.argv[1:]
import torch
from kernels.correctness import all_cases, by_checks, by_tests
from act_kernels import native, reference

right = native.pair_moments
def wrong(donor, target, moments, mask, swapped):
    right(donor, target, moments, mask, swapped)
    moments[2, 1, -1] += 1e-3
native.pair_moments = wrong
cases = [case for case in all_cases() if case[0] in ("column_moments", "pair_moments") and case[1] == (7, 123)]
device, until = torch.device("cpu"), time.monotonic() + 120
print(json.dumps([by_checks(["native"], device, until, cases), by_tests(["native"], device, until)]))
"""


def rehearse(folder: Path, minutes: str, *before: str) -> dict:
    command = [sys.executable, *before, str(SCRIPT), "--device", "cpu", "--minutes", minutes, "--out", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    result = json.loads((folder / "cpu.json").read_text())
    assert result["device"] == "cpu" and result["rehearsal"] is True
    assert list(result["phases"]) == PHASES
    assert not any("error" in phase for phase in result["phases"].values())
    assert result["targets"] and {row["state"] for row in result["targets"]} == {"not measured"}
    return {name: phase["found"] for name, phase in result["phases"].items()}


@pytest.mark.slow
def test_rehearsal_goes_through_every_phase(tmp_path):
    found = rehearse(tmp_path, "0.7")
    assert found["environment"]["backends"] and found["environment"]["commit"] is not None
    correctness = found["correctness"]
    assert correctness["failed"] == 0 and correctness["checks"]["passed"] > 0
    assert correctness["tests"]["passed"] > 0, correctness["tests"]
    forwards = found["forwards"]
    assert forwards["plain_s"] > 0 and forwards["profiled_s"] > 0 and "add_norm" in forwards["paths"]
    assert all(error.startswith(("cut", "RuntimeError: nnsight")) for error in forwards["errors"].values())
    assert all(each["profiled_s"] > 0 for each in forwards["sizes"].values()) and len(forwards["sizes"]) == 3
    assert {row["op"] for row in found["kernels"]} >= {
        "small",
        "column_moments",
        "segment_moments",
        "pair_moments",
        "blend_rows",
    }
    assert not any("error" in row for row in found["kernels"])


@pytest.mark.slow
@pytest.mark.thorough
def test_what_is_not_installed_is_left_out_with_a_reason(tmp_path):
    script = tmp_path / "without.py"
    script.write_text(WITHOUT)
    found = rehearse(tmp_path, "0.3", str(script))
    assert not found["environment"]["pytest"] and not found["environment"]["greenlet"]
    assert found["correctness"]["tests"] == {"skipped": "pytest is not installed"}
    assert found["correctness"]["checks instead of tests"]["passed"] > 0 and found["correctness"]["failed"] == 0
    errors = found["forwards"]["errors"]
    assert "profiled" not in errors and found["forwards"]["profiled_s"] > 0
    assert errors["pair"].startswith(("ModuleNotFoundError", "cut"))
    assert errors["nnsight"].startswith(("RuntimeError: nnsight is not installed", "cut"))


@pytest.mark.slow
def test_a_wrong_kernel_is_found(tmp_path):
    folders = [str(BENCHMARKS.parent), str(BENCHMARKS.parent / "tests")]
    run = subprocess.run([sys.executable, "-c", BROKEN, *folders], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    checks, tests = json.loads(run.stdout)
    assert checks["failed"] == checks["passed"] == 15
    assert all("native pair_moments" in failure and "relative error" in failure for failure in checks["failures"])
    assert tests["failed"] > 0 and tests["passed"] > tests["failed"]
    assert all("pair" in failure or "every_op" in failure for failure in tests["failures"])


def test_a_machine_without_a_gpu_is_told_how_to_rehearse():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert run.returncode == 2 and "no GPU is available" in run.stderr and "--device cpu" in run.stderr

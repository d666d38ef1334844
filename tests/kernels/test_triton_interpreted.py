"""Runs the tests of this folder on Triton's interpreter, in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import act_kernels
from act_kernels import backends
from kernels.interpreter import INTERPRETED

FOLDER = Path(__file__).parent
OPS = [name for name in act_kernels.__all__ if hasattr(torch.ops.act_kernels, name)]


@pytest.mark.slow
@pytest.mark.parametrize("cases", ["some", pytest.param("all", marks=pytest.mark.thorough)])
@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreted one")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(backends._version_refusal() is not None, reason=str(backends._version_refusal()))
def test_every_test_of_the_ops_passes_on_interpreted_triton(cases, tmp_path):
    report = tmp_path / "report.xml"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(FOLDER)],
        cwd=FOLDER.parents[1],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "ACT_INTERPRET": cases,
            "ACT_KERNELS_BACKEND": "triton",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-8000:]
    ran = ElementTree.parse(report).iter("testcase")
    passed = [f"{case.get('classname')}.{case.get('name')}" for case in ran if case.find("skipped") is None]
    untested = [op for op in OPS if not any(op in name for name in passed)]
    assert OPS and not untested, f"no test of {untested} ran on interpreted Triton, of {len(passed)} that passed"

"""Runs the tests of this folder on Triton's interpreter, in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from interpreter import INTERPRETED

FOLDER = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreted one")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_every_test_of_the_ops_passes_on_interpreted_triton():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "ACT_KERNELS_BACKEND": "triton", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-8000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) >= 400, run.stdout[-1000:]

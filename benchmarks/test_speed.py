"""The benchmarks in a short form, through pytest-benchmark: ``pytest benchmarks``."""

from __future__ import annotations

from typing import Any

import accuracy
import pytest
import torch
from cases import CASES
from measure import DTYPES
from overhead import calls_of


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("op", CASES)
def test_kernel(benchmark: Any, op: str, dtype: str) -> None:
    """T = 2048, C = 2048, with statistics."""
    x, other = (torch.randn(2048, 2048).to(DTYPES[dtype]) for _ in range(2))
    benchmark.group = f"{op} {dtype}"
    benchmark(CASES[op](x, other).op)


@pytest.mark.parametrize("call", ["plain", "body", "hooks", "var_mean", "nnsight", "profiled", "half", "pair"])
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_overhead(benchmark: Any, name: str, call: str) -> None:
    """One batch of 8 x 256 tokens in bfloat16."""
    benchmark.group = f"{name}, bfloat16"
    with calls_of(name, "bfloat16") as calls:
        if call not in calls:
            pytest.skip("nnsight is not installed: pip install '.[bench]'")
        benchmark.pedantic(calls[call], rounds=3, warmup_rounds=1)


def test_accuracy(benchmark: Any) -> None:
    """A tenth of a million rows: mean and variance are right to a millionth, and the bits are the same twice."""
    result = benchmark.pedantic(accuracy.measure, (100_000, torch.float32), rounds=1)
    assert result["bit_equal"] and max(result["max_rel_error_mean"], result["max_rel_error_var"]) <= 1e-6

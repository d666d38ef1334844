"""Whatever a file holds, its readers refuse it in a sentence, or read what it says."""

from __future__ import annotations

import os
import time
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .kinds import Files, files_in

KINDS = (
    "profile",
    "attribution",
    "channel set",
    "patch",
    "checkpoint",
    "token cache",
    "recipe",
    "index",
    "config",
    "corpus",
)
MANY = int(os.environ.get("FUZZ_MUTATIONS", "60"))  # of each kind in the slow test; python -m fuzz.table takes more


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    return files_in(tmp_path_factory.mktemp("fuzz") / "files")


def fuzz(files: Files, name: str, mutations: int) -> None:
    kind = files.kinds[name]
    expected = kind.read()
    kind.restore()
    seen = set()

    @settings(
        max_examples=mutations, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        start = time.perf_counter()
        seen.add(kind.outcome(Random(seed), expected))
        assert "different" not in seen and time.perf_counter() - start < 10

    check()
    assert len(seen) > (name == "corpus")  # the errors of records are part of what is read
    assert kind.read() == expected
    kind.restore()


@pytest.mark.parametrize("name", KINDS)
def test_a_few_mutations(files, name):
    fuzz(files, name, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_mutations(files, name):
    fuzz(files, name, MANY)

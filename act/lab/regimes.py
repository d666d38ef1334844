"""The models that an experiment needs, trained once per seed and kept in a cache folder.

* ``base`` knows the six old skills in five languages;
* ``target`` is the base after more training on English alone, with two new skills, and forgot the other languages;
* ``English``, ``German``, ``Swahili`` are siblings to be merged: specialists of the base in one language each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from act.lab.language import NEW_SKILLS, OLD_SKILLS
from act.lab.models import CHECKPOINTS, load, tiny_llama
from act.lab.tokenizer import build_tokenizer
from act.lab.train import BASE_STEPS, train_base, train_specialist, train_target

Ability = tuple[str, tuple[str, ...]]

GERMAN: Ability = ("German", OLD_SKILLS)
SPANISH: Ability = ("Spanish", OLD_SKILLS)
SWAHILI: Ability = ("Swahili", OLD_SKILLS)
ENGLISH: Ability = ("English", OLD_SKILLS + NEW_SKILLS)
OLD_ENGLISH: Ability = ("English", OLD_SKILLS)
NEW_ENGLISH: Ability = ("English", NEW_SKILLS)

SIBLINGS = ("English", "German", "Swahili")
SIBLING_STEPS, SIBLING_RATE = 150, 1.5e-3


@dataclass(frozen=True)
class Regime:
    """The models of one seed; with ``base_steps=0``, base and target are the shipped ones, whatever the seed."""

    cache: Path
    seed: int
    base_steps: int = BASE_STEPS
    sibling_steps: int = SIBLING_STEPS

    def base(self) -> PreTrainedModel:
        """The model that knows all languages."""
        return self._cached("base")

    def target(self) -> PreTrainedModel:
        """The specialist that forgot German."""
        return self._cached("target")

    def sibling(self, language: str) -> PreTrainedModel:
        """A specialist in one language."""
        return self._cached(language)

    def _cached(self, name: str) -> PreTrainedModel:
        if not self.base_steps and name in ("base", "target"):
            return load(CHECKPOINTS / name)[0]
        short = self.base_steps != BASE_STEPS or self.sibling_steps != SIBLING_STEPS
        suffix = f"-{self.base_steps}-{self.sibling_steps}" if short else ""
        path = self.cache / f"{name}-{self.seed}{suffix}.safetensors"
        tokenizer = build_tokenizer()
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            model = self._trained(name)
            scratch = path.with_suffix(".partial")
            save_file({key: value.detach().contiguous() for key, value in model.named_parameters()}, scratch)
            scratch.rename(path)
        model = tiny_llama(tokenizer, self.seed)
        with torch.no_grad():
            for key, value in load_file(path).items():
                model.get_parameter(key).copy_(value)
        model.eval()
        return model

    def _trained(self, name: str) -> PreTrainedModel:
        tokenizer = build_tokenizer()
        if name == "base":
            return train_base(tokenizer, self.seed, self.base_steps)
        if name == "target":
            return train_target(self.base(), tokenizer, self.seed)[0]
        return train_specialist(self.base(), tokenizer, name, self.sibling_steps, SIBLING_RATE, self.seed)

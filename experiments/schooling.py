"""The models of real prose: a base in four languages, and specialists of it, trained once and kept in a cache folder.

A training saves its state as it goes, so that it can be stopped at any time and go on. Models are kept as they could be
shipped: Hugging Face folders in half precision, with their tokenizer, and ``training.json``, which tells what was done.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import torch
from laboratory import Unmade
from prose import LANGUAGES, Reading, TextsOf, Windows, train_tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from act.core.files import written_whole
from act.lab.mixing import Weights, put, weights
from act.lab.models import load, save, tiny_llama
from act.lab.train import optimizer_of, train_step, warm_cosine

BatchOf = Callable[[int], torch.Tensor]
"""Token ids ``[rows, width + 1]`` of a step."""


class Log(TypedDict):
    """What a training has done: steps, seconds, and bits per byte of validation texts after some of the steps."""

    step: int
    wall_s: float
    cpu_s: float
    validation: list[tuple[int, float]]


def taught(
    model: PreTrainedModel,
    batch: BatchOf,
    rate: Callable[[int], float],
    judge: Callable[[PreTrainedModel], float],
    *,
    steps: int,
    every: int,
    patience: int,
    state: Path,
) -> Log:
    """Train ``model`` in place for ``steps`` steps; going on where ``state`` was left, if that exists.

    ``judge`` looks at validation texts after ``every`` steps, and the model ends as it was when it judged best.
    Training stops early after ``patience`` looks without one that is better by 0.2 %; 0: never.
    """
    optimizer = optimizer_of(model)
    log: Log = {"step": 0, "wall_s": 0.0, "cpu_s": 0.0, "validation": []}
    best: Weights = weights(model)
    if state.exists():
        left = torch.load(state, weights_only=True)
        put(left["weights"], model)
        optimizer.load_state_dict(left["optimizer"])
        log, best = left["log"], left["best"]
    wall, cpu = time.perf_counter(), time.process_time()
    while log["step"] < steps and not _stopped([figure for _, figure in log["validation"]], patience):
        model.train()
        ids = batch(log["step"])
        train_step(model, optimizer, (ids, ids), rate(log["step"]))
        log["step"] += 1
        if log["step"] % every and log["step"] < steps:
            continue
        figure = judge(model)
        if figure < min((each for _, each in log["validation"]), default=float("inf")):
            best = weights(model)
        log["validation"].append((log["step"], figure))
        log["wall_s"] += time.perf_counter() - wall
        log["cpu_s"] += time.process_time() - cpu
        wall, cpu = time.perf_counter(), time.process_time()
        print(f"{state.stem}: step {log['step']}, {log['wall_s']:.0f} s, {figure:.3f}", file=sys.stderr, flush=True)
        with written_whole(state, force=True) as temporary:
            left = {"weights": weights(model), "optimizer": optimizer.state_dict(), "log": log, "best": best}
            torch.save(left, temporary)
    put(best, model)
    return log


def _stopped(figures: list[float], patience: int) -> bool:
    if not patience or len(figures) <= patience:
        return False
    return min(figures[-patience:]) > 0.998 * min(figures[:-patience])


class School:
    """The models of an experiment on prose; ``settings`` has their shape and how they are trained.

    While it is ``frozen``, it trains none.
    """

    frozen = False

    def __init__(self, settings: dict[str, Any], texts: TextsOf, cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        self.settings, self.texts, self.cache = settings, texts, cache

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The byte BPE of all models."""
        folder = self.cache / "tokenizer"
        if self.frozen and not folder.exists():
            raise Unmade(folder.name)
        if not folder.exists():
            with written_whole(folder, directory=True) as temporary:
                train_tokenizer(self.texts, self.settings["models"]["vocabulary"]).save_pretrained(temporary)
        return AutoTokenizer.from_pretrained(folder)

    def base(self, seed: int) -> PreTrainedModel:
        """A model that knows four languages: a quarter of each batch is of each."""
        given = self.settings["models"]
        steps, rows = given["base_steps"], given["base_rows"]

        def make() -> tuple[PreTrainedModel, BatchOf]:
            windows = [self.windows(language, seed) for language in LANGUAGES]
            each = rows // len(windows)
            return self.blank(seed), lambda step: torch.cat([some(step, each) for some in windows])

        def judge(model: PreTrainedModel) -> float:
            found = [self.reading(language, "validation").bits_per_byte(model) for language in LANGUAGES]
            return sum(found) / len(found)

        rate = given["base_rate"]
        return self._kept(
            f"base-{seed}",
            make,
            judge,
            rate=lambda step: warm_cosine(rate, step, steps),
            steps=steps,
            every=given["base_every"],
            patience=0,
        )

    def specialist(self, seed: int, ability: str) -> PreTrainedModel:
        """The base after more training on one ability alone, at a constant rate until validation stops improving."""
        given = self.settings["models"]

        def make() -> tuple[PreTrainedModel, BatchOf]:
            windows = self.windows(ability, seed)
            return copy.deepcopy(self.base(seed)), lambda step: windows(step, given["specialist_rows"])

        return self._kept(
            f"{ability}-{seed}",
            make,
            self.reading(ability, "validation").bits_per_byte,
            rate=lambda step: given["specialist_rate"],
            steps=given["specialist_steps"],
            every=given["specialist_every"],
            patience=given["specialist_patience"],
        )

    def blank(self, seed: int) -> PreTrainedModel:
        """A new model."""
        return tiny_llama(self.tokenizer, seed, **self.settings["models"]["shape"])

    def windows(self, ability: str, seed: int) -> Windows:
        """The training texts of an ability."""
        return Windows(self.tokenizer, self.texts(ability, "train"), self.settings["models"]["width"], seed)

    def reading(self, ability: str, split: str) -> Reading:
        """The texts of a split on which models are judged."""
        limit = self.settings["test_texts"] if split == "test" else self.settings["models"]["validation_texts"]
        return Reading(self.tokenizer, self.texts(ability, split)[:limit], self.settings["models"]["read_tokens"])

    def _kept(
        self,
        name: str,
        make: Callable[[], tuple[PreTrainedModel, BatchOf]],
        judge: Callable[[PreTrainedModel], float],
        *,
        rate: Callable[[int], float],
        steps: int,
        every: int,
        patience: int,
    ) -> PreTrainedModel:
        folder = self.cache / name
        if self.frozen and not folder.exists():
            raise Unmade(name)
        if not folder.exists():
            state = self.cache / f"{name}.state"
            model, batch = make()
            log = taught(model, batch, rate, judge, steps=steps, every=every, patience=patience, state=state)
            with written_whole(folder, directory=True) as temporary:
                save(model, self.tokenizer, temporary)
                (temporary / "training.json").write_text(json.dumps(log), encoding="utf-8")
            state.unlink()
        return load(folder)[0]

    def log(self, name: str) -> Log:
        """What the training of a model has done."""
        return json.loads((self.cache / name / "training.json").read_text(encoding="utf-8"))

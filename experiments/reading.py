"""A run on real prose: a specialist that forgot a language, its base, and the scores of every rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from laboratory import Lab, Scores, Unmade
from prose import MATHEMATICS, Reading, corpus_of, spread, tokens_of
from schooling import School
from torch import nn
from transformers import PreTrainedModel

from act.core.files import written_whole
from act.data.corpus import Corpus
from act.data.pieces import IGNORED, padded
from act.lab.frontier import Point
from act.lab.mixing import Weights, put, weights
from act.lab.train import optimizer_of, train_step
from act.profiling.measure import profile_pair
from act.ranking.attribution import attribution, fall_per_cost
from act.ranking.weights import random_scores, weight_diff

SPECIALISTS = (MATHEMATICS, "German", "French")
FORGOTTEN = {MATHEMATICS: ("German", "French"), "German": ("French", "Italian"), "French": ("German", "Italian")}
"""What each specialist is to get back, and the language on which the controls localise it wrongly."""


class ProseLab(Lab):
    """The run of one base and one specialist; ``forgotten`` is by default that of :data:`FORGOTTEN`.

    Figures are shares: of the bits per byte of the forgotten language that the specialist lost, and of those that it
    gained in what it was trained on. The target is therefore at (0, 1), and the donor, its base, at (1, 0).
    """

    def __init__(
        self,
        settings: dict[str, Any],
        cache: Path,
        school: School,
        seed: int,
        specialist: str,
        forgotten: tuple[str, str] | None = None,
        run: str = "",
    ) -> None:
        super().__init__(settings, cache, run or f"{seed}/{specialist}", seed)
        self.school, self.retained, self.frozen = school, specialist, school.frozen
        self.forgotten, self.wrong = forgotten or FORGOTTEN[specialist]
        self._others: dict[str, PreTrainedModel] = {}
        self._readings: dict[tuple[str, str], Reading] = {}
        self._bits: dict[tuple[str, str, str], torch.Tensor] = {}

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model that weights are put into."""
        model = self.school.blank(0)
        model.eval()
        return model

    @cached_property
    def donor_model(self) -> PreTrainedModel:
        return self.school.base(self.seed)

    @cached_property
    def target_model(self) -> PreTrainedModel:
        return self.school.specialist(self.seed, self.retained)

    @property
    def others(self) -> list[str]:
        """The other specialists, which a merge moves into the target."""
        return [name for name in SPECIALISTS if name != self.retained]

    def siblings(self) -> Sequence[PreTrainedModel]:
        return [self.target_model, *map(self.named, self.others)]

    def named(self, name: str) -> PreTrainedModel:
        """The ``base`` or a specialist."""
        if name in ("base", self.retained):
            return self.donor_model if name == "base" else self.target_model
        if name not in self._others:
            self._others[name] = self.school.specialist(self.seed, name)
        return self._others[name]

    def corpus(self, ability: str, count: int | None = None, skip: int = 0) -> Corpus:
        """The first training texts of an ability, or those after ``skip``."""
        texts = self.school.texts(ability, "train")[skip:][: count or self.settings["localize_texts"]]
        return corpus_of(self.school.tokenizer, texts, self.settings["models"]["width"], ability)

    def reading(self, ability: str, split: str) -> Reading:
        """The texts of an ability on which weights are judged."""
        if (ability, split) not in self._readings:
            self._readings[ability, split] = self.school.reading(ability, split)
        return self._readings[ability, split]

    def bits(self, mixed: Weights, ability: str, split: str) -> torch.Tensor:
        """The bits of each text with these weights, float64 ``[P]``."""
        put(mixed, self.model)
        return self.reading(ability, split).bits(self.model)

    def bits_of(self, name: str, ability: str, split: str) -> torch.Tensor:
        """The bits of each text for the ``base`` or a specialist."""
        if (name, ability, split) not in self._bits:
            self._bits[name, ability, split] = self.reading(ability, split).bits(self.named(name))
        return self._bits[name, ability, split]

    def come_back(self, mixed: Weights, language: str, split: str) -> float:
        """The share of the bits per byte of a language which the specialist lost that came back."""
        return self._share(self.bits(mixed, language, split), language, split, lost=True)

    def point(self, mixed: Weights, split: str) -> Point:
        kept = self._share(self.bits(mixed, self.retained, split), self.retained, split, lost=False)
        return Point(self.come_back(mixed, self.forgotten, split), kept)

    def _share(self, bits: torch.Tensor, ability: str, split: str, *, lost: bool) -> float:
        before, after = (self.bits_of(name, ability, split).sum() for name in ("base", self.retained))
        back = (after - bits.sum()) / (after - before)
        return float(back if lost else 1 - back)

    def look(self, mixed: Weights) -> dict[str, Any]:
        """The errors of both shares, what comes back of the other language, and how much less that is."""
        bits: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for ability in (self.forgotten, self.wrong, self.retained):
            before, after = (self.bits_of(name, ability, "test") for name in ("base", self.retained))
            bits[ability] = after - self.bits(mixed, ability, "test"), after - before

        def back(ability: str, times: torch.Tensor) -> torch.Tensor:
            come, gone = bits[ability]
            return (times @ come) / (times @ gone)

        def specific(times: torch.Tensor) -> torch.Tensor:
            return back(self.forgotten, times) - back(self.wrong, times)

        def error(figure: Callable[[torch.Tensor], torch.Tensor], ability: str) -> float:
            return spread(figure, len(bits[ability][0]))

        once = torch.ones(1, len(bits[self.forgotten][0]), dtype=torch.float64)
        return {
            "gain ±": error(partial(back, self.forgotten), self.forgotten),
            "retained ±": error(partial(back, self.retained), self.retained),
            "along": float(back(self.wrong, once)),
            "specific": float(specific(once)),
            "specific ±": error(specific, self.forgotten),  # the pages of two languages are the same pages
        }

    def abilities(self, mixed: Weights, split: str) -> dict[str, float]:
        """For each specialist's ability, where a merge stands between the better of the others (0) and it (1)."""
        found = {}
        for ability in SPECIALISTS:
            own = self.bits_of(ability, ability, split).sum()
            others = min(self.bits_of(name, ability, split).sum() for name in SPECIALISTS if name != ability)
            found[ability] = float((others - self.bits(mixed, ability, split).sum()) / (others - own))
        return found

    def tune(self, mixed: Weights, count: int, steps: int, rate: float) -> Weights:
        """Each step takes the first tokens of some of the texts, half of them forgotten and half retained."""
        tokenizer = self.school.tokenizer
        width, half = self.settings["models"]["width"], self.settings["tune_rows"] // 2
        abilities = (self.forgotten, self.retained)
        texts = [tokens_of(tokenizer, self.school.texts(ability, "train")[:count]) for ability in abilities]
        generator = torch.Generator().manual_seed(self.seed)
        put(mixed, self.model)
        optimizer = optimizer_of(self.model)
        for _ in range(steps):
            rows = [torch.randperm(len(text), generator=generator)[:half].tolist() for text in texts]
            chosen = [text[row][:width] for text, places in zip(texts, rows, strict=True) for row in places]
            ids, present = padded(chosen, tokenizer.pad_token_id)
            train_step(self.model, optimizer, (ids, ids.where(present.bool(), IGNORED)), rate)
        return weights(self.model)

    def worth(self, model: nn.Module, role: str, split: str) -> float:
        ability = self.forgotten if role == "forgotten" else self.wrong
        return -float(self.reading(ability, split).bits(model).sum())

    def texts(self) -> dict[str, Corpus]:
        return {
            "forgotten": self.corpus(self.forgotten),
            "again": self.corpus(self.forgotten, skip=self.settings["localize_texts"]),
            "other": self.corpus(self.wrong),
            "retained": self.corpus(self.retained),
        }

    def scores(self, count: int | None = None) -> Scores:
        name = f"scores-{count or self.settings['localize_texts']}"
        found: Scores = self._kept_tensors(name, partial(self._scores, count))
        return found

    def _kept_tensors(self, name: str, make: Callable[[], Any]) -> Any:
        """As :meth:`kept`, of tensors."""
        path = self.folder / f"{name}.pt"
        if self.frozen and not path.exists():
            raise Unmade(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path, force=True) as temporary:
                torch.save(make(), temporary)
        return torch.load(path, weights_only=True)

    def _scores(self, count: int | None) -> Scores:
        donor, target, std = self.donor_model, self.target_model, self.std
        texts = [self.corpus(name, count) for name in (self.forgotten, self.wrong, self.retained)]
        lost, other, kept = (profile_pair(donor, target, text, swap=True) for text in texts)
        fall, wrong_fall, cost = (attribution(donor, target, text) for text in texts)
        paired, ours = lost.mean_abs_diff, fall_per_cost(fall, cost)
        apart = weight_diff(donor, target, self.space)
        return {
            "attribution / cost": ours,
            "match": self.ranked("match", lost, kept),
            "match-contrast": self.ranked("match-contrast", lost, kept),
            "match, no text to keep": self.ranked("match", lost),
            "attribution": -fall.mean,
            "paired": paired,
            "paired / std": std(paired),
            "contrast / std": std(paired) - std(kept.mean_abs_diff),
            "weight-diff": apart,
            "random": random_scores(self.space, self.seed),
            "rows shuffled: attribution / cost": self.shuffled(ours),
            "rows shuffled: weight-diff": self.shuffled(apart),
            "wrong ability: attribution / cost": fall_per_cost(wrong_fall, cost),
            "wrong ability: match": self.ranked("match", other, kept),
            "wrong ability: paired": other.mean_abs_diff,
        }

    def merge_scores(self) -> Mapping[str, Sequence[torch.Tensor]]:
        found: dict[str, list[torch.Tensor]] = self._kept_tensors("merge-scores", self._merge_scores)
        return found

    def _merge_scores(self) -> dict[str, list[torch.Tensor]]:
        into, space = self.target_model, self.space
        rest = {name: self.named(name) for name in self.others}
        texts = {name: self.corpus(name) for name in SPECIALISTS}
        own = texts[self.retained]
        fall = [attribution(donor, into, texts[name]) for name, donor in rest.items()]
        cost = [attribution(donor, into, own) for donor in rest.values()]
        pairs = [profile_pair(donor, into, texts[name], swap=True) for name, donor in rest.items()]
        keeps = [profile_pair(donor, into, own, swap=True) for donor in rest.values()]
        paired, kept = ([one.mean_abs_diff for one in found] for found in (pairs, keeps))
        apart = [weight_diff(donor, into, space) for donor in rest.values()]
        return {
            "attribution / cost": [fall_per_cost(*both) for both in zip(fall, cost, strict=True)],
            "match": [self.ranked("match", *both) for both in zip(pairs, keeps, strict=True)],
            "match-contrast": [self.ranked("match-contrast", *both) for both in zip(pairs, keeps, strict=True)],
            "paired": paired,
            "paired / std": [self.std(one) for one in paired],
            "contrast / std": [self.std(one) - self.std(other) for one, other in zip(paired, kept, strict=True)],
            "weight-diff": apart,
            "rows shuffled: weight-diff": [self.shuffled(one) for one in apart],
            "random": [random_scores(space, self.seed + 100 * number) for number in range(len(rest))],
        }

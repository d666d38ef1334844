"""The whole method on the shipped models: give the specialist its German back, and compare with simpler changes.

The target is a specialist of the base: it learnt two new skills in English and forgot the other languages. The ability
to recover is six skills in German; the ability to retain is all eight in English. Settings were chosen on validation
records (``TOP`` of 1 to 30 %, ``STRENGTH`` of 0.4 to 1); figures are of test records, which are used for nothing else.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.data.corpus import Corpus
from act.editing.interpolation import interpolate
from act.editing.transfer import transfer
from act.lab.evaluate import exact_match
from act.lab.frontier import Point, best_keeping
from act.lab.language import NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS, load
from act.lab.tokenizer import corpus_of
from act.profiling.measure import profile_pair
from act.ranking.channel_set import ChannelSet
from act.ranking.rank import rank

FORGOTTEN = ("German", OLD_SKILLS)
RETAINED = ("English", OLD_SKILLS + NEW_SKILLS)
LOCALIZE_RECORDS, TEST_RECORDS = 128, 512
TOP, STRENGTH, SEED = 0.05, 1.0, 0
INTERPOLATIONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)

Figures = dict[str, float]


@dataclass(frozen=True)
class Demo:
    """Exact match, 0 to 1, of the forgotten and the retained ability for every model, and what was transferred."""

    before: Figures
    after: Figures
    donor: Figures
    controls: dict[str, Figures]
    interpolation: float
    channels: ChannelSet
    seconds: float


def run(say: Callable[[str], None] = lambda step: None) -> Demo:
    """Profile, rank, transfer and evaluate. ``say`` is called with each step; the figures are the same every time."""
    start = time.perf_counter()
    donor, tokenizer = load(CHECKPOINTS / "base")
    target, _ = load(CHECKPOINTS / "target")

    say("profiling donor and target in lockstep, on German (forgotten) and on English (to retain)")
    pair, keep = (profile_pair(donor, target, _corpus(ability, tokenizer)) for ability in (FORGOTTEN, RETAINED))
    say("ranking the channels: difference on German minus difference on English")
    channels = rank(pair, "paired", TOP, keep=keep)

    say("testing the specialist and the base")
    before, donor_figures = (_figures(model, tokenizer) for model in (target, donor))
    say(f"transferring {len(channels)} channels, and testing again")
    after = _figures_after(donor, target, tokenizer, channels)
    say("testing the controls: random and weight-difference channels, interpolation of the whole model")
    controls = {
        "random": _figures_after(donor, target, tokenizer, rank(pair, "random", TOP, seed=SEED)),
        "weight-diff": _figures_after(
            donor, target, tokenizer, rank(pair, "weight-diff", TOP, donor=donor, target=target)
        ),
    }
    strength = _best_interpolation(donor, target, tokenizer)
    controls["interpolation"] = _figures(_interpolated(donor, target, strength), tokenizer)
    return Demo(before, after, donor_figures, controls, strength, channels, round(time.perf_counter() - start, 1))


def _corpus(ability: tuple[str, tuple[str, ...]], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    language, skills = ability
    return corpus_of(examples(language, skills, LOCALIZE_RECORDS), tokenizer, language)


def _figures(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str = "test") -> Figures:
    return {
        name: exact_match(model, tokenizer, examples(language, skills, TEST_RECORDS, split=split))
        for name, (language, skills) in (("forgotten", FORGOTTEN), ("retained", RETAINED))
    }


def _figures_after(
    donor: PreTrainedModel, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, channels: ChannelSet
) -> Figures:
    patch = transfer(donor, target, channels, STRENGTH)
    figures = _figures(target, tokenizer)
    patch.revert(target)
    return figures


def _best_interpolation(donor: PreTrainedModel, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """The strength that recovers most on validation records while it keeps enough, for a fair control."""
    tried = {
        strength: Point(**_figures(_interpolated(donor, target, strength), tokenizer, "validation"))
        for strength in INTERPOLATIONS
    }
    best = best_keeping(tried, Point(**_figures(target, tokenizer, "validation")))
    return max(tried, key=lambda strength: tried[strength].forgotten) if best is None else best


def _interpolated(donor: PreTrainedModel, target: PreTrainedModel, strength: float) -> PreTrainedModel:
    mixed = copy.deepcopy(target)
    interpolate(mixed, [donor], strength)
    return mixed

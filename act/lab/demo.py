"""The whole method on the shipped models: give the specialist its German back, and compare with simpler changes.

The target is a specialist of the base: it learnt two new skills in English and forgot the other languages. The ability
to recover is six skills in German; the ability to retain is all eight in English. Settings were chosen on validation
records, for the method (``TOP`` of 1 to 30 %, ``STRENGTH`` of 0.4 to 1) and for the interpolation, which recovers most
there at 30 % of 5 to 40 % while it keeps enough; figures are of test records, which are used for nothing else.
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
from act.lab.evaluate import Exam
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
INTERPOLATION = 0.3

Figures = dict[str, float]
Exams = dict[str, Exam]


@dataclass(frozen=True)
class Demo:
    """Exact match, 0 to 1, of the forgotten and the retained ability for every model, and what was transferred."""

    before: Figures
    after: Figures
    donor: Figures
    controls: dict[str, Figures]
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

    say(f"testing the specialist and the base, on {TEST_RECORDS} records of each")
    exams = _exams(tokenizer, "test")
    before, donor_figures = (_figures(model, exams) for model in (target, donor))
    say(f"transferring {len(channels)} channels, and testing again")
    after = _figures_after(donor, target, exams, channels)
    say("testing the controls: random and weight-difference channels, interpolation of the whole model")
    controls = {
        "random": _figures_after(donor, target, exams, rank(pair, "random", TOP, seed=SEED)),
        "weight-diff": _figures_after(donor, target, exams, rank(pair, "weight-diff", TOP, donor=donor, target=target)),
    }
    controls["interpolation"] = _figures(_interpolated(donor, target, INTERPOLATION), exams)
    return Demo(before, after, donor_figures, controls, channels, round(time.perf_counter() - start, 1))


def _corpus(ability: tuple[str, tuple[str, ...]], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    language, skills = ability
    return corpus_of(examples(language, skills, LOCALIZE_RECORDS), tokenizer, language)


def _exams(tokenizer: PreTrainedTokenizerBase, split: str) -> Exams:
    """The records of a split, drawn and tokenised once for all models."""
    return {
        name: Exam(tokenizer, examples(language, skills, TEST_RECORDS, split=split))
        for name, (language, skills) in (("forgotten", FORGOTTEN), ("retained", RETAINED))
    }


def _figures(model: PreTrainedModel, exams: Exams) -> Figures:
    return {name: exam(model) for name, exam in exams.items()}


def _figures_after(donor: PreTrainedModel, target: PreTrainedModel, exams: Exams, channels: ChannelSet) -> Figures:
    patch = transfer(donor, target, channels, STRENGTH)
    figures = _figures(target, exams)
    patch.revert(target)
    return figures


def _interpolated(donor: PreTrainedModel, target: PreTrainedModel, strength: float) -> PreTrainedModel:
    mixed = copy.deepcopy(target)
    interpolate(mixed, [donor], strength)
    return mixed

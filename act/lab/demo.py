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
from act.evaluation.evaluate import Evaluation
from act.lab.evaluate import Exam
from act.lab.language import NEW_SKILLS, OLD_SKILLS, examples
from act.lab.models import CHECKPOINTS, load
from act.lab.tokenizer import corpus_of
from act.profiles.profile import PairProfile
from act.profiling.measure import profile_pair
from act.ranking.channel_set import ChannelSet
from act.ranking.rank import rank

FORGOTTEN = ("German", OLD_SKILLS)
RETAINED = ("English", OLD_SKILLS + NEW_SKILLS)
LOCALIZE_RECORDS, TEST_RECORDS = 128, 512
TOP, STRENGTH, SEED = 0.05, 1.0, 0
INTERPOLATION = 0.3

ABILITIES = {"forgotten": FORGOTTEN, "retained": RETAINED}

Figures = dict[str, float]
Read = dict[str, Evaluation]
Exams = dict[str, Exam]


@dataclass(frozen=True)
class Demo:
    """What the models solve, and what was transferred.

    Attributes:
        read: the evaluations on test records, by model (``target``, ``act``, ``donor``, the controls) and ability
            (``forgotten``, ``retained``).
        moved: the channels transferred, by the name of the model that they made; those of ``act`` first.
        pair, keep: the profiles on text of the forgotten and of the retained ability.
    """

    read: dict[str, Read]
    moved: dict[str, ChannelSet]
    pair: PairProfile
    keep: PairProfile
    seconds: float

    def figures(self, model: str) -> Figures:
        """Exact match of a model, 0 to 1, by ability."""
        return {name: _share(one) for name, one in self.read[model].items()}


def run(say: Callable[[str], None] = lambda step: None) -> Demo:
    """Profile, rank, transfer and evaluate. ``say`` is called with each step; the figures are the same every time."""
    start = time.perf_counter()
    donor, tokenizer = load(CHECKPOINTS / "base")
    target, _ = load(CHECKPOINTS / "target")

    say("profiling donor and target in lockstep, on German (forgotten) and on English (to retain)")
    pair, keep = (profile_pair(donor, target, _corpus(ability, tokenizer)) for ability in (FORGOTTEN, RETAINED))
    say("ranking the channels: difference on German minus difference on English")
    moved = {
        "act": rank(pair, "paired", TOP, keep=keep),
        "random": rank(pair, "random", TOP, seed=SEED),
        "weight-diff": rank(pair, "weight-diff", TOP, donor=donor, target=target),
    }

    say(f"testing the specialist and the base, on {TEST_RECORDS} records of each")
    exams = _exams(tokenizer, "test")
    read = {"target": _read(target, exams, "target")}
    say(f"transferring {len(moved['act'])} channels and as many for each control, and testing again")
    read |= {name: _read_after(donor, target, exams, name, channels) for name, channels in moved.items()}
    read["interpolation"] = _read(_interpolated(donor, target, INTERPOLATION), exams, "interpolation")
    read["donor"] = _read(donor, exams, "donor")
    return Demo(read, moved, pair, keep, round(time.perf_counter() - start, 1))


def _corpus(ability: tuple[str, tuple[str, ...]], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    language, skills = ability
    return corpus_of(examples(language, skills, LOCALIZE_RECORDS), tokenizer, language)


def _exams(tokenizer: PreTrainedTokenizerBase, split: str) -> Exams:
    """The records of a split, drawn and tokenised once for all models."""
    return {
        name: Exam(tokenizer, examples(language, skills, TEST_RECORDS, split=split))
        for name, (language, skills) in ABILITIES.items()
    }


def _read(model: PreTrainedModel, exams: Exams, name: str) -> Read:
    return {ability: exam.read(model, name, ABILITIES[ability][0]) for ability, exam in exams.items()}


def _share(one: Evaluation) -> float:
    assert one.right is not None
    return float(one.right.double().mean())


def _read_after(donor: PreTrainedModel, target: PreTrainedModel, exams: Exams, name: str, channels: ChannelSet) -> Read:
    patch = transfer(donor, target, channels, STRENGTH)
    read = _read(target, exams, name)
    patch.revert(target)
    return read


def _interpolated(donor: PreTrainedModel, target: PreTrainedModel, strength: float) -> PreTrainedModel:
    mixed = copy.deepcopy(target)
    interpolate(mixed, [donor], strength)
    return mixed

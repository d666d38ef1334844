"""The whole method on real prose: give a specialist of mathematics its German back, and compare with simpler changes.

The target is a specialist of the base: it went on with problems of mathematics alone, and forgot the languages that the
base reads. Channels are ranked on training texts. How much is moved is chosen on validation texts, for every method in
the same way: as much as keeps :data:`act.evaluation.kept.KEPT` of the mathematics. Figures are of test texts, which are
used for nothing else.
"""

from __future__ import annotations

import bisect
import copy
import gzip
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act.data.corpus import Corpus
from act.editing.interpolation import interpolate
from act.editing.transfer import transfer
from act.evaluation.choice import recovered
from act.evaluation.evaluate import Evaluation, evaluate
from act.evaluation.generation import generate
from act.evaluation.kept import KEPT, Share, kept_of
from act.lab.models import CHECKPOINTS, load
from act.profiles.attribution import AttributionProfile
from act.profiling.attribution import attribute
from act.profiling.measure import profile_pair
from act.ranking.channel_set import ChannelSet
from act.ranking.rank import rank

PROSE = CHECKPOINTS / "prose"
"""The models, ``base`` (the donor) and ``mathematics`` (the specialist), and the texts: ``german-train.jsonl.gz``, …"""

FORGOTTEN, RETAINED = "german", "mathematics"
FINDERS = ("attribution", "match-contrast", "match", "paired")
OURS = FINDERS[0]
# The grid, strength 1 and the finders were settled on validation texts, too; prompts are the first test texts.
SHARES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.18, 0.21, 0.25, 0.3)
"""How much a method may move: of the channels, each all the way to the donor; an interpolation, of the way."""

SEED = 0
PROMPT_CHARACTERS, WRITTEN_TOKENS = 60, 24


@dataclass(frozen=True)
class Figures:
    """What a model is worth on held-out texts.

    Attributes:
        recovered: the share of the bits per byte of German which the target lost that came back: 0 for the target, 1
            for the donor; with its standard error over texts.
        kept: the share of the bits per byte of mathematics which the target gained that is left: 1 for the target, 0
            for the donor.
        bits: bits per byte, by ability.
    """

    recovered: Share
    kept: Share
    bits: Mapping[str, float]


@dataclass(frozen=True)
class Method:
    """How much a method moves (0 where even the least keeps too little), and what that gives on test texts."""

    share: float
    figures: Figures


@dataclass(frozen=True)
class Written:
    """The beginning of a test text, and how each model goes on: ``target``, ``mended``, ``donor``."""

    prompt: str
    by_model: Mapping[str, str]


@dataclass(frozen=True)
class Prose:
    """What the demo shows.

    Attributes:
        before, donor: figures of the target and of the donor.
        methods: by name: :data:`FINDERS`, then the controls.
        written: for each ability, how the models continue its first test text.
        moved: the channels of each method that moved some; those of :data:`OURS` give the mended model.
        attributed: what :data:`OURS` ranks by.
        read: the evaluations on test texts, by model (``target``, ``donor``, the methods) and ability.
        texts: the number of test texts of each ability.
    """

    before: Figures
    donor: Figures
    methods: Mapping[str, Method]
    written: Mapping[str, Written]
    moved: Mapping[str, ChannelSet]
    attributed: AttributionProfile
    read: Mapping[str, Mapping[str, Evaluation]]
    texts: int
    seconds: float


class Judge:
    """Held-out texts of both abilities, and what target and donor are worth on them.

    Args:
        texts: by ability.
    """

    def __init__(
        self,
        donor: PreTrainedModel,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Mapping[str, Sequence[str]],
    ) -> None:
        self._corpora = {ability: corpus_of(tokenizer, ability, each) for ability, each in texts.items()}
        self._bytes = {ability: sum(len(text.encode()) for text in each) for ability, each in texts.items()}
        self.donor, self.target = self.read(donor), self.read(target)

    def read(self, model: PreTrainedModel) -> dict[str, Evaluation]:
        """A model on the texts, by ability."""
        return {ability: evaluate(model, corpus, "nll") for ability, corpus in self._corpora.items()}

    def figures(self, read: Mapping[str, Evaluation]) -> Figures:
        """What a model is worth, from :meth:`read`."""
        return Figures(
            recovered(self.target[FORGOTTEN], self.donor[FORGOTTEN], read[FORGOTTEN]),
            kept_of(self.target[RETAINED], self.donor[RETAINED], read[RETAINED]),
            {ability: float(one.nll.sum()) / math.log(2) / self._bytes[ability] for ability, one in read.items()},
        )


def run(say: Callable[[str], None] = lambda step: None) -> Prose:
    """Profile, rank, choose, transfer and evaluate; the same figures every time. ``say`` is called with each step."""
    start = time.perf_counter()
    donor, tokenizer = load(PROSE / "base")
    target, _ = load(PROSE / "mathematics")
    say("profiling base and specialist in lockstep, on German (forgotten) and on mathematics (to keep)")
    text = {ability: corpus_of(tokenizer, ability, texts(ability, "train")) for ability in (FORGOTTEN, RETAINED)}
    pair = profile_pair(donor, target, text, swap=True)
    say("attributing the specialist's loss to its channels, by gradients")
    attributed = attribute(donor, target, text[FORGOTTEN], keep=text[RETAINED], recompute=False)
    ranked: dict[str, Callable[[float], ChannelSet]] = {
        "attribution": partial(rank, attributed, "attribution"),
        "match-contrast": partial(rank, pair[FORGOTTEN], "match-contrast", keep=pair[RETAINED]),
        "match": partial(rank, pair[FORGOTTEN], "match", keep=pair[RETAINED]),
        "paired": partial(rank, pair[FORGOTTEN], "paired"),
        "weight-diff": partial(rank, pair[FORGOTTEN], "weight-diff", donor=donor, target=target),
        "random": partial(rank, pair[FORGOTTEN], "random", seed=SEED),
    }
    makes = {name: partial(_moved, donor, target, channels) for name, channels in ranked.items()}
    makes["interpolation"] = partial(_interpolated, donor, target)

    keeps = keeping(donor, target, corpus_of(tokenizer, RETAINED, texts(RETAINED, "validation")))
    chosen = {}
    for name, make in makes.items():
        say(f"choosing on validation texts how much to move: {name}")
        chosen[name] = most(SHARES, lambda share, make=make: keeps(make(share)))  # type: ignore[misc]
    say("testing every method on test texts")
    held_out = {ability: texts(ability, "test") for ability in (FORGOTTEN, RETAINED)}
    testing = Judge(donor, target, tokenizer, held_out)
    made = {name: make(chosen[name]) if chosen[name] else target for name, make in makes.items()}
    read = {name: testing.read(model) for name, model in made.items()}
    say("writing on")
    models = {"target": target, "mended": made[OURS], "donor": donor}
    return Prose(
        testing.figures(testing.target),
        testing.figures(testing.donor),
        {name: Method(chosen[name], testing.figures(one)) for name, one in read.items()},
        {ability: write_on(models, tokenizer, each[0]) for ability, each in held_out.items()},
        {name: channels(chosen[name]) for name, channels in ranked.items() if chosen[name]},
        attributed,
        {"target": testing.target, **read, "donor": testing.donor},
        min(len(each) for each in held_out.values()),
        round(time.perf_counter() - start, 1),
    )


def texts(ability: str, split: str) -> list[str]:
    """The texts of an ability: of ``train``, of ``test``, and of what is to be kept also of ``validation``."""
    with gzip.open(PROSE / f"{ability}-{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def corpus_of(tokenizer: PreTrainedTokenizerBase, ability: str, of: Sequence[str]) -> Corpus:
    """Texts as a corpus, named by their ability."""
    return Corpus.from_records([{"text": text} for text in of], tokenizer, name=ability)


def keeping(donor: PreTrainedModel, target: PreTrainedModel, corpus: Corpus) -> Callable[[PreTrainedModel], bool]:
    """Whether a model keeps :data:`act.evaluation.kept.KEPT` of what the target gained on a corpus."""
    ours, theirs = (evaluate(model, corpus, "nll") for model in (target, donor))
    return lambda model: kept_of(ours, theirs, evaluate(model, corpus, "nll")).value >= KEPT


def most(sizes: Sequence[float], keeps: Callable[[float], bool]) -> float:
    """The largest of ascending ``sizes`` that keeps enough, 0 if none does; where one does not, no larger one may."""
    place = bisect.bisect_left(sizes, True, key=lambda size: not keeps(size))
    return sizes[place - 1] if place else 0.0


def write_on(models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, text: str) -> Written:
    """How each model continues the first words of a text, greedily."""
    prompt = beginning(text)
    by_model: dict[str, str] = {}
    for name, model in models.items():
        end = tokenizer.eos_token_id
        (written,) = generate(
            model, [tokenizer(prompt)["input_ids"]], limit=WRITTEN_TOKENS, stop={end}, pad_id=end, token_budget=1
        )
        by_model[name] = str(tokenizer.decode(written.tokens, skip_special_tokens=True))
    return Written(prompt, by_model)


def beginning(text: str) -> str:
    """The first words of a text, at least :data:`PROMPT_CHARACTERS` characters of them."""
    end = text.find(" ", PROMPT_CHARACTERS)
    return text if end < 0 else text[:end]


def _moved(
    donor: PreTrainedModel, target: PreTrainedModel, ranked: Callable[[float], ChannelSet], share: float
) -> PreTrainedModel:
    mixed = copy.deepcopy(target)
    transfer(donor, mixed, ranked(share), strength=1.0)
    return mixed


def _interpolated(donor: PreTrainedModel, target: PreTrainedModel, share: float) -> PreTrainedModel:
    mixed = copy.deepcopy(target)
    interpolate(mixed, [donor], share)
    return mixed

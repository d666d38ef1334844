"""The tokens that a run will read: of whole corpora, or of samples of them, scaled up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, TypedDict, get_args

from act.core.errors import ActError
from act.data.batching import LOOK_AHEAD, Sequence
from act.data.corpus import Corpus
from act.data.prefixes import grouped
from act.data.stream import nothing_counted
from act.models.limits import CPU_BUDGET

_Sum = Literal["records", "bad_records", "sequences", "tokens", "computed", "counted", "images"]
_SUMS: tuple[_Sum, ...] = get_args(_Sum)


class TextPlan(TypedDict):
    """Figures of corpora, scaled up if only a sample was read.

    ``computed`` are the tokens without those that a text before them began with alike, where these are shared.
    ``longest`` and ``mean_length`` are lengths of sequences. ``attended_length`` is the length of the sequence that
    contains an average token.
    """

    records: int
    bad_records: int
    sequences: int
    tokens: int
    computed: int
    counted: int
    images: int
    sampled: bool
    longest: int
    mean_length: float
    attended_length: float


def tokens_of(corpora: Mapping[str, Corpus], sample: int = 2000, token_budget: int = CPU_BUDGET) -> TextPlan:
    """Count the records, tokens (with the context that pieces of a text repeat) and counted tokens of corpora.

    Args:
        corpora: the corpora, fitted to the model.
        sample: how many evenly spaced records of each corpus to read; 0: all.
        token_budget: tokens per batch.

    Raises:
        ActError: a sample is wanted of a stream of unknown size; nothing counts in a corpus.
    """
    return in_all([tokens_of_one(corpus, sample, token_budget) for corpus in corpora.values()])


def tokens_of_one(corpus: Corpus, sample: int = 2000, token_budget: int = CPU_BUDGET) -> TextPlan:
    """As :func:`tokens_of`, of one corpus."""
    size = corpus.source.count() if sample else None
    if sample and size is None:
        raise ActError(
            f"the size of {corpus.name} is unknown, so a sample cannot be scaled up; read all of it (--sample 0)"
        )
    step = max(1, (size or 0) // sample) if sample else 1
    found, squared, longest = dict.fromkeys(_SUMS, 0), 0, 0
    window: list[Sequence] = []
    bad: ActError | None = None
    for entry, encoded in corpus.numbered(shard=(0, step)):
        found["records"] += 1
        if isinstance(encoded, ActError):
            found["bad_records"] += 1
            bad = bad or ActError(f"{entry.place}: {encoded}")
            continue
        for piece in corpus.pieces_of(encoded, entry.number):
            found["sequences"] += 1
            found["images"] += piece.images
            found["tokens"] += len(piece)
            found["counted"] += int(piece.count_mask.sum())
            squared += len(piece) ** 2
            longest = max(longest, len(piece))
            if not piece.beside:  # texts with images share nothing
                window.append(piece)
        if found["records"] % LOOK_AHEAD == 0:
            found["computed"] -= _spared(window, token_budget)
            window = []
    found["computed"] += found["tokens"] - _spared(window, token_budget)
    if not found["counted"]:
        raise (
            bad
            if bad and found["bad_records"] == found["records"]
            else ActError(nothing_counted(corpus.name, count=corpus.count))
        )
    scale = (size or 0) / max(found["records"], 1) if step > 1 else 1
    return _plan({key: round(value * scale) for key, value in found.items()}, squared * scale, longest, step > 1)


def in_all(plans: Collection[TextPlan]) -> TextPlan:
    """The figures of several corpora together."""
    return _plan(
        {key: sum(plan[key] for plan in plans) for key in _SUMS},
        sum(plan["attended_length"] * plan["tokens"] for plan in plans),
        max((plan["longest"] for plan in plans), default=0),
        any(plan["sampled"] for plan in plans),
    )


def _plan(sums: Mapping[_Sum, int], squares: float, longest: int, sampled: bool) -> TextPlan:
    return {
        "records": sums["records"],
        "bad_records": sums["bad_records"],
        "sequences": sums["sequences"],
        "tokens": sums["tokens"],
        "computed": sums["computed"],
        "counted": sums["counted"],
        "images": sums["images"],
        "sampled": sampled,
        "longest": longest,
        "mean_length": sums["tokens"] / max(sums["sequences"], 1),
        "attended_length": squares / max(sums["tokens"], 1),
    }


def _spared(window: list[Sequence], token_budget: int) -> int:
    """How many tokens need not be computed, because the sequences of a window begin alike."""
    return sum(group.spared for group in grouped(window, token_budget))

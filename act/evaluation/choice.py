"""The share of the channels and the strength of a transfer, chosen on records that the ranking was not measured on.

``recovered`` is the share of what the target lacks of the donor's ability that came back, ``kept`` what
:mod:`act.evaluation.kept` says. Errors are standard errors over records, of the ratio, since target, donor and result
answer the same ones.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from act.core.counted import counted
from act.core.errors import ActError, BadRecord, option, require_choice, require_several, require_type
from act.core.names import names_in
from act.data.corpus import Corpus, require_corpus, skipping
from act.data.digests import same_text
from act.editing.card_texts import fingerprints_said
from act.editing.strength import require_strength
from act.evaluation.evaluate import Evaluation
from act.evaluation.evaluations import Evaluations
from act.evaluation.exercises import Metric
from act.evaluation.frontier import frontier
from act.evaluation.held_out import held_out
from act.evaluation.kept import CLEAR, KEPT, OF_LACK, Keeping, Share, kept_of
from act.evaluation.results_table import METRICS
from act.evaluation.significance import finite, ratio_and_error, with_error
from act.evaluation.sweep import STRENGTHS, TOPS, Control, Setting, Sweep, ranked_by, swept, swept_control
from act.models.common import common_space
from act.models.loading import require_model
from act.profiles.profile import Profile
from act.ranking.activations import Ability, require_ability
from act.ranking.channel_set import ChannelSet
from act.ranking.demands import contradictions, rankable, require_known
from act.ranking.measured import measured_for
from act.ranking.options import RankOptions, with_rank_options
from act.ranking.rank import listed
from act.ranking.scores import score_named
from act.ranking.selection import parse_top

if TYPE_CHECKING:
    from typing_extensions import Unpack

FEWEST = 10  # records, below which an error is itself a guess
LEAST_MARGIN = 0.01


@dataclass(frozen=True)
class Candidate:
    """One share of the channels at one strength, with what it recovers, and keeps of each ability to retain."""

    top: float
    strength: float
    channels: int
    recovered: Share
    kept: tuple[Share, ...]

    @property
    def least_kept(self) -> Share:
        """What is kept of the ability that suffers most."""
        return min(self.kept, key=lambda share: share.value)

    @property
    def setting(self) -> str:
        """Its share and strength, as a phrase."""
        return f"top {100 * self.top:g} % at strength {self.strength:g}"

    def __str__(self) -> str:
        return f"{self.setting} recovers {self.recovered} and keeps {self.least_kept}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, one row of a table; None for what is not known."""
        return {
            "top": self.top,
            "strength": self.strength,
            "channels": self.channels,
            "recovered": finite(self.recovered.value),
            "recovered_se": finite(self.recovered.error),
            "kept": finite(self.least_kept.value),
            "kept_se": finite(self.least_kept.error),
        }


@dataclass(frozen=True, repr=False)
class Choice:
    """The share and strength that recover most at what is to be kept.

    Attributes:
        channels: the channels of that share.
        chosen: the figures of the choice.
        candidates: all that was tried, in order of share and strength.
        least: the share that was to be kept.
        records: number of records, by corpus: the ability's first.
        metric: what was measured on each, by corpus.
        not_compared: names of texts that the ranking was measured on and that are known to be others only as a whole,
            since their records could not be compared one by one.
        before: what the donor and the target, in this order, give on each corpus; empty where that was not kept.

    >>> from act.evaluation.choice import Candidate, Share
    >>> one = Candidate(0.05, 0.4, 47, Share(0.62, 0.03), (Share(0.97, 0.01),))
    >>> choice = act.Choice(None, one, (one,), 0.95, {"german": 300, "maths": 200}, {"german": "nll", "maths": "nll"})
    >>> choice
    <Choice: top 5 % at strength 0.4 recovers 0.62 ± 0.03 and keeps 0.97 ± 0.01; 1 candidate, 1 on the frontier>
    >>> choice.strength, choice.frontier == [one], choice.to_json()["chosen"]["recovered"]
    (0.4, True, 0.62)
    >>> choice.caveat in choice.card(), choice.meaning  # empty: these figures came without the models
    (True, '')
    """

    channels: ChannelSet
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    least: float
    records: Mapping[str, int]
    metric: Mapping[str, str]
    not_compared: tuple[str, ...] = ()
    before: Sequence[Sequence[Evaluation]] = field(default=(), compare=False)

    @property
    def strength(self) -> float:
        """The strength of the choice."""
        return self.chosen.strength

    @property
    def frontier(self) -> list[Candidate]:
        """The candidates that no other beats, from the one that keeps most to the one that recovers most."""
        points = [(one.recovered.value, one.least_kept.value) for one in self.candidates]
        return sorted((self.candidates[place] for place in frontier(points)), key=lambda one: one.recovered.value)

    def __repr__(self) -> str:
        tried = counted(len(self.candidates), "candidate")
        return f"<Choice: {self.chosen}; {tried}, {len(self.frontier)} on the frontier>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self)[1:-1])}</p>"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "chosen": self.chosen.to_json(),
            "least_kept": self.least,
            "frontier": [one.to_json() for one in self.frontier],
            "candidates": [one.to_json() for one in self.candidates],
            "records": dict(self.records),
            "metric": dict(self.metric),
            "not_compared": list(self.not_compared),
        }

    @property
    def meaning(self) -> str:
        """Of what ``kept`` is a share, text by text; empty where that was not kept."""
        if len(self.before) != 2:
            return ""
        theirs, ours = self.before
        of = {mine.corpus: Keeping.of(mine, other).what for mine, other in zip(ours[1:], theirs[1:], strict=True)}
        return f"kept is a share {'; '.join(f'{what} ({name})' for name, what in of.items())}"

    @property
    def caveat(self) -> str:
        """What its figures do not say."""
        return (
            "These figures are of the very records that the choice was made on, so those of the chosen row are "
            "slightly optimistic; evaluate the result on records that were used for nothing else."
        )

    def card(self) -> str:
        """The choice and its frontier, in Markdown, for a model card."""
        texts = ", ".join(
            f"{name} ({counted(count, 'record')}, {METRICS[self.metric[name]]})" for name, count in self.records.items()
        )
        others = ", ".join(self.not_compared)
        unsure = (
            f" The records of {others} could not be compared one by one, so only whole texts were told apart."
            if others
            else ""
        )
        read = self.before[0] if self.before else ()
        known = fingerprints_said("chosen", {one.corpus: [one.corpus_fingerprint] for one in read})
        rows = [
            f"| {'**chosen**' if one == self.chosen else ''} | {100 * one.top:g} % | {one.strength:g} "
            f"| {one.channels:,} | {one.recovered} | {one.least_kept} |"
            for one in self.frontier
        ]
        return "\n".join(
            [
                f"Share and strength were chosen among {len(self.candidates)} on records that the ranking was not "
                f"measured on: most recovered at {100 * self.least:g} % kept or more. Records: {texts}.{unsure}"
                + (f" In the table, {self.meaning}." if self.meaning else ""),
                *(["", known] if known else []),
                "",
                "| | share of the channels | strength | channels | recovered | kept |",
                "|---|---|---|---|---|---|",
                *rows,
                "",
                self.caveat,
            ]
        )


@with_rank_options
def choose(
    donor: nn.Module,
    target: nn.Module,
    ranking: Ability | ChannelSet | None,
    corpus: Corpus,
    keep: Corpus | Sequence[Corpus],
    *,
    least_kept: float = KEPT,
    tops: Sequence[str | float] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    metric: Metric = "auto",
    keep_profiles: Ability | Sequence[Ability] | None = None,
    ranked_on: Corpus | Sequence[Corpus] = (),
    checkpoints: str | Path | None = None,
    report: Callable[[Setting], None] = lambda setting: None,
    **options: Unpack[RankOptions],
) -> Choice:
    """Choose the share and strength of a transfer that recover most of an ability while they keep enough of others.

    Every candidate is transferred in memory, evaluated, and taken back.

    Args:
        donor, target: models in memory. The target gets its own bytes back, even after an exception.
        ranking: what :func:`act.rank` reads, or a channel set with the scores of its channels, whose best are tried.
            None: half of the records are measured for the score, as their corpora count, and the other half chooses.
        corpus: records of the ability to evaluate on. Those that the ranking was measured on are left out.
        keep: records of what to keep, or several such corpora; what is kept least decides.
        least_kept: the share that is to be kept.
        tops, strengths: the candidates; by default those of :func:`act.sweep`, as far as a channel set has so many.
        metric: as in :func:`act.evaluate`.
        keep_profiles: ``keep`` of :func:`act.rank`, for a ``ranking`` that is a profile.
        ranked_on: what the ranking was measured on, where the names in it do not say where that lies: records in
            memory, or with other columns. So records are compared one by one.
        checkpoints: a folder in which every evaluation is kept, so that the same call goes on after an interruption,
            and one with other shares and strengths evaluates only what is new; it is yours to remove.
        report: called with every setting as soon as it is known.
        options: the other keywords of :func:`act.rank` that say by what is ranked, such as ``score``.

    Raises:
        ActError: ability and keep are the same text; all records were seen by the ranking; the donor is not better than
            the target; no candidate keeps enough; too little text to tell, with the errors.

    >>> pair = act.profile_pair(donor, target, corpus)
    >>> sums = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(9) for b in range(9)]
    >>> others = [{"prompt": f"{a} - {b} =", "completion": f" {a - b}"} for a in range(9) for b in range(9)]
    >>> ability, kept = (act.Corpus.from_records(records, tokenizer) for records in (sums, others))
    >>> choice = act.choose(donor, target, pair, ability, kept, metric="nll", least_kept=0.05, tops=[0.5, 1.0])
    >>> patch = act.transfer(donor, target, choice.channels, choice.strength)
    """
    require_model("the donor", donor)
    require_model("the target", target)
    require_type("keep", keep, (Corpus, Iterable), "an act.Corpus of what to keep; profiles of it are keep_profiles")
    kept = [keep] if isinstance(keep, Corpus) else list(keep)
    measured_on = [ranked_on] if isinstance(ranked_on, Corpus) else list(ranked_on)
    for what, text in (
        ("the corpus", corpus),
        *(("a corpus to keep", one) for one in kept),
        *(("a corpus that was ranked on", one) for one in measured_on),
    ):
        require_corpus(what, text)
    if not kept:
        raise ActError("nothing is to be kept, so the largest transfer would always be chosen; give records to keep")
    if ranking is not None and not isinstance(ranking, ChannelSet):
        require_ability("the ranking", ranking)
    for ability in listed(keep_profiles):
        require_ability("keep_profiles", ability)
    require_candidates(least_kept, tops, strengths, metric, options)
    require_different(corpus, kept)
    if ranking is None:
        if keep_profiles is not None:
            raise ActError("keep_profiles belong to a profile as ranking; give both, or neither")
        whole = (corpus, *kept)
        measured_on, (corpus, *kept) = ([text.part([half], 2) for text in whole] for half in (0, 1))
        ranking, *others = _measured(donor, target, measured_on, options)
        keep_profiles = others or None
    sources = [text.source for text in measured_on]
    texts, not_compared = held_out((corpus, *kept), [ranking, *listed(keep_profiles)], sources)
    ranked = (
        ranking.best if isinstance(ranking, ChannelSet) else ranked_by(donor, target, ranking, keep_profiles, options)
    )
    shares = sorted({parse_top(top) for top in (_shares(ranking) if tops is None else tops)})
    for top in shares:
        ranked(top)  # a mistake in the options shows before anything is evaluated
    judge = _Judge(texts, metric, Evaluations(checkpoints))
    judge(donor)
    candidates = judge.candidates(swept(donor, target, ranked, judge, shares, strengths, report))
    theirs, before, *_ = judge.found
    records = {one.corpus: len(one.nll) for one in before}
    chosen = _best(candidates, least_kept, records)
    metrics = {one.corpus: one.metric for one in before}
    unchanged = (theirs, before)
    return Choice(ranked(chosen.top), chosen, candidates, least_kept, records, metrics, not_compared, unchanged)


@with_rank_options
def choose_controls(
    controls: Sequence[Control],
    donor: nn.Module,
    target: nn.Module,
    profile: Profile,
    corpus: Corpus,
    keep: Sequence[Corpus],
    *,
    tops: Sequence[str | float] = TOPS,
    strengths: Sequence[float] = STRENGTHS,
    metric: Metric = "auto",
    keep_profiles: Sequence[Ability] = (),
    ranked_on: Sequence[Corpus] = (),
    before: Sequence[Sequence[Evaluation]] = (),
    checkpoints: str | Path | None = None,
    report: Callable[[Setting], None] = lambda setting: None,
    **options: Unpack[RankOptions],
) -> dict[Control, tuple[Candidate, ...]]:
    """What controls recover and keep at the settings of :func:`choose`, which takes the rest by the same names.

    Args:
        before: that of a :class:`Choice` between the same models; donor and target are evaluated again only if it is
            empty or of other records.
        checkpoints: as in :func:`choose`; both may have the same folder.

    Returns:
        For each control its candidates, on the records that the choice is made on.
    """
    sources = [text.source for text in ranked_on]
    texts, _ = held_out((corpus, *keep), [profile, *keep_profiles], sources)
    shares = sorted({parse_top(top) for top in tops})
    evaluations = Evaluations(checkpoints)
    first = _Judge(texts, metric, evaluations)
    if first.knows(before):
        first.found = [[*each] for each in before]
    else:
        first(donor)
        first(target)
    unchanged = first.figures
    settings = [Setting(top, strength, 0, unchanged) for top in shares for strength in sorted(set(strengths))]
    found: dict[Control, tuple[Candidate, ...]] = {}
    for control in controls:
        judge = _Judge(texts, metric, evaluations, [*first.found])
        grid = Sweep((Setting(0.0, 0.0, 0, unchanged), *settings))
        found[control] = judge.candidates(
            swept_control(control, donor, target, profile, judge, grid, report=report, **options)
        )
    return found


@dataclass
class _Judge:
    """Evaluates models on texts: the donor first, then the target, then what was changed."""

    texts: Sequence[Corpus]
    metric: Metric
    evaluations: Evaluations
    found: list[list[Evaluation]] = field(default_factory=list)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.found.append(self.evaluations(model, self.texts, self.metric))
        if len(self.found) == 2:  # before anything is changed
            _require_lost(self.found[1][0], self.found[0][0])
        return self.figures

    @property
    def figures(self) -> dict[str, float]:
        """Those of the model that was evaluated last."""
        return {f"{place} {one.corpus}": figure(one) for place, one in enumerate(self.found[-1])}

    def knows(self, before: Sequence[Sequence[Evaluation]]) -> bool:
        """Whether these are evaluations of donor and target on the very texts, as far as their fingerprints tell."""
        texts = [text.source.fingerprint for text in self.texts]
        return (
            len(before) == 2
            and all(texts)
            and all([one.corpus_fingerprint for one in each] == texts for each in before)
        )

    def candidates(self, tried: Sweep) -> tuple[Candidate, ...]:
        """The settings of a sweep by what was found, without the unchanged target."""
        theirs, before, *after = self.found
        return tuple(
            Candidate(
                setting.top,
                setting.strength,
                setting.channels,
                recovered(before[0], theirs[0], one[0]),
                tuple(kept_of(*three) for three in zip(before[1:], theirs[1:], one[1:], strict=True)),
            )
            for setting, one in zip(tried.rows[1:], after, strict=True)
        )


def _measured(donor: nn.Module, target: nn.Module, texts: Sequence[Corpus], options: RankOptions) -> list[Profile]:
    """What the score needs of each text, the ability's first; of the ability alone where it looks at no activation."""
    given = options.get("score")
    if isinstance(given, torch.Tensor):
        raise ActError("scores of your own are of the channels of a profile; give it as ranking")
    score = given or "paired"
    record, others = score_named(score), texts[1:]
    kept = bool(others) and record.looks_at_activations
    cost, normalize = options.get("cost", "auto"), options.get("normalize", "none")
    for _, wrong in contradictions(record, cost=cost, normalize=normalize, kept=kept):
        raise wrong
    include, exclude = names_in(options.get("include", ())), names_in(options.get("exclude", ()))
    rankable(common_space(donor, target), options.get("granularity", "channel"), include, exclude)
    try:
        return [measured_for(score, donor, target, text) for text in (texts if kept else texts[:1])]
    except BadRecord as error:
        # The command line leaves some out before it chooses; a choice in Python has no such argument.
        raise BadRecord(str(error).replace(skipping(), option(skipping(), ""))) from error


def require_candidates(
    least_kept: float,
    tops: Sequence[str | float] | None,
    strengths: Sequence[float],
    metric: str,
    options: Mapping[str, Any],
) -> None:
    """Raise :class:`ActError` for values out of range and unknown names, before anything is measured."""
    if not 0 < least_kept <= 1:
        raise ActError(f"the share to keep is {least_kept}; expected a number above 0 and up to 1, such as 0.95")
    if tops is not None:
        require_several("tops", tops)
    require_several("strengths", strengths)
    for top in tops or ():
        parse_top(top)
    for strength in strengths:
        require_strength(strength)
    require_choice("metric", metric, get_args(Metric))
    names = ("score", "normalize", "scope", "granularity", "cost")
    require_known(**{name: options[name] for name in names if options.get(name) is not None})


def figure(evaluation: Evaluation) -> float:
    """The share of right answers, or the mean log-likelihood per token if the metric judges no answers."""
    found = evaluation.summary()
    if found["match"] is not None:
        return found["match"]
    return math.nan if found["nll_per_token"] is None else -found["nll_per_token"]


def figure_error(evaluation: Evaluation) -> float | None:
    """The standard error of :func:`figure`; None for a single record."""
    found = evaluation.summary()
    return found["match_se"] if found["match"] is not None else found["nll_per_token_se"]


def require_different(corpus: Corpus, kept: Sequence[Corpus]) -> None:
    """Raise :class:`ActError` if the ability and what to keep, or two of these, are the same text."""
    for one, other in itertools.combinations((corpus, *kept), 2):
        if same_text(one.source, other.source):
            raise ActError(
                f"{one.name} and {other.name} are the same text, so what is recovered and what is kept cannot be "
                "told apart; give other records to keep"
            )


def recovered(target: Evaluation, donor: Evaluation, result: Evaluation) -> Share:
    """The share of what the target lacks of the donor's ability that came back."""
    if target.right is not None and donor.right is not None and result.right is not None:
        before, theirs, after = (one.double() for one in (target.right, donor.right, result.right))
        return Share(*ratio_and_error(after - before, theirs - before))
    return Share(*ratio_and_error(target.nll - result.nll, target.nll - donor.nll))


def recovering(target: Evaluation, donor: Evaluation) -> Keeping | None:
    """The scale on which a figure of the ability becomes what :func:`recovered` gives.

    None where the donor is not clearly better, so that nothing shows what is recovered.
    """
    lost, error, _ = _lost(target, donor)
    return Keeping(figure(donor), figure(target), OF_LACK) if lost > CLEAR * error else None


def _shares(ranking: Ability | ChannelSet) -> list[float]:
    if not isinstance(ranking, ChannelSet):
        return list(TOPS)
    own = len(ranking) / (ranking.rule.ranked or len(ranking))
    return [*(top for top in TOPS if top < own), own]


def _lost(target: Evaluation, donor: Evaluation) -> tuple[float, float, str]:
    """By how much the donor is better than the target, the error of that, and in what."""
    if target.right is not None and donor.right is not None:
        lost = ratio_and_error(donor.right.double() - target.right.double(), torch.ones(len(target.nll)))
        return *lost, "right answers"
    return *ratio_and_error(target.nll - donor.nll, target.tokens), "log-likelihood per token"


def doubt_of_swap(target: Evaluation, donor: Evaluation) -> str | None:
    """Why a text is none of an ability that the target lacks; None unless the target is clearly better on it."""
    lost, error, what = _lost(target, donor)
    if not -lost > CLEAR * error:
        return None
    return (
        f"the target is better than the donor on {target.corpus} ({what}: {figure(target):.3f} against "
        f"{figure(donor):.3f}), as on text to keep, so nothing shows what is recovered; give records of what the "
        "target lost (are the two texts, or donor and target, swapped?)"
    )


def _require_lost(target: Evaluation, donor: Evaluation) -> None:
    lost, error, what = _lost(target, donor)
    if not lost > CLEAR * error:
        swapped = -lost > CLEAR * error
        few = "too little text to choose on: " if not swapped and (lost > 0 or len(target.nll) < FEWEST) else ""
        shown = f"{figure(donor):.3f} and {figure(target):.3f}, difference {with_error(lost, error, 3, '+')}"
        turned = " (are donor and target swapped?)" if swapped else ""
        raise ActError(
            f"{few}the donor is not clearly better than the target on {target.corpus} ({what} {shown} on "
            f"{counted(len(target.nll), 'record')}), so nothing shows what is recovered{turned}; give more "
            "records, another metric, or records of what the target lost"
        )


def _best(candidates: Sequence[Candidate], least: float, records: Mapping[str, int]) -> Candidate:
    """The candidate that recovers most of those that keep enough; raises ActError if that cannot be told."""
    keeping = [one for one in candidates if one.least_kept.value >= least]
    best = max(keeping or candidates, key=lambda one: one.recovered.value if keeping else one.least_kept.value)
    kept, margin = best.least_kept, max(1 - least, LEAST_MARGIN)
    if not keeping and kept.value + CLEAR * kept.error < least and min(records.values()) >= FEWEST:
        raise ActError(
            f"no candidate keeps {100 * least:.10g} %: {best.setting} recovers {best.recovered} and keeps "
            f"{kept.percent(least)}; try smaller shares or strengths "
            f"({option('--top, --strength', 'tops, strengths')}), or keep less ({option('--least-kept', 'least_kept')})"
        )
    surely = best.recovered.value > CLEAR * best.recovered.error and min(records.values()) >= FEWEST
    if keeping and surely and kept.error <= margin:
        return best
    counts = " and ".join(f"{count} of {name}" for name, count in records.items())
    raise ActError(
        f"too little text to choose on: {best}, on {counts}, but it takes {FEWEST} records of each, an error of what "
        f"is kept of at most {margin:.2g}, and {CLEAR} errors between what is recovered and 0; give more records, or "
        f"keep less ({option('--least-kept', 'least_kept')})"
    )

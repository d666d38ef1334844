"""Ranking: score every channel, contrast with what to keep, and take the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import numpy as np
import torch
from torch import nn

from act.core.errors import ActError, option, require_type
from act.core.names import names_in
from act.models.channels import ChannelSpace
from act.models.loading import require_model
from act.profiles.defaults import MIN_EXPERT_TOKENS
from act.profiles.experts import ExpertTokens, expert_of
from act.profiles.profile import Profile
from act.profiles.statistics import Statistics
from act.ranking.activations import (
    Ability,
    Activations,
    corpus_fingerprints,
    corpus_names,
    corpus_parts,
    corpus_places,
    counted,
    models_of,
    require_ability,
    require_comparable,
    sides,
    space_of,
)
from act.ranking.attributed import Cost, attribution_of, chosen_cost, usual_score
from act.ranking.channel_set import ChannelSet
from act.ranking.costs import per_cost
from act.ranking.demands import contradictions, rankable, require_known
from act.ranking.granularity import Granularity
from act.ranking.normalize import Normalize, normalized
from act.ranking.rule import Rule
from act.ranking.scores import Evidence, Formula, Score, ScoreName, score_named
from act.ranking.selection import Scope, in_cache, parse_amount, scored_of, select

DEFAULT_TOP = 0.05


def rank(
    profile: Ability,
    score: ScoreName | torch.Tensor | None = None,
    top: str | float | None = None,
    *,
    count: int | None = None,
    mass: str | float | None = None,
    keep: Ability | Sequence[Ability] | None = None,
    normalize: Normalize = "none",
    scope: Scope = "global",
    granularity: Granularity | Sequence[Granularity] = "channel",
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    seed: int = 0,
    donor: nn.Module | None = None,
    target: nn.Module | None = None,
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
    cost: Cost = "auto",
) -> ChannelSet:
    """Score every channel, rank all channels of all modules together, and take the best.

    Args:
        profile: a pair profile of the ability, or (donor, target) profiles of it; for ``lape``, ``weight-diff`` and
            ``random`` a single profile too; for ``attribution`` an :class:`act.AttributionProfile`.
        score: of a pair profile ``paired`` (its default), ``mean-abs``, ``mean-shift``, ``welch-t`` or ``cohen-d``;
            where it was made with ``swap=True`` also ``match`` or ``match-contrast``; of an attribution profile
            ``attribution``, its default; of either ``weight-diff``, which needs ``donor`` and ``target``, ``random``,
            which takes a ``seed``, or ``lape``, which needs other abilities as ``keep`` (of a pair profile it reads the
            donor's rates, since the donor has the ability). Or one of your own, ``[N]``, NaN for none.
        top, count, mass: how much to take, one of the three: a share of the channels that have a score (by default
            ``top=0.05``), a number of units, or a share of the sum of all scores above 0.
        keep: an ability to retain, or a list of them, of the same models. The score becomes the contrast: score on the
            ability, minus the largest of the scores on what to keep, so that a channel that any of them needs is
            spared; or it is divided by the largest of its costs to them, as the score says.
        normalize: what scores are divided by, before the contrast and after the cost: nothing (``none``); the ``mean``
            or standard deviation (``std``) of those of their site, or of all sites of their module kind (``kind-mean``,
            ``kind-std``); or the deviation of the activations of the ``channel`` itself.
        scope: rank everything together (``global``), or take the same share, count or mass of every module ``kind``,
            ``layer`` or ``site``.
        granularity: what is ranked as one unit, or several of these: a ``channel``; a ``neuron`` (gate and up row, down
            column); a ``head`` (query, key and value rows, columns of ``o``); an ``expert``, or with its row of the
            router (``routed-expert``); a ``rotary-pair`` (two rows of ``q`` or ``k`` that position rotates together). A
            unit's score is the mean of its channels'; a unit with a channel that is not ranked is not ranked.
        include, exclude: module kinds (``q k v o gate up down norm embed head`` …) or patterns of site names
            (``*.layers.1?.mlp.*``) to rank only, or not to rank; one name, or several.
        seed: for the score ``random``.
        donor, target: the models, for ``weight-diff``.
        min_expert_tokens: an expert that fewer counted tokens reached gets no score from activations, for it would not
            be sure: for ``paired``, tokens that met the same expert in both models; otherwise the fewer of both sides.
        cost: for ``attribution``, what the fall of the loss is divided by: ``keep``, the root mean square over
            documents of the change on what to keep, the largest of several texts; ``distance``, the norm of the
            channel's step; ``none``; ``auto``: ``keep`` where there is something to keep, which the profile may hold
            itself, and otherwise ``none``, for what is asked for is a number of channels and not a distance.

    Returns:
        The channels, with the input columns that belong to whole neurons and heads. Never chosen: channels that were
        not counted in either model (``rule.unmeasured`` tells how many of which kind), those of experts that saw too
        little (``rule.starved_channels``), and those that share a tensor owned by another site. ``rule.not_positive``
        tells how many of the chosen have a score of 0 or below and were only taken to reach the amount; ``mass=1``
        takes none of these.

    Raises:
        ActError: an unknown score, kind or other name; an amount out of range, or more than there is; profiles of
            different models, texts or counted positions; a keep profile that is the ability's; models that are not the
            profile's; scores that are all 0; an excluded module whose columns belong to the units.

    >>> pair = act.profile_pair(donor, target, corpus)
    >>> channels = act.rank(pair, "paired", top="5%", exclude=["head"])
    >>> str(channels.rule)
    'paired, top 5%, without head'
    >>> len(channels) == round(0.05 * channels.rule.ranked)
    True
    """
    require_ability("the profile", profile)
    score = usual_score(profile) if score is None else score
    for side, model in (("donor", donor), ("target", target)):
        if model is not None:
            require_model(f"the {side}", model)
    unstated = top is None and count is None and mass is None
    amount = parse_amount(DEFAULT_TOP if unstated else top, count, mass)
    space, include, exclude = space_of(profile), names_in(include), names_in(exclude)
    require_known(score, normalize, scope, granularity, cost)
    record = _own(score, space) if isinstance(score, torch.Tensor) else score_named(score)
    kept = listed(keep)
    for ability in kept:
        require_ability("keep", ability)
    if record.takes_cost:
        kept = [*attribution_of(profile).kept, *kept]
    for _, wrong in contradictions(record, cost=cost, normalize=normalize, kept=bool(kept)):
        raise wrong
    cost = chosen_cost(cost, bool(kept)) if record.takes_cost else cost
    by_cost = bool(kept) and record.keep == "cost" and cost in ("auto", "keep")
    require_comparable(profile, kept)
    units, eligible = rankable(space, granularity, include, exclude)
    unwanted = {name for each in (profile, *kept) for one in sides(each) for name in one.left_out}
    starved = _Starved(space, _tokens_needed(min_expert_tokens), unwanted)

    def computed(formula: Formula, ability: Ability) -> tuple[torch.Tensor, Activations | None]:
        evidence = Evidence(ability, kept if record.keep == "compare" else (), donor, target, seed)
        values = formula(evidence).cpu()
        two = record.keep in ("contrast", "cost") and (isinstance(ability, tuple) or ability.pair)
        activations = evidence.activations if two else None
        if record.reads:
            both = (activations.donor, activations.target) if activations else ()
            starved.leave_out(values, record.reads(ability), both)
        return values, activations

    def scored(ability: Ability) -> torch.Tensor:
        values, activations = computed(record.function, ability)
        if record.cost and by_cost:
            own = computed(record.cost, ability)[0]
            costs = (computed(record.cost, each)[0] for each in kept)
            values = per_cost(values, (_of_another(cost, own) for cost in costs))
        elif cost == "distance":
            values = per_cost(values, [attribution_of(ability).distance.cpu()])
        return normalized(values, space, normalize, activations, in_place=True)

    values = scored(profile)
    contrast = bool(kept) and record.keep == "contrast"
    if contrast:
        values = _contrasted(values, map(scored, kept))
    if not record.looks_at_activations:
        values.masked_fill_(~counted(profile), torch.nan)
    unmeasured = eligible.unmeasured(values, starved.sites)
    left_out = [site for site in eligible.sites if site.name in starved.sites]
    eligible.leave_out_others(values)
    parts = map(torch.from_numpy, in_cache(values.numpy()))
    if record.name != "custom" and not any(part.nan_to_num().any() for part in parts) and scored_of(values):
        raise ActError(
            f"every channel has the {record.name} score 0, so nothing can be ranked: what is compared does not differ; "
            "give two models that differ, or a text on which they do"
        )
    if left_out and not scored_of(values):
        raise ActError(
            f"every channel that could be ranked is of an expert that fewer than {min_expert_tokens} counted tokens "
            f"reached; measure more text, or ask for fewer ({option('--min-expert-tokens', 'min_expert_tokens')})"
        )
    chosen = select(values, units, amount, scope)
    rule = Rule(
        score=record.name,
        top=amount.top,
        count=amount.count,
        mass=amount.mass,
        normalize=normalize,
        scope=scope,
        granularity=(granularity,) if isinstance(granularity, str) else tuple(granularity),
        contrast=contrast,
        per_cost=by_cost,
        cost=cost if record.takes_cost else None,
        keep=tuple(tuple(corpus_names(ability)) for ability in kept),
        corpora=tuple(corpus_names(profile)),
        places=corpus_places([profile, *kept]),
        parts=corpus_parts([profile, *kept]),
        fingerprints=corpus_fingerprints([profile, *kept]),
        include=tuple(sorted(include)),
        exclude=tuple(sorted(exclude)),
        seed=seed if record.takes_seed else None,
        ranked=chosen.ranked,
        not_positive=chosen.not_positive,
        unmeasured=unmeasured,
        min_expert_tokens=min_expert_tokens if record.reads and starved.possible else None,
        starved_channels=sum(site.width for site in left_out),
        starved_experts=len({expert_of(site) for site in left_out}),
        models=models_of(profile),
        tied={site.name: site.tied_to for site in space if site.tied_to},
    )
    return ChannelSet(space, chosen.channels, values[chosen.channels], rule, chosen.inputs)


class _Starved:
    """The sites of experts that saw too few tokens.

    Attributes:
        possible: whether there are experts at all.
        sites: the names of the sites found so far.
    """

    def __init__(self, space: ChannelSpace, least: int, left_out: Set[str]) -> None:
        self._space, self._least, self._left_out = space, least, left_out
        self.possible = any(site.expert is not None for site in space)
        self.sites: set[str] = set()

    def leave_out(
        self, values: torch.Tensor, statistics: Sequence[Statistics], sides: Sequence[Statistics] = ()
    ) -> None:
        """Set ``values`` ``[N]`` to NaN, in place, where an expert got too few tokens in some of the statistics."""
        for site in ExpertTokens.of(self._space, statistics, sides, self._left_out).fewer(self._least):
            values[site.channels] = torch.nan
            self.sites.add(site.name)


def _tokens_needed(given: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ActError(f"min_expert_tokens is {given!r}; expected a whole number of tokens, 0 for no limit")
    return given


def listed(keep: Ability | Sequence[Ability] | None) -> list[Ability]:
    """What to keep as a list of abilities, of which (donor, target) profiles are one."""
    if keep is None:
        return []
    if isinstance(keep, (Profile, str, Path)):
        return [keep]
    if isinstance(keep, tuple) and len(keep) == 2:
        one, two = keep
        if isinstance(one, Profile) and isinstance(two, Profile):
            return [(one, two)]  # one ability, of the donor and the target
    require_type("keep", keep, Iterable, "a profile of what to keep, as act.profile_pair gives, or several")
    return list(keep)


def _own(values: torch.Tensor, space: ChannelSpace) -> Score:
    """The record of scores that the caller made."""
    if values.shape != (len(space),):
        raise ActError(f"the score has shape {list(values.shape)}; expected [{len(space)}], one value per channel")
    return Score("custom", "the caller's own", lambda evidence: values.detach().to("cpu", torch.float64, copy=True))


def _contrasted(values: torch.Tensor, kept: Iterable[torch.Tensor]) -> torch.Tensor:
    """``values`` minus the largest of the scores on what to keep, in place."""
    most = None
    for other in kept:
        other = _of_another(other, values)
        most = other if most is None else torch.maximum(most, other, out=most)
    return values if most is None else values.sub_(most)


def _of_another(kept: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """What a keep profile gives each channel; raises ActError if the ability gives the same, and so is the same."""
    bits = (in_cache(values.numpy().view(np.int64)) for values in (own, kept))  # of which NaN equals NaN
    if all(map(np.array_equal, *bits)) and own.nan_to_num().any():  # models that do not differ score 0 everywhere
        raise ActError("a keep profile gives every channel the score of the ability; give profiles of another text")
    return kept

"""Sweeps: every share of the channels at every strength is transferred, evaluated and reverted."""

from __future__ import annotations

import contextlib
import copy
import functools
import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import nn

from act.core.counted import counted
from act.core.errors import ActError, require_several, require_type
from act.core.names import names_in
from act.editing.interpolation import interpolate
from act.editing.strength import require_strength
from act.editing.transfer import transfer
from act.evaluation.frontier import frontier
from act.models.loading import require_model
from act.profiles.profile import Profile
from act.ranking.activations import Ability
from act.ranking.channel_set import ChannelSet
from act.ranking.options import RankOptions, with_rank_options
from act.ranking.rank import rank
from act.ranking.rule import Rule
from act.ranking.scores import SCORES
from act.ranking.selection import parse_top

if TYPE_CHECKING:
    from typing_extensions import Unpack

TOPS, STRENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2), (0.2, 0.4, 0.7, 1.0)
"""The shares of the channels, and the strengths, that are tried unless others are given."""


Control = Literal["random", "weight-diff", "interpolation"]
"""What a transfer is compared with: as many other channels, or all parameters moved a little."""


@dataclass(frozen=True)
class Setting:
    """One point of a sweep: how much was transferred, and the figures of the result; in each, more is better.

    >>> from act.evaluation.sweep import Setting
    >>> Setting(0.05, 1.0, 229, {"right": 0.4}).to_json()
    {'top': 0.05, 'strength': 1.0, 'channels': 229, 'right': 0.4}
    """

    top: float
    strength: float
    channels: int
    figures: Mapping[str, float] = field(hash=False)

    def to_json(self) -> dict[str, float]:
        """Plain data, one row of a table."""
        return {"top": self.top, "strength": self.strength, "channels": self.channels, **self.figures}


@dataclass(frozen=True, repr=False)
class Sweep:
    """What a sweep found.

    Attributes:
        rows: the settings in order of share and strength; the first is the unchanged target.
        rule: how the channels were chosen, with the largest share; None for what ranks none.

    >>> from act.evaluation.sweep import Setting, Sweep
    >>> Sweep((Setting(0, 0, 0, {"right": 0.1}), Setting(0.05, 1, 229, {"right": 0.4})))
    <Sweep: 2 settings, 1 on the frontier; top 0.05 at strength 1 gives right 0.4>
    """

    rows: tuple[Setting, ...]
    rule: Rule | None = None

    @property
    def frontier(self) -> list[Setting]:
        """The settings that no other beats, in ascending order of the first figure.

        >>> from act.evaluation.sweep import Setting, Sweep
        >>> found = Sweep((Setting(0, 0, 0, {"right": 0.1}), Setting(0.05, 1, 229, {"right": 0.4})))
        >>> [(best.top, best.strength) for best in found.frontier]
        [(0.05, 1)]
        """
        names = list(self.rows[0].figures)
        unbeaten = frontier([[row.figures[name] for name in names] for row in self.rows])
        return sorted((self.rows[place] for place in unbeaten), key=lambda row: row.figures[names[0]])

    def __repr__(self) -> str:
        best = self.frontier[-1]
        figures = ", ".join(f"{name} {value:.3g}" for name, value in best.figures.items())
        return (
            f"<Sweep: {counted(len(self.rows), 'setting')}, {len(self.frontier)} on the frontier; "
            f"top {best.top:g} at strength {best.strength:g} gives {figures}>"
        )

    def _repr_html_(self) -> str:
        best = self.frontier
        names = ["", *self.rows[0].to_json()]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = (["*" if row in best else "", *(f"{value:g}" for value in row.to_json().values())] for row in self.rows)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table><p>* no other setting beats it</p>"


@with_rank_options
def sweep(
    donor: nn.Module,
    target: nn.Module,
    profile: Ability,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    *,
    tops: Sequence[str | float] = TOPS,
    strengths: Sequence[float] = STRENGTHS,
    keep: Ability | Sequence[Ability] | None = None,
    report: Callable[[Setting], None] = lambda setting: None,
    **options: Unpack[RankOptions],
) -> Sweep:
    """Transfer every share of the channels at every strength, and evaluate each.

    Args:
        donor, target: models in memory. The target gets its own bytes back, even after an exception.
        profile: what :func:`act.rank` reads.
        evaluate: returns figures by name, the same names every time; in each, more is better.
        tops: shares of the channels, such as ``"5%"`` or 0.05.
        strengths: the paper's lambda.
        keep: as in :func:`act.rank`.
        report: called with every setting as soon as it is known.
        options: the other keywords of :func:`act.rank` that say by what is ranked, such as ``score``; donor and target
            are at hand for a score that needs them.

    Raises:
        ActError: as :func:`act.rank` and :func:`act.transfer`; no share or strength; figures whose names change, or
            that are not finite.

    >>> pair = act.profile_pair(donor, target, corpus)
    >>> def likelihood(model):
    ...     return {"log-likelihood": -act.evaluate(model, corpus, "nll").nll.mean().item()}
    >>> found = act.sweep(donor, target, pair, likelihood, tops=["5%"], strengths=[0.5, 1.0])
    >>> [(row.top, row.strength) for row in found.rows]
    [(0.0, 0.0), (0.05, 0.5), (0.05, 1.0)]
    """
    require_model("the donor", donor)
    require_model("the target", target)
    require_several("tops", tops)
    require_several("strengths", strengths)
    if not callable(evaluate):
        raise ActError(f"evaluate is {evaluate!r}; expected a function that takes a model and returns figures by name")
    ranked = ranked_by(donor, target, profile, keep, options)
    return swept(donor, target, ranked, evaluate, tops, strengths, report)


def ranked_by(
    donor: nn.Module,
    target: nn.Module,
    profile: Ability,
    keep: Ability | Sequence[Ability] | None,
    options: RankOptions,
) -> Callable[[float], ChannelSet]:
    """The channels of a share by :func:`act.rank`, each share ranked once; a score that needs the models gets them."""
    options = options.copy()
    options["include"] = names_in(options.get("include", ()))  # once, for it may be an iterator
    options["exclude"] = names_in(options.get("exclude", ()))
    score = options.get("score")
    models: tuple[nn.Module | None, nn.Module | None] = (None, None)
    if isinstance(score, str) and score in SCORES and SCORES[score].needs_models:
        models = (donor, target)
    return functools.cache(lambda top: rank(profile, top=top, keep=keep, donor=models[0], target=models[1], **options))


def swept(
    donor: nn.Module,
    target: nn.Module,
    ranked: Callable[[float], ChannelSet],
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    tops: Sequence[str | float] = TOPS,
    strengths: Sequence[float] = STRENGTHS,
    report: Callable[[Setting], None] = lambda setting: None,
) -> Sweep:
    """As :func:`sweep`; ``ranked`` gives the channels of a share."""
    shares, steps = sorted({parse_top(top) for top in tops}), set(strengths)
    for strength in steps:
        require_strength(strength)
    if not shares or not steps:
        raise ActError("a sweep needs at least one share of the channels and one strength")
    sets = [ranked(top) for top in shares]  # before the first evaluation: a mistake in the options shows at once
    rows = [_setting(0.0, 0.0, 0, evaluate(target), None)]
    report(rows[0])
    for top, channels in zip(shares, sets, strict=True):
        for strength in sorted(steps):
            with transferred(donor, target, channels, strength):
                figures = evaluate(target)
            rows.append(_setting(top, strength, len(channels), figures, rows[0].figures))
            report(rows[-1])
    return Sweep(tuple(rows), sets[-1].rule)


def swept_control(
    control: Control,
    donor: nn.Module,
    target: nn.Module,
    profile: Profile,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    found: Sweep,
    *,
    report: Callable[[Setting], None] = lambda setting: None,
    **options: Unpack[RankOptions],
) -> Sweep:
    """A control at the settings of a sweep: as many other channels at each strength, or all parameters moved as far.

    Args:
        found: what :func:`sweep` found, with the same ``evaluate``; the unchanged target is not evaluated again.
        options: of :func:`act.rank`: what units are ranked, of which part of the model, and ``seed``.
    """
    rows = [found.rows[0]]

    def add(top: float, strength: float, channels: int, figures: Mapping[str, float]) -> None:
        rows.append(_setting(top, strength, channels, figures, found.rows[0].figures))
        report(rows[-1])

    if control == "interpolation":
        for strength in sorted({row.strength for row in found.rows[1:]}):
            mixed = copy.deepcopy(target)
            interpolate(mixed, [donor], strength)
            add(1.0, strength, len(profile.space), evaluate(mixed))
        return Sweep(tuple(rows))
    options["score"] = control
    ranked = ranked_by(donor, target, profile, None, options)
    for row in found.rows[1:]:
        channels = ranked(row.top)
        with transferred(donor, target, channels, row.strength):
            add(row.top, row.strength, len(channels), evaluate(target))
    return Sweep(tuple(rows))


@contextlib.contextmanager
def transferred(donor: nn.Module, target: nn.Module, channels: ChannelSet, strength: float) -> Iterator[None]:
    """During the block, the target has these channels of the donor; then its own bytes again."""
    patch = transfer(donor, target, channels, strength)
    try:
        yield
    finally:
        patch.revert(target)


def _setting(
    top: float, strength: float, channels: int, figures: Mapping[str, float], expected: Iterable[str] | None
) -> Setting:
    require_type("what evaluate gave", figures, Mapping, 'figures by name, such as {"log-likelihood": -2.5}')
    found = {name: float(value) for name, value in figures.items()}
    if not found or (expected is not None and set(found) != set(expected)):
        raise ActError(f"evaluate gave the figures {sorted(found)}; expected one or more, the same for every setting")
    bad = [name for name, value in found.items() if not math.isfinite(value)]
    if bad:
        raise ActError(
            f"the figure {bad[0]} is {found[bad[0]]} at top {top}, strength {strength}; it cannot be compared, "
            "look for NaN in the weights of the models"
        )
    return Setting(top, strength, channels, found)

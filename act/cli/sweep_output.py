"""What ``act-profile sweep`` prints: every setting beside the target, the donor and what guesses find, with errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from act.cli import console
from act.cli.ranking_options import ranked_by
from act.cli.tables import broken, fits
from act.core.counted import counted
from act.evaluation.choice import figure, figure_error, recovered, recovering
from act.evaluation.evaluate import MATCHES, Evaluation
from act.evaluation.kept import KEPT, Keeping, Share, kept_of
from act.evaluation.significance import finite, with_error
from act.evaluation.sweep import Setting, Sweep
from act.report.sources import ERROR, SHARES
from act.report.verdict import Verdict, best_setting, keeps_enough, verdict_of_settings

Errors = Mapping[str, float | None]
_Layout = Callable[[Sequence[Sequence[str]]], tuple[list[str], list[list[str]]]]
COLUMNS = ("top", "strength", "channels", *SHARES)
"""What no text can be named, since a row has it beside its figures."""


@dataclass(frozen=True)
class Swept:
    """A sweep, and what its figures are.

    Attributes:
        found: the settings.
        controls: the same of each control.
        target, donor: how they do on each text.
        errors: the standard errors of the figures, by ``id`` of a setting.
        names: what texts are called, by the name of their figures.
        keep: the figures of what is to be kept.
        given: what the settings give on each text, by ``id`` of a setting.
        doubts: why no setting is to be chosen by these figures, which then are a picture; empty if one may be.
        chosen_score: whether somebody has named the score.
    """

    found: Sweep
    controls: Mapping[str, Sweep]
    target: Mapping[str, Evaluation]
    donor: Mapping[str, Evaluation]
    errors: Mapping[int, Errors]
    names: Mapping[str, str]
    keep: Sequence[str]
    given: Mapping[int, Mapping[str, Evaluation]] = field(default_factory=dict)
    doubts: Sequence[str] = ()
    chosen_score: bool = True

    @cached_property
    def keeping(self) -> dict[str, Keeping]:
        """The scale of each figure of what is to be kept."""
        return {text: Keeping.of(self.target[text], self.donor[text]) for text in self.keep}

    @cached_property
    def called(self) -> dict[str, Keeping]:
        """The same by what texts are called."""
        return {self.names[text]: scale for text, scale in self.keeping.items()}

    @property
    def _told(self) -> list[str]:
        """The shares that a table has columns for."""
        return [name for name, known in zip(SHARES, (self.recovering, self.keep), strict=True) if known]

    @property
    def ability(self) -> str:
        """The text of what is to be recovered: the first."""
        return next(iter(self.target))

    @cached_property
    def recovering(self) -> dict[str, Keeping]:
        """The scale of the figure of what is to be recovered; empty if nothing shows what is."""
        scale = recovering(self.target[self.ability], self.donor[self.ability])
        return {self.ability: scale} if scale else {}

    @property
    def called_recovering(self) -> dict[str, Keeping]:
        """The same by what the text is called."""
        return {self.names[text]: scale for text, scale in self.recovering.items()}

    @property
    def best(self) -> Setting | None:
        """The setting that brings most back, of those that keep enough.

        None if none does both, or if there are doubts.
        """
        if self.doubts:
            return None
        before, *tried = self.found.rows
        best = best_setting(before, tried, self.keep, self.keeping)
        enough = keeps_enough(before, best, self.keep, self.keeping)
        return best if enough and best.figures[self.ability] > before.figures[self.ability] else None

    @cached_property
    def settings(self) -> dict[str, list[Setting]]:
        """The settings by method, with their figures by what texts are called, as a page shows them."""

        def renamed(row: Setting) -> Setting:
            return replace(row, figures={self.names[text]: value for text, value in row.figures.items()})

        return {name: [*map(renamed, one.rows)] for name, one in {"act": self.found, **self.controls}.items()}

    @cached_property
    def verdict(self) -> Verdict | None:
        """What the settings say, in a sentence."""
        return verdict_of_settings(
            self.settings, [self.names[text] for text in self.keep], self.called | self.called_recovering
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data: of each setting the figures by text and its shares, each with its standard error (``_se``)."""
        best = self.best
        return {
            "rows": [self._row(row) for row in self.found.rows],
            "frontier": [self._row(row) for row in self.found.frontier],
            "controls": {name: [self._row(row) for row in one.rows] for name, one in self.controls.items()},
            "keep": [*self.keep],
            "kept": {text: asdict(scale) for text, scale in self.keeping.items()},
            "recovered": {text: asdict(scale) for text, scale in self.recovering.items()},
            "best": None if best is None else self._row(best),
            "donor": {
                **{text: finite(figure(one)) for text, one in self.donor.items()},
                **{f"{text}{ERROR}": figure_error(one) for text, one in self.donor.items()},
            },
            "doubts": [*self.doubts],
            **({"rule": self.found.rule.to_json()} if self.found.rule else {}),
            "texts": {text: _described(one) for text, one in self.target.items()},
        }

    def print(self) -> None:
        """Print a table of the settings, and one of each control, then what they say."""
        best, apart = self._starred(), len({tuple(row.figures.values()) for row in self.found.rows}) > 1
        rows = self._beside("donor", {text: (figure(one), figure_error(one)) for text, one in self.donor.items()})
        rows += self._cells(self.found, best if apart else [])
        for level in ("majority", "chance"):
            rows += self._beside(level, {text: (getattr(one, level), None) for text, one in self.target.items()})
        controls = {name: self._cells(one) for name, one in self.controls.items()}
        alike = [*rows, *(row for each in controls.values() for row in each)]  # one layout for all tables
        figures = [f"{self.names[text]}{_unit(one)}" for text, one in self.target.items()]
        layout, compact = _layout(figures, self._told, alike)
        console.print_table("Sweep, ± standard error; in every column, more is better", *layout(rows), layout(alike)[1])
        if not apart:
            print("no setting differs from the target in any figure: try more channels, or more records")
        else:
            print("*: no other setting is better in every column (of equal ones, that which moves least)")
        for what in dict.fromkeys(map(_what, self.target.values())):
            print(f"{', '.join(self.names[text] for text, one in self.target.items() if _what(one) == what)}: {what}")
        if rule := self.found.rule:
            print(
                f"{ranked_by(rule)}{'' if self.chosen_score else f' ({rule.score} is what --score is by default here)'}"
            )
        if compact:
            sizes = {row.top: row.channels for row in self.found.rows if row.top}
            shares = ", ".join(f"{100 * top:g}% ({counted(size, 'channel')})" for top, size in sizes.items())
            print(f"setting: the share, {shares}, × the strength")
        for text, scale in self.called_recovering.items():
            print(f"recovered{f' of {text}' if len(self.target) - len(self.keep) > 1 else ''}: a share {scale.what}")
        if not self.recovering:
            name = self.names[self.ability]
            print(f"recovered: not known, since the donor is not clearly better than the target on {name}")
        for text, scale in self.called.items():
            print(f"kept{f' of {text}' if len(self.keep) > 1 else ''}: a share {scale.what}")
        for name, cells in controls.items():
            console.print_table(f"Control: {name}", *layout(cells), layout(alike)[1])
        if self.doubts:
            print("a picture of these records, and no ground to choose a share or strength by:")
            print("\n".join(f"  {doubt}" for doubt in self.doubts))
        elif apart and self.verdict:
            advice = [] if self.best else self.verdict.advice[:1]
            print("\n".join([self.verdict.headline, *self.verdict.details, *advice]))

    def _row(self, row: Setting) -> dict[str, Any]:
        errors = {f"{text}{ERROR}": error for text, error in self.errors[id(row)].items()}
        shares = self._shares(row)
        told: dict[str, Any] = {}
        for name in SHARES:
            share = shares.get(name)
            told |= {name: share and finite(share.value), f"{name}{ERROR}": share and finite(share.error)}
        return {**row.to_json(), **errors, **told}

    def _starred(self) -> list[Setting]:
        """The settings of the frontier; of those with the same figures, the one that moves least."""
        first: dict[tuple[float, ...], Setting] = {}
        for row in self.found.rows:
            first.setdefault(tuple(row.figures.values()), row)
        return [row for row in self.found.frontier if first[tuple(row.figures.values())] is row]

    def _cells(self, found: Sweep, best: Collection[Setting] = ()) -> list[list[str]]:
        rows = []
        for row in found.rows:
            star = "*" if any(row is one for one in best) else ""
            moved = [f"{100 * row.top:g}%", f"{row.strength:g}", f"{row.channels:,}"] if row.top else ["", "", ""]
            label = star if row.top else f"{star} target".strip()
            errors = self.errors[id(row)]
            figures = [self._cell(text, row.figures[text], errors[text]) for text in self.target]
            shares = self._shares(row)
            told = {name: share.told(KEPT) if name == "kept" else str(share) for name, share in shares.items()}
            rows.append([label, *moved, *figures, *(told.get(name, "") for name in self._told)])
        return rows

    def _beside(self, label: str, figures: Mapping[str, tuple[float | None, float | None]]) -> list[list[str]]:
        """A row of what is not a setting; none if it has no figure."""
        cells = [self._cell(text, *figures[text]) for text in self.target]
        return [[label, "", "", "", *cells, *("" for _ in self._told)]] if any(cells) else []

    def _shares(self, row: Setting) -> dict[str, Share]:
        """What a setting recovers and keeps of what suffers most, by name; what nothing shows is left out."""
        after = self.given.get(id(row), {})
        shares = {}
        if row.top and self.recovering and self.ability in after:
            shares["recovered"] = recovered(*(one[self.ability] for one in (self.target, self.donor, after)))
        known = self.keep and {*self.keep} <= after.keys() and all(one.target for one in self.keeping.values())
        if row.top and known:
            kept = [kept_of(self.target[text], self.donor[text], after[text]) for text in self.keep]
            shares["kept"] = min(kept, key=lambda share: share.value)
        return shares

    def _cell(self, text: str, value: float | None, error: float | None) -> str:
        if value is None:
            return ""
        scale, digits = (100.0, 1) if self.target[text].right is not None else (1.0, 3)
        return with_error(scale * value, None if error is None else scale * error, digits)


def _layout(figures: Sequence[str], shares: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[_Layout, bool]:
    """How cells become the columns of a table that stands, and whether share and strength are then in one of them.

    The names of texts are broken where they are too long, then share and strength are one column, without the channels.
    """
    settings, short = ["", "top", "strength", "channels"], [*map(broken, figures)]
    ways: dict[_Layout, bool] = {
        lambda cells: ([*settings, *figures, *shares], [[*row] for row in cells]): False,
        lambda cells: ([*settings, *short, *shares], [[*row] for row in cells]): False,
        lambda cells: (["  setting", *short, *shares], [_compact(row) for row in cells]): True,
    }
    return next(((way, compact) for way, compact in ways.items() if fits(*way(rows))), next(iter(ways.items())))


def _compact(row: Sequence[str]) -> list[str]:
    label, top, strength, _, *others = row
    name = f"{top} × {strength}" if top else label.removeprefix("* ")
    return [f"{'*' if label.startswith('*') else ' '} {name}", *others]


def _unit(evaluation: Evaluation) -> str:
    """What stands behind the name of a text in the heading of its figures."""
    return ", %" if evaluation.right is not None else ""


def _what(evaluation: Evaluation) -> str:
    """What the figure is, with its unit."""
    judged = evaluation.right is not None
    return f"{MATCHES[evaluation.metric]}, %" if judged else "log-likelihood, nats per token"


def _described(evaluation: Evaluation) -> dict[str, Any]:
    """What the figure of a text is, as plain data."""
    judged = evaluation.right is not None
    return {
        "metric": evaluation.metric,
        "figure": f"share of {MATCHES[evaluation.metric]}" if judged else "log-likelihood per token, in nats",
        "records": len(evaluation.nll),
        "chance": evaluation.chance,
        "majority": evaluation.majority,
    }

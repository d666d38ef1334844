"""What ``act-profile sweep`` prints: every setting beside the target, the donor and what guesses find, with errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from act.cli import console
from act.cli.ranking_options import ranked_by
from act.evaluation.choice import figure, figure_error
from act.evaluation.evaluate import MATCHES, Evaluation
from act.evaluation.kept import Keeping, kept_of
from act.evaluation.significance import finite, with_error
from act.evaluation.sweep import Setting, Sweep
from act.report.sources import ERROR
from act.report.verdict import Verdict, best_setting, verdict_of_settings

Errors = Mapping[str, float | None]


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
        left: what the settings give on these, by ``id`` of a setting.
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
    left: Mapping[int, Mapping[str, Evaluation]] = field(default_factory=dict)
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
    def best(self) -> Setting | None:
        """The setting that brings most back, of those that keep enough if there are any.

        None if none brings any, or if there are doubts.
        """
        if self.doubts:
            return None
        before, *tried = self.found.rows
        best = best_setting(before, tried, self.keep, self.keeping)
        ability = next(iter(before.figures))
        return best if best.figures[ability] > before.figures[ability] else None

    @cached_property
    def settings(self) -> dict[str, list[Setting]]:
        """The settings by method, with their figures by what texts are called, as a page shows them."""

        def renamed(row: Setting) -> Setting:
            return replace(row, figures={self.names[text]: value for text, value in row.figures.items()})

        return {name: [*map(renamed, one.rows)] for name, one in {"act": self.found, **self.controls}.items()}

    @cached_property
    def verdict(self) -> Verdict | None:
        """What the settings say, in a sentence."""
        return verdict_of_settings(self.settings, [self.names[text] for text in self.keep], self.called)

    def to_json(self) -> dict[str, Any]:
        """Plain data: of each setting the figures by text, each with its standard error (``_se``)."""
        best = self.best
        return {
            "rows": [self._row(row) for row in self.found.rows],
            "frontier": [self._row(row) for row in self.found.frontier],
            "controls": {name: [self._row(row) for row in one.rows] for name, one in self.controls.items()},
            "keep": [*self.keep],
            "kept": {text: asdict(scale) for text, scale in self.keeping.items()},
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
        columns = ["", "top", "strength", "channels"]
        columns += [f"{self.names[text]}{_unit(one)}" for text, one in self.target.items()]
        columns += ["kept"] if self.keep else []
        best, apart = self._starred(), len({tuple(row.figures.values()) for row in self.found.rows}) > 1
        rows = self._beside("donor", {text: (figure(one), figure_error(one)) for text, one in self.donor.items()})
        rows += self._cells(self.found, best if apart else [])
        for level in ("majority", "chance"):
            rows += self._beside(level, {text: (getattr(one, level), None) for text, one in self.target.items()})
        controls = {name: self._cells(one) for name, one in self.controls.items()}
        alike = [*rows, *(row for each in controls.values() for row in each)]  # one layout for all tables
        console.print_table("Sweep, ± standard error; in every column, more is better", columns, rows, alike)
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
        for text, scale in self.called.items():
            print(f"kept{f' of {text}' if len(self.keep) > 1 else ''}: a share {scale.what}")
        for name, cells in controls.items():
            console.print_table(f"Control: {name}", columns, cells, alike)
        if self.doubts:
            print("a picture of these records, and no ground to choose a share or strength by:")
            print("\n".join(f"  {doubt}" for doubt in self.doubts))
        elif apart and self.verdict:
            print(self.verdict.headline)

    def _row(self, row: Setting) -> dict[str, Any]:
        errors = {f"{text}{ERROR}": error for text, error in self.errors[id(row)].items()}
        return {**row.to_json(), **errors}

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
            rows.append([label, *moved, *figures, *self._kept(row)])
        return rows

    def _beside(self, label: str, figures: Mapping[str, tuple[float | None, float | None]]) -> list[list[str]]:
        """A row of what is not a setting; none if it has no figure."""
        cells = [self._cell(text, *figures[text]) for text in self.target]
        return [[label, "", "", "", *cells, *([""] if self.keep else [])]] if any(cells) else []

    def _kept(self, row: Setting) -> list[str]:
        """The share that is kept of what suffers most; empty where the target has nothing of a text."""
        if not self.keep:
            return []
        after = self.left.get(id(row), {})
        if not row.top or after.keys() != {*self.keep} or any(one.target == 0 for one in self.keeping.values()):
            return [""]
        shares = [kept_of(self.target[text], self.donor[text], after[text]) for text in self.keep]
        return [str(min(shares, key=lambda share: share.value))]

    def _cell(self, text: str, value: float | None, error: float | None) -> str:
        if value is None:
            return ""
        scale, digits = (100.0, 1) if self.target[text].right is not None else (1.0, 3)
        return with_error(scale * value, None if error is None else scale * error, digits)


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

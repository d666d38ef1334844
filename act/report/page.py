"""One page of a report: an HTML file that needs nothing else, from whatever a command has found."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup, escape

from act.core.counted import counted
from act.core.directions import isolated, isolated_in, straight
from act.core.errors import ActError
from act.core.files import written_whole
from act.core.places import without_folders
from act.core.versions import versions
from act.editing.patch import Patch
from act.evaluation.kept import KEPT, Keeping
from act.evaluation.sweep import Setting
from act.ranking.channel_set import ChannelSet
from act.report import figures, outcomes
from act.report.build import Report
from act.report.channels import channel_rows
from act.report.charts import Chart
from act.report.grid import Grid
from act.report.results import Results
from act.report.theme import config
from act.report.verdict import Verdict, listed, verdict_of_profiles, verdict_of_settings, verdict_on
from act.report.warnings import warnings_of

PAGE = "index.html"
VENDORED = ("vega.min.js", "vega-lite.min.js")


@dataclass(frozen=True)
class Sample:
    """The beginning of a text, and how each model goes on, by its name; ``of`` says what the text is of."""

    of: str
    prompt: str
    written: Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """What a report shows; a part that is absent has no section.

    Attributes:
        title: the heading.
        command: the command that made it, as a user types it.
        report: profiles, from :func:`act.report.build.build`.
        moved: the channels that were transferred, by the name of the model that they made; the method's first.
        strengths: the strength of each, by the same names.
        patches: what transfers changed, by name.
        results: what the models answered.
        settings: what a sweep tried, by method or control; the unchanged target has a share of 0.
        keep: the figures of the settings that are of what is to be kept.
        keeping: their scales, where more than the figure of the target is known, and that of what is recovered.
        doubts: why no setting is to be chosen by these figures, one sentence each.
        warnings: what else the reader should know.
        least_kept: the share of what is to be kept that a setting must leave.
        provenance: where it comes from: rows of a heading and a text.
        samples: how the models write.

    >>> from act.report.page import Page
    >>> channels = act.rank(act.profile_pair(donor, target, corpus), top=0.05)
    >>> html = Page("German", "act-profile demo", moved={"act": channels}).html()
    >>> html.startswith("<!DOCTYPE html>"), "<script src" in html
    (True, False)
    """

    title: str
    command: str = ""
    report: Report | None = None
    moved: Mapping[str, ChannelSet] = field(default_factory=dict)
    strengths: Mapping[str, float] = field(default_factory=dict)
    patches: Mapping[str, Patch] = field(default_factory=dict)
    results: Results | None = None
    settings: Mapping[str, Sequence[Setting]] = field(default_factory=dict)
    keep: Sequence[str] = ()
    warnings: Sequence[str] = ()
    provenance: Sequence[tuple[str, str]] = ()
    samples: Sequence[Sample] = ()
    keeping: Mapping[str, Keeping] = field(default_factory=dict)
    doubts: Sequence[str] = ()
    least_kept: float = KEPT

    @cached_property
    def sections(self) -> list[Section]:
        """The sections with pictures, in order; none is empty."""
        found = [Section(title, text, list(charts)) for title, text, charts in self._sections()]
        return _as_shown([one for one in found if one.charts])

    @property
    def charts(self) -> list[Chart]:
        """All pictures."""
        return [chart for section in self.sections for chart in section.charts]

    @property
    def verdict(self) -> Verdict | None:
        """What is said first."""
        score = next((one.rule.score for one in self.moved.values()), "")
        found = verdict_on(self.results, score, swept=bool(self.settings)) if self.results else None
        if not found and self.settings:
            found = verdict_of_settings(self.settings, self.keep, self.keeping, self.doubts, self.least_kept)
        return found or (verdict_of_profiles(self.report) if self.report else None)

    def html(self) -> str:
        """The page."""
        grid = self._grid
        data = {
            "charts": [
                {"spec": one.spec, "columns": one.columns, "headings": one.headings, "alt": one.alt, "title": one.title}
                for one in self.charts
            ],
            "config": {theme: config(theme) for theme in ("light", "dark")},
            "channels": isolated_in(channel_rows(grid, self._measured, self.moved)) if grid else None,
        }
        numbers = {id(chart): number for number, chart in enumerate(self.charts)}
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("act.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_isolated,
        )  # fmt: skip
        environment.filters["straight"] = lambda text: escape(straight(text))  # of a text that stands alone
        return environment.get_template("index.html.j2").render(
            page=self,
            verdict=self.verdict,
            moved=[*map(self._sentence, self.moved), *itertools.starmap(_of_patch, self.patches.items())],
            compared=not (self.results or self.strengths or self.patches),
            warnings=[
                *(self.results.warnings if self.results else []),
                *(warnings_of(self.report) if self.report else []),
                *self.warnings,
                *(f"sweep: {one.rstrip('.')}." for one in self.doubts if self.results),  # else the verdict says them
            ],
            coverage=[row for row in self.report.data["concentration"] if row["coverage"] is not None]
            if self.report
            else [],
            command=without_folders(self.command),
            origins=[(name, without_folders(text)) for name, text in (*self.provenance, *self._origins())],
            number_of=lambda chart: numbers[id(chart)],
            figures=_in_script(json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))),
            table=data["channels"],
            library=[_in_library(_vendored(name)) for name in VENDORED],
            licence=_vendored("LICENSE"),
        )

    @property
    def _measured(self) -> Sequence[Any]:
        return self.report.measured if self.report else []

    @cached_property
    def _grid(self) -> Grid | None:
        spaces = [one.top.space for one in self._measured] + [one.space for one in self.moved.values()]
        for name, one in self.moved.items():
            if difference := spaces[0].first_difference(one.space):
                raise ActError(f"the channel set {name} is of another architecture than the rest: {difference}")
        return Grid.of(spaces[0]) if spaces else None

    def _sections(self) -> Iterator[tuple[str, str, Iterator[Chart]]]:
        if self.results:
            yield "Before and after", "What each model answers.", outcomes.of_results(self.results)
            yield "Tasks of lm-evaluation-harness", "", outcomes.of_tasks(self.results)
        if self.settings:
            yield "Shares and strengths", "", outcomes.of_settings(self.settings, self.keep)
        if grid := self._grid:
            yield "Where it lies", "", self._places(grid)
        if self.patches:
            maps = (figures.of_patch(name, patch) for name, patch in self.patches.items())
            yield (
                "Where the patches lie" if len(self.patches) > 1 else "Where the patch lies",
                "",
                itertools.chain.from_iterable(maps),
            )
        if self.report:
            yield "Concentration", "", figures.of_concentration(self.report)
            yield "Overlap", "", figures.of_overlaps(self.report.data["overlaps"], self.report.matrix)
            yield (
                "Necessity and sufficiency",
                "",
                itertools.chain(
                    figures.of_necessity(self.report.data["necessity"]),
                    figures.of_recovered(self.report.data["recovered"]),
                ),
            )
        if len(self.moved) > 1:
            yield "Overlap of what was moved", "", figures.of_overlaps(*figures.of_sets(self.moved))

    def _places(self, grid: Grid) -> Iterator[Chart]:
        if self.report:
            for one in self._measured:
                yield from figures.of_places(grid, one.name, one.top, one.score)
            yield from figures.of_experts(grid, self._measured)
        names = {one.name for one in self._measured}
        shown = [one.top.index for one in self._measured]
        for name, channels in self.moved.items():
            if len(channels) and not any(torch.equal(channels.index, index) for index in shown):
                called = f"{name} (moved)" if name in names else name
                yield from figures.of_places(grid, called, channels)

    def _sentence(self, name: str) -> str:
        """What was moved, in a sentence."""
        channels, grid, strength = self.moved[name], self._grid, self.strengths.get(name)
        size, all_channels = len(channels), len(channels.space)
        cells = grid.cells(grid.chosen(channels.index)) if grid else None
        if not size or grid is None or cells is None:
            return f"{name}: no channel."
        by_kind = dict(zip(grid.kinds, cells.sum(1).tolist(), strict=True))
        by_place = dict(zip(grid.places, cells.sum(0).tolist(), strict=True))
        order = sorted(by_kind, key=lambda kind: -by_kind[kind])
        kinds = [f"{kind} {by_kind[kind]:,.0f}" for kind in order if by_kind[kind]]
        most = [place for place in sorted(by_place, key=lambda one: -by_place[one])[:3] if by_place[place]]
        where = listed([f"{figures.place_name(place)} ({by_place[place] / size:.0%})" for place in most])
        share = f"{100 * size / all_channels:.3g} %{'' if strength is None else f' at strength {strength:g}'}"
        return (
            f"{name}: {size:,} of {all_channels:,} channels ({share}), by {channels.rule}; "
            f"{', '.join(kinds[:6])}{' and others' if len(kinds) > 6 else ''}; most in {where}."
        )

    def _origins(self) -> Iterator[tuple[str, str]]:
        for one in self._measured:
            for side, model in one.profile.provenance.models.items():
                yield side, str(model)
            for corpus in one.profile.provenance.corpora:
                tokens = f"{corpus.counted:,} of {counted(corpus.tokens, 'token')} counted"
                yield f"text of {one.name}", f"{corpus.name}: {counted(corpus.records, 'record')}, {tokens}"
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions().items())


def _of_patch(name: str, patch: Patch) -> str:
    donors = [
        f"{counted(one.channels, 'channel')} of {one.name or 'an unnamed donor'} at strength {one.strength}"
        for one in patch.provenance.donors
    ]
    notes = f"; {'; '.join(patch.notes)}" if patch.notes else ""
    given = listed(donors) if donors else "no donor"
    return f"{name}: {counted(len(patch), 'value')} of {counted(patch.parameters, 'parameter')}, from {given}{notes}."


@dataclass(frozen=True)
class Section:
    """A heading with its pictures."""

    title: str
    text: str
    charts: list[Chart]

    @property
    def single(self) -> list[Chart]:
        """Pictures that are always shown."""
        return [one for one in self.charts if not one.group]

    @property
    def groups(self) -> dict[str, list[Chart]]:
        """Pictures of which one is shown at a time, by what they have in common."""
        found: dict[str, list[Chart]] = {}
        for one in self.charts:
            if one.group:
                found.setdefault(one.group, []).append(one)
        return found


def write_page(page: Page, path: Path, *, force: bool = False) -> None:
    """Write a page as one file, whole or not at all.

    Raises:
        ActError: ``path`` exists and ``force`` is False; its folder does not exist or cannot be written to.
    """
    with written_whole(path, force=force) as temporary:
        put_page(page, temporary)


def put_page(page: Page, path: Path) -> None:
    """As :func:`write_page`, in place: for a folder that is about to be renamed."""
    path.write_bytes(page.html().encode("utf-8", "replace"))  # a file's name may hold what UTF-8 does not


def _as_shown(sections: list[Section]) -> list[Section]:
    """The pictures with names that differ, and with no name of a person that turns the words around it."""
    taken: set[str] = set()

    def distinct(chart: Chart) -> Chart:
        name, number = chart.name, 2
        while name in taken:
            name, number = f"{chart.name}-{number}", number + 1
        taken.add(name)
        told = {
            key: isolated_in(getattr(chart, key)) for key in ("title", "alt", "columns", "spec", "headings", "note")
        }
        return replace(chart, name=name, **told)

    return [replace(one, charts=[distinct(chart) for chart in one.charts]) for one in sections]


def _isolated(value: object) -> object:
    return isolated(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _vendored(name: str) -> str:
    return resources.files("act.report").joinpath("vendor").joinpath(name).read_text(encoding="utf-8")


def _in_script(text: str) -> str:
    """JSON that no parser of HTML takes for a tag."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _in_library(text: str) -> str:
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")

"""The page of a finished recipe: what came out, what was moved, and where the ability lives."""

from __future__ import annotations

from typing import Any

from act.evaluation.kept import KEPT
from act.evaluation.sweep import Setting
from act.profiles.profile import PairProfile
from act.ranking.rank import DEFAULT_TOP
from act.ranking.scores import SCORES
from act.recipes.schema import Donor, Recipe
from act.recipes.stages import Stages
from act.recipes.variants import compared, result
from act.report.build import Report, build, measure
from act.report.page import Page
from act.report.sources import results_of


def page_of(recipe: Recipe, stages: Stages, report: dict[str, Any], command: str) -> Page:
    """The page of a recipe whose stages are done.

    Args:
        report: the content of its ``report.json``.
        command: what a user types to make it.
    """
    names = {
        id(donor): donor.corpus if len(recipe.donor) == 1 else f"{number}: {donor.corpus}"
        for number, donor in enumerate(recipe.donor, start=1)
    }
    kinds = {
        one.kind: one.score or recipe.score for one in (result(recipe), *compared(recipe)) if one.origin == "transfer"
    }
    moved = {
        kind if len(recipe.donor) == 1 else f"{kind}, {names[id(donor)]}": stages.rank(donor, score)
        for kind, score in kinds.items()
        for donor in recipe.donor
    }
    strengths = {
        name: donor["strength"]
        for name, donor in zip(moved, report["donors"], strict=False)  # those of the transfer come first
        if isinstance(donor["strength"], float)
    }
    swept = report["sweep"]
    tried = {"act": swept["candidates"], **swept.get("controls", {})} if swept else {}  # none in outputs of before
    return Page(
        recipe.folder.name,
        command,
        report=_profiles(recipe, stages, names),
        moved=moved,
        strengths=strengths,
        results=results_of(report) if report["results"] or report.get("tasks") else None,
        settings={method: _settings(rows, *_swept(recipe)) for method, rows in tried.items()},
        keep=_swept(recipe)[1:],
        warnings=report["moved"]["notes"],
        least_kept=recipe.sweep.least_kept if recipe.sweep else KEPT,
    )


def _profiles(recipe: Recipe, stages: Stages, names: dict[int, str]) -> Report | None:
    """Where each ability lives; None for several donors, and for a score that looks at no activations or compares."""
    several = len(recipe.models()) > 2
    if several or not SCORES[recipe.score].looks_at_activations or recipe.score == "lape":
        return None

    def profile(donor: Donor, corpus: str) -> PairProfile:
        return stages.profile(donor, corpus)  # type: ignore[return-value]  # measure takes what attribute makes, too

    tops = [stages.rank(donor, recipe.score).rule.top or DEFAULT_TOP for donor in recipe.donor]
    measured = [
        one
        for donor, top in zip(recipe.donor, tops, strict=True)
        for one in measure(
            [profile(donor, donor.corpus)],
            [names[id(donor)]],
            score=recipe.score,
            normalize=recipe.normalize,
            top=top,
            keep=[profile(donor, corpus) for corpus in donor.kept],
            include=recipe.include,
            exclude=recipe.exclude,
        )
    ]
    return build(measured, top=tops[0])


def _swept(recipe: Recipe) -> list[str]:
    """What a sweep chose on, by name: the ability, and what was to be kept."""
    return [recipe.sweep.corpus, " and ".join(recipe.sweep.kept)] if recipe.sweep else []


def _settings(tried: list[dict[str, Any]], ability: str, keep: str) -> list[Setting]:
    """What a sweep tried of a method or control, and the unchanged target, which recovers nothing and keeps all."""
    rows = [(one["top"], one["strength"], one["channels"], one["recovered"], one["kept"]) for one in tried]
    return [
        Setting(top, strength, channels, {ability: recovered, keep: kept})
        for top, strength, channels, recovered, kept in [(0.0, 0.0, 0, 0.0, 1.0), *rows]
    ]

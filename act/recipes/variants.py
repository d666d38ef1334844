"""The models that a recipe compares: target, result, donors, and controls, which show what simpler changes achieve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from act.ranking.scores import ScoreName
from act.recipes.schema import Recipe

Origin = Literal["given", "transfer", "interpolation", "copy"]
"""Where a model comes from: a folder of the recipe, a transfer, all parameters moved, the unchanged target."""


@dataclass(frozen=True)
class Variant:
    """One model of the comparison.

    Attributes:
        kind: what it is called in the report, without the tune.
        origin: how it is made.
        given: for a given model, how the recipe names it.
        score: what the channels of a transfer are ranked by.
        tuned: whether it is tuned afterwards.
    """

    kind: str
    origin: Origin
    given: str | None = None
    score: ScoreName | None = None
    tuned: bool = False

    @property
    def name(self) -> str:
        """What it is called in the report."""
        if self.origin == "copy":
            return "tune only"
        return f"{self.kind} + tune" if self.tuned else self.kind

    @property
    def is_result(self) -> bool:
        """Whether it is the transfer that the recipe asks for, tuned or not."""
        return self.kind == "act"


def result(recipe: Recipe) -> Variant:
    """The model that becomes the output."""
    return Variant("act", "transfer", score=recipe.score, tuned=recipe.tune is not None)


def compared(recipe: Recipe) -> list[Variant]:
    """All models that are evaluated, the target first; none if the recipe evaluates nothing."""
    if not recipe.evaluate:
        return []
    made = [replace(result(recipe), tuned=False)]
    for control in recipe.evaluate.controls:
        if control == "interpolation":
            made.append(Variant(control, "interpolation"))
        else:
            made.append(Variant(control, "transfer", score=control))
    found = [Variant("target", "given", recipe.target), *made]
    if recipe.tune:
        tuned = [replace(variant, tuned=True) for variant in (made[0], Variant("target", "copy"), *made[1:])]
        found = [*found[:2], tuned[0], *found[2:], *tuned[1:]]
    donors = [Variant(f"donor {number}", "given", one.model) for number, one in enumerate(recipe.donor, start=1)]
    return found + donors


def contrasts(variants: list[Variant]) -> list[tuple[Variant, Variant]]:
    """Which two are compared, before and after: the target with every other; each control with the transfer, both
    tuned or both not."""
    target, *others = variants
    found = [(target, other) for other in others]
    for act in (one for one in others if one.is_result):
        controls = [one for one in others if not one.is_result and one.origin != "given" and one.tuned == act.tuned]
        found += [(control, act) for control in controls]
    return found

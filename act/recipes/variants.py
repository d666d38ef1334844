"""The models that a recipe compares: target, result, donors, and controls, which show what simpler changes achieve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from act.ranking.scores import ScoreName
from act.recipes.schema import Recipe

Origin = Literal["given", "transfer", "interpolation", "copy"]
"""Where a model comes from: a folder of the recipe, a transfer, all parameters moved, the unchanged target."""


@dataclass(frozen=True)
class Variant:
    """One model of the comparison.

    Attributes:
        name: what it is called in the report.
        origin: how it is made. A given model is not tuned; all others are, if the recipe tunes.
        folder: the folder of a given model.
        score: what the channels of a transfer are ranked by.
    """

    name: str
    origin: Origin
    folder: str | None = None
    score: ScoreName | None = None


def result(recipe: Recipe) -> Variant:
    """The transfer that the recipe asks for, which becomes its output."""
    return Variant("act", "transfer", score=recipe.score)


def compared(recipe: Recipe) -> list[Variant]:
    """All models that are evaluated, the target first; none if the recipe evaluates nothing."""
    if not recipe.evaluate:
        return []
    found = [Variant("target", "given", recipe.base_model), result(recipe)]
    found += [Variant(f"donor {number}", "given", donor.model) for number, donor in enumerate(recipe.models, start=1)]
    if recipe.tune:
        found.append(Variant("tune without transfer", "copy"))
    for control in recipe.evaluate.controls:
        if control == "interpolation":
            found.append(Variant(control, "interpolation"))
        else:
            found.append(Variant(control, "transfer", score=control))
    return found

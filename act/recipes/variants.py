"""The models that a recipe compares: target, result, donors, and the controls that say what else would have done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from act.ranking.scores import ScoreName
from act.recipes.schema import Recipe

Origin = Literal["given", "transfer", "interpolation", "copy"]
"""Where a model comes from: a folder of the recipe, a transfer, all parameters moved, the target as it was."""


@dataclass(frozen=True)
class Variant:
    """One model of the comparison.

    Attributes:
        name: what it is called in the report.
        origin: how it is made; a model that is given is not tuned, each of the others is, where the recipe tunes.
        folder: of a model that is given.
        score: of a transfer: what its channels are ranked by.
    """

    name: str
    origin: Origin
    folder: str | None = None
    score: ScoreName | None = None


def result(recipe: Recipe) -> Variant:
    """The transfer that the recipe asks for, which becomes its output."""
    return Variant("act", "transfer", score=recipe.score)


def compared(recipe: Recipe) -> list[Variant]:
    """All that are evaluated, the target first; none if the recipe evaluates nothing."""
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

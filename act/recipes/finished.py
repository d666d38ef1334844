"""The page of a recipe's output, made again: from what its stages have kept; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from act.core.errors import ActError
from act.core.plain_yaml import read_yaml
from act.core.scratch import reserved
from act.recipes.cache import Cache
from act.recipes.page import page_of
from act.recipes.reading import RUN, read_recipe
from act.recipes.recipe import REPORT, RESOLVED
from act.recipes.stages import Stages
from act.report.page import Page


def page_of_output(folder: Path, command: str) -> Page:
    """The page that a finished recipe has written, with what was measured and moved.

    Args:
        folder: the output.
        command: what a user types to make the page.

    Raises:
        ActError: the stages were removed or changed; an input was, too, by which it is known that they are these.
    """
    path = folder / RESOLVED
    recipe = read_recipe(path)
    with reserved(recipe.folder):
        cache = Cache(recipe)
        made = read_yaml(path, "a resolved recipe")[1].get(RUN)
        if not isinstance(made, dict) or made.get("key") != cache.key:
            raise ActError("the recipe or its inputs have changed since")
        # the tokenizer serves only work that is still to do, and there is to be none
        stages = Stages(recipe, cache, None, _refuse)  # type: ignore[arg-type]
        try:
            return page_of(recipe, stages, json.loads((folder / REPORT).read_text(encoding="utf-8")), command)
        except _ToDo as todo:
            raise ActError(f"{cache.folder} holds no result of {todo}") from None


class _ToDo(Exception):
    """What a stage would do."""


def _refuse(doing: str) -> None:
    raise _ToDo(doing)

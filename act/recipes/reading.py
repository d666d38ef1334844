"""Reading a recipe: an error names the line of every mistake, and the key that a misspelt one may stand for."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from act.core.errors import ActError, one_of
from act.core.plain_yaml import read_yaml
from act.data.mapped import require_templates
from act.editing.strength import require_strength
from act.ranking.scores import SCORES
from act.ranking.selection import parse_top
from act.recipes.schema import Donor, Evaluating, Parameters, Recipe, Records, Section, Tuning

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SECTIONS: dict[str, type[Section]] = {
    "models": Donor,
    "parameters": Parameters,
    "tune": Tuning,
    "evaluate": Evaluating,
}

Place = tuple[int | str, ...]
"""The keys and item numbers that lead from the root of a YAML file to a place in it."""


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe; no model or corpus is opened.

    Raises:
        ActError: no such file; not YAML; one or more mistakes, each with its line.

    >>> from tempfile import TemporaryDirectory
    >>> models = "[{model: donor, corpus: german.jsonl}]"
    >>> text = f"merge_method: act\\nbase_model: target\\noutput: out\\nmodels: {models}\\n"
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "recipe.yaml")
    ...     _ = path.write_text(text)
    ...     recipe = act.recipe.read_recipe(path)
    >>> recipe.base_model, recipe.models[0].parameters.weight
    ('target', 0.4)
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        raise ActError(f"no such recipe: {path}; expected a YAML file")
    root, data = read_yaml(path, "a recipe")
    if not isinstance(data, dict):
        raise ActError(f"{path} is empty or not a mapping; expected keys such as merge_method, base_model and models")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found = [f"line {_line(root, one['loc'])}: {_mistake(one)}" for one in error.errors()]
        raise ActError(f"{path}, {'; '.join(found)}") from error
    for place, mistake in _contradictions(recipe):
        raise ActError(f"{path}, line {_line(root, place)}: {mistake}")
    return recipe


def _contradictions(recipe: Recipe) -> Iterator[tuple[Place, ActError]]:
    """What the schema cannot check: values that a stage would refuse, and keys that have no effect together."""
    for number, donor in enumerate(recipe.models):
        place = ("models", number)
        weight = donor.parameters.weight
        try:
            parse_top(donor.parameters.top_p)
        except ActError as error:
            yield (*place, "parameters", "top_p"), error
        try:
            for strength in weight.values() if isinstance(weight, dict) else [weight]:
                require_strength(strength)
        except ActError as error:
            yield (*place, "parameters", "weight"), error
        if wrong := SCORES[recipe.score].wrong_keep(bool(donor.keep)):
            yield (*place, "keep" if donor.keep else "corpus"), ActError(wrong)
        if donor.corpus in donor.kept:
            wrong = f"{donor.corpus} is both the ability to give and one to keep; keep another"
            yield (*place, "keep"), ActError(wrong)
    if recipe.tune:
        try:
            recipe.tune.settings()
        except ActError as error:
            yield ("tune",), error
    yield from _in_corpora(recipe)
    yield from _in_evaluate(recipe)


def _in_corpora(recipe: Recipe) -> Iterator[tuple[Place, ActError]]:
    used = recipe.corpora_used()
    for name, records in recipe.corpora.items():
        place: Place = ("corpora", name)
        if name not in used:
            yield place, ActError(f"no section reads the corpus {name}; leave it out")
        if records.rows and records.rows[0] >= records.rows[1]:
            wrong = f"rows is {records.rows}; expected the first row and the one after the last"
            yield (*place, "rows"), ActError(wrong)
        try:
            require_templates(records.columns)
        except ActError as error:
            yield (*place, "columns"), error


def _in_evaluate(recipe: Recipe) -> Iterator[tuple[Place, ActError]]:
    if not recipe.evaluate:
        return
    if not (recipe.evaluate.corpora or recipe.evaluate.tasks):
        yield ("evaluate",), ActError("evaluate has neither corpora nor tasks, so nothing would be measured; give one")
    for name in ("task_folder", "limit", "fewshot"):
        if getattr(recipe.evaluate, name) is not None and not recipe.evaluate.tasks:
            yield ("evaluate", name), ActError(f"{name} has no effect without tasks; leave it out, or give tasks")


def _line(node: yaml.Node, place: Place) -> int:
    """The line of the key that an error is about, or of the section that lacks it."""
    line = node.start_mark.line
    for step in place:
        if isinstance(node, yaml.MappingNode):
            match = next((pair for pair in node.value if pair[0].value == str(step)), None)
            if match is None:
                break
            line, node = match[0].start_mark.line, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


def _mistake(error: ErrorDetails) -> str:
    *sections, key = error["loc"] or ("it",)
    if error["type"] == "extra_forbidden":
        keys = _keys(sections)
        near = difflib.get_close_matches(str(key), keys, 1)
        advice = f"did you mean {near[0]!r}?" if near else one_of(keys)
        return f"no key {key!r} here; {advice}"
    if error["type"] == "missing":
        return f"the key {key!r} is missing"
    names = [step for step in error["loc"] if isinstance(step, str)]
    return f"{'.'.join(names)} is {reprlib.repr(error['input'])}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(sections: list[int | str]) -> list[str]:
    names = [step for step in sections if isinstance(step, str)]
    kind = Records if names[:1] == ["corpora"] else SECTIONS[names[-1]] if names else Recipe
    return list(kind.model_fields)

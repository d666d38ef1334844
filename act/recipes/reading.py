"""Reading a recipe: an error names the line of every mistake, what was expected there, and what may have been meant.

The file is walked beside the schema, section by section, so that every message is in the words of the file.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from act.core.errors import ActError, Missing, one_of
from act.core.files import require_folder_name
from act.core.near import near_path
from act.core.plain import Label
from act.core.plain_yaml import read_yaml
from act.data.mapped import require_templates
from act.editing.strength import require_strength
from act.editing.tune import TuneSettings
from act.ranking.demands import contradictions
from act.ranking.scores import SCORES
from act.ranking.selection import parse_top
from act.recipes.reference import choices_of, expected, section_of
from act.recipes.schema import Donor, Recipe, Records, Section, Sweeping, Tuning
from act.recipes.written import Written

RUN = "run"
"""The section that a finished run adds to the recipe that it keeps with its output; it says nothing to another run."""

Place = tuple[int | str, ...]
"""The keys, under their present names, and the item numbers that lead from the root of a recipe to a place in it."""


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe; no model or corpus is opened.

    Raises:
        ActError: no such file; not YAML; one or more mistakes, each with its line.

    >>> from tempfile import TemporaryDirectory
    >>> text = "target: specialist\\ndonor: [{model: base, corpus: german.jsonl}]\\noutput: out\\n"
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "recipe.yaml")
    ...     _ = path.write_text(text)
    ...     recipe = act.recipe.read_recipe(path)
    >>> recipe.target, recipe.donor[0].strength
    ('specialist', 0.4)
    """
    path = Path(path)
    if os.path.isdir(path):
        kept = sorted(one.name for one in path.iterdir() if one.suffix in _ENDINGS)
        raise ActError(f"{path} is a folder; expected a YAML file{f', such as {path / kept[0]}' if kept else ''}")
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        raise Missing(f"no such recipe: {path}; expected a YAML file", near_path(str(path)))
    try:
        root, data = read_yaml(path, _A_RECIPE)
    except ActError as error:
        if path.suffix in _ENDINGS or _A_RECIPE in str(error):
            raise
        raise ActError(f"{error}; expected {_A_RECIPE}") from error
    if not isinstance(data, dict) or not isinstance(root, yaml.MappingNode):
        raise ActError(f"{path} is empty or not a mapping; expected {_A_RECIPE}")
    if _is_something_else(data):
        keys = ", ".join(f"{str(key)!r:.40}" for key in [*data][:3])
        raise ActError(f"{path} is no recipe: it has other keys ({keys}, …); expected {_A_RECIPE}")
    walk = _Walk()
    found = walk.section(Recipe, {key: value for key, value in data.items() if key != RUN}, root, ())
    if not walk.mistakes:
        recipe = Recipe.model_validate(found)
        walk.mistakes = [(walk.line(place), str(mistake)) for place, mistake in _contradictions(recipe)]
    if walk.mistakes:
        said = "; ".join(f"line {line}: {mistake}" for line, mistake in sorted(walk.mistakes))
        raise ActError(f"{path}, {said}")
    recipe._written = Written(path, walk.texts)
    return recipe


_ENDINGS = (".yaml", ".yml")
_A_RECIPE = "a YAML file with the keys target, donor and output; act-profile recipe --example shows one"
_NEAR = 0.75  # config.json has a model_type, which is nothing like the key models of earlier versions


def _is_something_else(data: dict[Any, Any]) -> bool:
    """Whether a mapping is no recipe, not even one with mistakes: it has nothing that one needs, and little else."""
    needed = {name for name, field in Recipe.model_fields.items() if field.is_required()}
    needed |= {old for old, name in Recipe.old.items() if name in needed}
    if any(difflib.get_close_matches(str(key), needed, 1, _NEAR) for key in data):
        return False
    return 2 * sum(key in Recipe.model_fields for key in data) < len(data)


class _Walk:
    """A recipe's data under the present names of its keys, with the lines of these, and what is wrong."""

    def __init__(self) -> None:
        self.mistakes: list[tuple[int, str]] = []
        self.texts: dict[str, list[int]] = {}
        self._lines: dict[Place, int] = {(): 1}

    def line(self, place: Place) -> int:
        """The line of a key, or of the section that lacks it."""
        return self._lines[place] if place in self._lines else self.line(place[:-1])

    def section(
        self, kind: type[Section], data: dict[Any, Any], node: yaml.MappingNode, place: Place
    ) -> dict[str, Any]:
        """The keys of a section that are right; those that are not are added to the mistakes."""
        found: dict[str, Any] = {}
        given: dict[str, str] = {}
        for key, value, at, child in self._entries(kind, data, node):
            name = kind.old.get(str(key), str(key))
            if name not in kind.model_fields or not isinstance(key, str):
                near = difflib.get_close_matches(str(key), [*kind.model_fields, *kind.old], 1)
                advice = f"did you mean {near[0]!r}?" if near else one_of(kind.model_fields)
                self._wrong(at, f"no key {str(key)!r:.60} here; {advice}")
            elif name in given:
                self._wrong(at, f"{given[name]!r} and {key!r} are two names of one key; keep {name!r}")
            else:
                given[name] = key
                here = (*place, name)
                self._lines[here] = at
                found[name] = self._value(kind, name, (*place, key), value, child, here)
        for name, field in kind.model_fields.items():
            if field.is_required() and name not in given:
                what = f" of {_named(place)}" if place else ""
                self._wrong(self.line(place), f"the key {name!r}{what} is missing; expected {expected(kind, name)}")
        return found

    def _entries(
        self, kind: type[Section], data: dict[Any, Any], node: yaml.MappingNode
    ) -> Iterator[tuple[Any, Any, int, yaml.Node]]:
        """The keys of a section with their values, lines and nodes; those of one that is unfolded in its place."""
        for key, value in data.items():
            at, child = _child(node, key)
            if key in kind.unfolded and isinstance(value, dict) and isinstance(child, yaml.MappingNode):
                yield from self._entries(kind, value, child)
            else:
                yield key, value, at, child

    def _value(self, kind: type[Section], name: str, shown: Place, value: Any, node: yaml.Node, place: Place) -> Any:
        section, shape = section_of(kind, name)
        if section and shape == "names" and isinstance(value, dict):
            return {
                key: self._item(section, one, node, key, (*place, self._name(key, node))) for key, one in value.items()
            }
        if section and shape == "list" and isinstance(value, list) and value:
            return [self._item(section, one, node, number, (*place, number)) for number, one in enumerate(value)]
        if section and shape == "one" and isinstance(value, dict) and isinstance(node, yaml.MappingNode):
            return self.section(section, value, node, place)
        return self._leaf(kind, name, shown, value, node)

    def _name(self, key: Any, node: yaml.Node) -> str:
        """A name under which a section stands."""
        try:
            return TypeAdapter(Label).validate_python(key)
        except ValidationError:
            wrong = (
                f"the name {_shown(key)}; expected a text of at most 500 characters, none of them a control character"
            )
            self._wrong(_child(node, key)[0], wrong)
        return str(key)

    def _item(self, section: type[Section], value: Any, node: yaml.Node, key: Any, place: Place) -> Any:
        """One of several sections: of a list, or under a name."""
        self._lines[place], child = _child(node, key)
        if isinstance(value, dict) and isinstance(child, yaml.MappingNode):
            return self.section(section, value, child, place)
        if section.short and isinstance(value, str):
            return {section.short: self._leaf(section, section.short, place, value, child)}
        keys = " and ".join(name for name, field in section.model_fields.items() if field.is_required())
        shown = f"{_named(place)} is {_shown(value, child)}"
        wrong = f"{shown}; expected a section with {keys}, such as {{{keys.split()[0]}: …}}"
        self._wrong(self._lines[place], wrong)
        return value

    def _leaf(self, kind: type[Section], name: str, shown: Place, value: Any, node: yaml.Node) -> Any:
        self._note(node)
        try:
            if isinstance(value, bool):  # which pydantic takes for 0 or 1
                raise ValueError
            kind.__pydantic_validator__.validate_assignment(kind.model_construct(), name, value)
            if require := _REQUIRED.get((kind, name)):
                require(value)
        except ActError as error:
            key, said = _named(shown), str(error)
            begun = said.startswith(f"{name} is ")
            self._wrong(node.start_mark.line + 1, said.replace(name, key, 1) if begun else f"{key}: {said}")
        except ValueError:
            wrong = f"{_named(shown)} is {_shown(value, node)}; expected {expected(kind, name)}"
            choices = choices_of(kind, name)
            texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
            if any(not text.isprintable() for text in texts):
                wrong += " without control characters"
            meant = [
                near for text in texts if text not in choices for near in difflib.get_close_matches(text, choices, 1)
            ]
            self._wrong(node.start_mark.line + 1, f"{wrong}; did you mean {meant[0]}?" if meant else wrong)
        return value

    def _note(self, node: yaml.Node) -> None:
        """Remember on which lines the texts of a value are."""
        if isinstance(node, yaml.ScalarNode):
            self.texts.setdefault(node.value, []).append(node.start_mark.line + 1)
        elif isinstance(node, yaml.SequenceNode):
            for one in node.value:
                self._note(one)
        elif isinstance(node, yaml.MappingNode):
            for _, one in node.value:
                self._note(one)

    def _wrong(self, line: int, mistake: str) -> None:
        self.mistakes.append((line, mistake))


def _child(node: yaml.Node, key: Any) -> tuple[int, yaml.Node]:
    """The line and the node of a key or an item; of what merges and aliases bring, those of the mapping itself."""
    if isinstance(node, yaml.SequenceNode):
        return int(node.value[key].start_mark.line) + 1, node.value[key]
    for mark, child in reversed(node.value):
        if isinstance(mark, yaml.ScalarNode) and mark.value == str(key):
            return int(mark.start_mark.line) + 1, child
    return int(node.start_mark.line) + 1, node


def _named(place: Place) -> str:
    """A place as a reader of the file would call it: ``tune.steps``, ``donor 2.keep``."""
    named = ""
    for step in place:
        named += f" {step + 1}" if isinstance(step, int) else f".{step}" if named else str(step)
    return named


def _shown(value: Any, node: yaml.Node | None = None) -> str:
    """A value as the file has it."""
    if value is None or value == "":
        return "empty"
    if isinstance(node, yaml.ScalarNode) and not isinstance(value, str):
        return f"{node.value:.40}"
    return reprlib.repr(value)


def _require_each_top(shares: list[float | str]) -> None:
    for share in shares:
        parse_top(share)


def _require_strengths(strength: float | list[float] | dict[str, float]) -> None:
    """Raise :class:`ActError` for a strength, one of several, or that of a pattern."""
    for one in (
        strength.values() if isinstance(strength, dict) else strength if isinstance(strength, list) else [strength]
    ):
        require_strength(one)


def _require_rows(rows: list[int] | None) -> None:
    if rows and rows[0] >= rows[1]:
        raise ActError(f"rows is {rows}; expected the first row and the one after the last")


_REQUIRED: dict[tuple[type[Section], str], Callable[[Any], None]] = {
    (Recipe, "output"): lambda output: require_folder_name(Path(output)),
    (Donor, "top"): lambda share: _require_each_top([share]),
    (Donor, "strength"): _require_strengths,
    (Donor, "strength_of"): _require_strengths,
    (Sweeping, "top"): _require_each_top,
    (Sweeping, "strength"): _require_strengths,
    (Records, "rows"): _require_rows,
    (Records, "columns"): require_templates,
}
"""What raises :class:`ActError`, which begins with the key, for values of the right type that a stage would refuse."""


def _contradictions(recipe: Recipe) -> Iterator[tuple[Place, ActError]]:
    """What the schema cannot check: values that a stage would refuse, and keys that have no effect together."""
    for number, donor in enumerate(recipe.donor):
        yield from _in_donor(donor, ("donor", number))
    yield from dict(_in_ranking(recipe)).items()
    if recipe.sweep:
        yield from _in_sweep(recipe)
    if recipe.tune:
        yield from _in_tune(recipe.tune)
    yield from _in_evaluate(recipe)
    for place, section, names in (
        ((), recipe, ("granularity", "include", "exclude", "ignore_columns")),
        (("evaluate",), recipe.evaluate, ("corpus", "task", "controls")),
        *((("donor", number), donor, ("keep",)) for number, donor in enumerate(recipe.donor)),
    ):
        for name in names:
            listed = getattr(section, name, None)
            for twice in _twice(listed) if isinstance(listed, list) else ():
                yield (*place, name), ActError(f"{name} names {twice} twice; leave one out")
    given = [donor.model_dump_json() for donor in recipe.donor]
    for number, one in enumerate(given):
        if one in given[:number]:
            wrong = f"donor {number + 1} is donor {given.index(one) + 1} again; leave one out"
            yield ("donor", number), ActError(wrong)


def _in_donor(donor: Donor, place: Place) -> Iterator[tuple[Place, ActError]]:
    if isinstance(donor.strength, dict) and (donor.strength_of or not donor.strength):
        wrong = "strength has patterns of its own, or none; give one number there, and the patterns in strength_of"
        yield (*place, "strength"), ActError(wrong)
    if donor.corpus in donor.kept:
        wrong = f"{donor.corpus} is both the ability to give and one to keep; keep another"
        yield (*place, "keep"), ActError(wrong)


def _in_ranking(recipe: Recipe) -> Iterator[tuple[Place, ActError]]:
    """What rankings would refuse, that of a control included."""
    cost, normalize = recipe.cost, recipe.normalize
    for number, donor in enumerate(recipe.donor):
        for name, error in contradictions(SCORES[recipe.score], cost=cost, normalize=normalize, kept=bool(donor.keep)):
            keep: Place = ("donor", number, "keep" if donor.keep else "corpus")
            yield keep if name == "keep" else (name,), error
    for control in recipe.evaluate.controls if recipe.evaluate else ():
        if control in SCORES:
            for name, error in contradictions(SCORES[control], cost="auto", normalize=normalize, kept=False):
                yield (name,), ActError(f"control {control}: {error}")


def _in_sweep(recipe: Recipe) -> Iterator[tuple[Place, ActError]]:
    sweep = recipe.sweep
    assert sweep
    if len(recipe.donor) > 1:
        wrong = (
            f"sweep chooses for one donor, and there are {len(recipe.donor)}; leave it out, or run one after the other"
        )
        yield ("sweep",), ActError(wrong)
    for name in ("top", "strength", "strength_of"):
        if name in recipe.donor[0].model_fields_set:
            yield ("donor", 0, name), ActError(f"{name} is what sweep chooses; leave it out here, or leave out sweep")
    for name in ("top", "strength"):
        if not getattr(sweep, name):
            yield ("sweep", name), ActError(f"{name} is an empty list; give at least one to try, or leave it out")
    if sweep.corpus in sweep.kept:
        yield ("sweep", "keep"), ActError(f"{sweep.corpus} is both the ability to give and one to keep; keep another")


def _in_tune(tune: Tuning) -> Iterator[tuple[Place, ActError]]:
    if tune.replay_share != TuneSettings.replay_share and tune.replay is None:
        wrong = f"tune.replay_share {tune.replay_share} is a share of nothing; give replay, or leave it out"
        yield ("tune", "replay_share"), ActError(wrong)
    if tune.lora_rank != TuneSettings.lora_rank and tune.mode != "lora":
        wrong = f"tune.lora_rank has no effect in mode {tune.mode}; leave it out, or choose mode lora"
        yield ("tune", "lora_rank"), ActError(wrong)


def _in_evaluate(recipe: Recipe) -> Iterator[tuple[Place, ActError]]:
    if not recipe.evaluate:
        return
    if not (recipe.evaluate.corpora or recipe.evaluate.tasks):
        yield ("evaluate",), ActError("evaluate has neither corpus nor task, so nothing would be measured; give one")
    for name in ("task_folder", "limit", "fewshot"):
        if getattr(recipe.evaluate, name) is not None and not recipe.evaluate.tasks:
            yield ("evaluate", name), ActError(f"{name} has no effect without a task; leave it out, or give task")


def _twice(names: list[Any]) -> list[Any]:
    return [name for number, name in enumerate(names) if name in names[:number]]

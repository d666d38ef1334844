"""The reference of the keys of a recipe, made from its schema: as tables, as phrases of messages, and for editors."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from act.core.plain import LARGEST
from act.recipes.schema import Donor, Evaluating, Recipe, Records, Section, Sweeping, Tuning

SECTIONS: dict[str, type[Section]] = {
    "": Recipe,
    "donor": Donor,
    "corpora.NAME": Records,
    "sweep": Sweeping,
    "tune": Tuning,
    "evaluate": Evaluating,
}
"""The sections of a recipe, by where they stand in it."""

Shape = Literal["one", "list", "names"]
"""How a key holds sections: one, a list of them, or one under each name."""


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, by which editors complete and check it; names of earlier versions are deprecated."""
    found = Recipe.model_json_schema()
    found["properties"]["run"] = {"description": "What a finished run notes here; not read.", "type": "object"}
    for kind in SECTIONS.values():
        described = found if kind is Recipe else found["$defs"][kind.__name__]
        for name, given in described["properties"].items():
            section, shape = section_of(kind, name) if name in kind.model_fields else (None, "one")
            if section and section.short and shape == "names":
                alone = found["$defs"][section.__name__]["properties"][section.short]
                whole = given["patternProperties"]
                given["patternProperties"] = {names: {"anyOf": [one, alone]} for names, one in whole.items()}
        _add_old_names(kind, described)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _add_old_names(kind: type[Section], described: dict[str, Any]) -> None:
    """Let the schema of a section know the names of earlier versions, of which one may stand for a required key."""
    properties = described["properties"]
    for old, name in kind.old.items():
        now = {key: value for key, value in properties[name].items() if key != "title"}
        properties[old] = {**now, "description": f"Now called `{name}`.", "deprecated": True}
    for old in kind.unfolded:
        properties[old] = {"description": "Its keys now stand beside it.", "type": "object", "deprecated": True}
    names = {
        name: [name, *(old for old in kind.old if kind.old[old] == name)] for name in described.get("required", ())
    }
    described["required"] = [name for name, every in names.items() if len(every) == 1]
    described["allOf"] = [
        {"anyOf": [{"required": [one]} for one in every]} for every in names.values() if len(every) > 1
    ]
    for empty in ("required", "allOf"):
        if not described[empty]:
            del described[empty]


def reference() -> str:
    """A table of the keys of each section, in Markdown: key, what it takes, default, and what it is for.

    >>> from act.recipes.reference import reference
    >>> [line for line in reference().splitlines() if line.startswith("| `replay_share`")]
    ['| `replay_share` | number from 0 to below 1 | `0.5` | Share of the records that are drawn from `replay`. |']
    """
    return "\n\n".join("\n".join(_section(place, kind)) for place, kind in SECTIONS.items()) + "\n"


def section_of(kind: type[Section], name: str) -> tuple[type[Section] | None, Shape]:
    """The section, or sections, that a key of a section holds; None for a key that holds values."""
    for annotation in (kind.model_fields[name].annotation, *get_args(kind.model_fields[name].annotation)):
        # Python 3.10 takes dict[str, Section] for a type.
        if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Section):
            shape: Shape = {list: "list", dict: "names"}.get(get_origin(kind.model_fields[name].annotation), "one")  # type: ignore[arg-type,assignment]
            return annotation, shape
    return None, "one"


def expected(kind: type[Section], name: str) -> str:
    """What a key takes, as a phrase after "expected".

    >>> from act.recipes.reference import expected
    >>> from act.recipes.schema import Donor, Recipe
    >>> expected(Donor, "keep"), expected(Recipe, "scope"), expected(Recipe, "max_length")
    ('a text or a list of texts', 'one of global, kind, layer, site', 'a whole number from 2')
    """
    section, shape = section_of(kind, name)
    if section:
        keys = " and ".join(one for one, field in section.model_fields.items() if field.is_required())
        with_keys = f" with {keys}" if keys else ""
        return {
            "one": f"a section{with_keys}",
            "list": f"a list of sections{with_keys}, each begun by a dash",
            "names": f"names, and below each a section{with_keys}",
        }[shape]
    takes = _takes(*_property(kind, name)).split(" or ")
    return " or ".join(f"one of {one}" if one[0] == "`" else f"a {one}" for one in takes).replace("`", "")


def choices_of(kind: type[Section], name: str) -> list[str]:
    """The words of which a key takes one, or several; none if it takes others, too."""
    return re.findall(r"`([^`]+)`", _takes(*_property(kind, name)))


@functools.cache
def _schema_of(kind: type[Section]) -> dict[str, Any]:
    return kind.model_json_schema()


def _property(kind: type[Section], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = _schema_of(kind)
    return found["properties"][name], found.get("$defs", {})


def _section(place: str, kind: type[Section]) -> Iterator[str]:
    yield f"### `{place}`" if place else "### At the top"
    yield ""
    yield "| key | takes | default | |"
    yield "|---|---|---|---|"
    for name, field in kind.model_fields.items():
        default = "required" if field.default is PydanticUndefined else _plain(field.default)
        yield f"| `{name}` | {_takes(*_property(kind, name))} | {default} | {field.description} |"


def _plain(default: Any) -> str:
    if default is None or default in ([], {}) or isinstance(default, Section):
        return ""
    return f"`{json.dumps(default) if not isinstance(default, str) else default}`"


def _takes(given: dict[str, Any], sections: dict[str, Any]) -> str:
    """A type of a JSON schema, as a phrase."""
    if "$ref" in given:
        named = given["$ref"].rpartition("/")[2]
        return _takes(sections[named], sections) if "enum" in sections[named] else "a section"
    if "enum" in given:
        return ", ".join(f"`{value}`" for value in given["enum"])
    if "const" in given:
        return f"`{given['const']}`"
    if "allOf" in given:
        return _takes(given["allOf"][0], sections)
    if "anyOf" in given:
        kinds = dict.fromkeys(_takes(one, sections) for one in given["anyOf"] if one.get("type") != "null")
        return " or ".join(kinds)
    if given.get("type") == "array":
        return f"list of {_many(_takes(given['items'], sections))}"
    if given.get("type") == "object":
        values = given.get("additionalProperties") or next(iter(given["patternProperties"].values()))
        return f"mapping of names to {_many(_takes(values, sections))}"
    name = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}[given["type"]]
    return name + _range(given)


def _range(given: dict[str, Any]) -> str:
    """The least and the largest value of a number, where there is one that can be reached."""
    least = f" from {given['minimum']:g}" if "minimum" in given else ""
    least = f" above {given['exclusiveMinimum']:g}" if "exclusiveMinimum" in given else least
    largest = given.get("maximum", LARGEST)
    below = f" to below {given['exclusiveMaximum']:g}" if "exclusiveMaximum" in given else ""
    return least + below + (f" to {largest:,}" if largest < LARGEST else "")


def _many(one: str) -> str:
    if one == "a section":
        return "sections"
    return re.sub(r"^(text|whole number|number)\b", r"\1s", one) if " or " not in one else f"values, each a {one}"

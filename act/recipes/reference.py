"""The reference of the keys of a recipe, made from its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from act.recipes.schema import Donor, Evaluating, Parameters, Recipe, Records, Section, Tuning

SECTIONS: dict[str, type[Section]] = {
    "": Recipe,
    "models": Donor,
    "models.parameters": Parameters,
    "corpora.NAME": Records,
    "tune": Tuning,
    "evaluate": Evaluating,
}
"""The sections of a recipe, by where they stand in it."""


def reference() -> str:
    """A table of the keys of each section, in Markdown: key, what it takes, default, and what it is for.

    >>> from act.recipes.reference import reference
    >>> [line for line in reference().splitlines() if line.startswith("| `top_p`")]
    ['| `top_p` | number or text | `0.05` | The share of the channels, such as `5%`. |']
    """
    return "\n\n".join("\n".join(_section(place, kind)) for place, kind in SECTIONS.items()) + "\n"


def _section(place: str, kind: type[Section]) -> Iterator[str]:
    yield f"### `{place}`" if place else "### At the top"
    yield ""
    yield "| key | takes | default | |"
    yield "|---|---|---|---|"
    schema = kind.model_json_schema()
    for name, field in kind.model_fields.items():
        takes = _takes(schema["properties"][name], schema.get("$defs", {}))
        default = "required" if field.default is PydanticUndefined else _plain(field.default)
        yield f"| `{name}` | {takes} | {default} | {field.description} |"


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
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}[given["type"]]


def _many(one: str) -> str:
    return re.sub(r"^a section$|(text|number)$", lambda found: "sections" if not found[1] else f"{found[1]}s", one)

"""Groups of options that several commands share, as dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is a dataclass by one parameter per field, as typer needs.

    Each field is annotated as a typer parameter, and its default is that of the option. Where the dataclass has a
    ``heading``, ``--help`` shows all of its options under that. The other parameters of the command come first.
    """
    hints = inspect.get_annotations(command, eval_str=True)  # typing's would hide an option that may be None in 3.10
    hints.pop("return", None)
    groups = {name: hints.pop(name) for name, hint in [*hints.items()] if dataclasses.is_dataclass(hint)}
    given = inspect.signature(command).parameters
    defaults = {name: given[name].default for name in hints}
    fields: dict[str, dict[str, Any]] = {}
    for place, group in groups.items():
        heading = getattr(group, "heading", None)
        own = dataclasses.fields(group)
        if heading:  # what the heading is about comes before what the dataclass shares with others
            own = tuple(sorted(own, key=lambda field: field.name not in inspect.get_annotations(group)))
        fields[place] = {field.name: _default(field) for field in own}
        found = typing.get_type_hints(group, include_extras=True)
        hints |= {name: _under(heading, hint) for name, hint in found.items() if name in fields[place]}

    @functools.wraps(command)
    def grouped(**given: Any) -> None:
        made = {place: groups[place](**{name: given.pop(name) for name in names}) for place, names in fields.items()}
        command(**given, **made)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
        for name, default in [*defaults.items(), *(item for each in fields.values() for item in each.items())]
    ]
    grouped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    grouped.__annotations__ = hints
    return grouped


def _under(heading: str | None, hint: Any) -> Any:
    """The annotation of an option, shown under another heading."""
    if heading is None:
        return hint
    kind, option = typing.get_args(hint)
    option = copy.copy(option)
    option.rich_help_panel = heading
    return typing.Annotated[kind, option]


def _default(field: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default

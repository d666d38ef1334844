"""What is wrong with the value of an option, as one sentence: what was given, and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

CALLED_ELSEWHERE = {
    "lr": "learning-rate",
    "epochs": "steps",
    "num-train-epochs": "steps",
    "max-steps": "steps",
    "dataset": "corpus",
    "data": "corpus",
    "train-file": "corpus",
    "rank": "lora-rank",
    "r": "lora-rank",
    "lambda": "strength",
    "weight": "strength",
    "alpha": "strength",
    "out": "output",
    "output-dir": "output",
    "base": "donor",
    "source": "donor",
    "base-model": "target",
}
"""What other programs call an option of ours: those names are near to none of them."""

_EXPECTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "int_parsing": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "int_parsing_size": lambda _: "a smaller whole number",
    "float_parsing": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "greater_than": lambda limit: f"more than {limit['gt']:g}",
    "greater_than_equal": lambda limit: f"at least {limit['ge']:g}",
    "less_than": lambda limit: f"less than {limit['lt']:g}",
    "less_than_equal": lambda limit: f"at most {limit['le']:g}",
}
"""What pydantic, with which typer reads the values of options, expected where it reports each type of error."""


def value_mistaken(error: Any) -> str | None:
    """The sentence for an error of typer's about the value of an option; None for another error.

    Earlier versions of typer name what was given by themselves, and have no such cause.
    """
    found, parameter = getattr(error.__cause__, "errors", None), getattr(error, "param", None)
    if found is None or parameter is None:
        return None
    first = found(include_url=False)[0]
    name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.make_metavar(error.ctx)
    if first["type"] in _EXPECTED:
        expected = _EXPECTED[first["type"]](first.get("ctx", {}))
    else:
        expected = first["msg"].removeprefix("Input should be ")
    given = first["input"] if "than" in first["type"] else repr(first["input"])
    return f"{name} is {given}; expected {expected}"

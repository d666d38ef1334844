"""What is wrong with the value of an option, as one sentence: what was given, and what was expected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from act.core.errors import ActError
from act.core.near import meant

_CALLED_ELSEWHERE = {
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
    "model": "target",
    "share": "top",
    "shares": "top",
    "fraction": "top",
}
"""What other programs call an option of ours: those names are near to none of them."""

_OF_ONE_MODEL = {
    **dict.fromkeys(("target", "base", "base-model", "source", "before", "model-path"), "model"),
    **dict.fromkeys(("result", "to"), "output"),
}
"""What people call the options of a command that takes one model."""

_HELD_BY_A_PATCH = {
    "donor": "a patch holds the donor's rows already: give the model that they go into, by --model",
    "channels": "a patch holds its channels already; act-profile transfer --channels makes another",
    "strength": "a patch was made at its strength; act-profile transfer --strength makes one at another",
}
"""What a command on patches does not take, and why."""

_DONE_OTHERWISE = {
    ("tune", "keep"): "--replay mixes in records of what to keep",
    ("evaluate", "output"): "--details FILE.jsonl writes what every record showed, and --json > FILE.json the figures",
}
"""What does the work of an option that other commands have, by the command that has none, and that option."""

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
    several = repeated(name, str(first["input"])) if getattr(parameter, "multiple", False) else ""
    return f"{name} is {given}; expected {expected}{several}"


def repeated(option: str, given: str, names: Collection[str] = ()) -> str:
    """The end of a message for several values in one, which says how they are given; empty if it is one value.

    Args:
        names: what values there are; empty: numbers, and shares in per cent.

    >>> from act.cli.mistakes import repeated
    >>> repeated("--top", "5,10%"), repeated("--top", "five")
    ('; for several, repeat the option: --top 5% --top 10%', '')
    """
    values = [one for one in re.split(r"[\s,;:]+|\.\.+", given) if one]
    if len(values) < 2 or not all(one in names if names else re.fullmatch(r"[\d.]+%?", one) for one in values):
        return ""
    if values[-1].endswith("%"):
        values = [f"{one.removesuffix('%')}%" for one in values]
    return f"; for several, repeat the option: {' '.join(f'{option} {one}' for one in values)}"


def require_once(order: Iterable[Any]) -> None:
    """Raise :class:`ActError` for an option of one value that comes more than once in a command line.

    Args:
        order: the options and arguments as they come.
    """
    for parameter, count in Counter(order).items():
        one_value = parameter.param_type_name == "option" and not (parameter.multiple or parameter.is_flag)
        if one_value and count > 1:
            raise ActError(f"{parameter.opts[0]} is given {count} times, and takes one value; give it once")


def require_shares(given: Iterable[str] | None) -> None:
    """Raise :class:`ActError` for a value of a repeatable ``--top`` that is no share of the channels."""
    from act.ranking.selection import parse_top

    for share in given or ():
        try:
            parse_top(share)
        except ActError as error:
            raise ActError(f"{error}{repeated('--top', share)}") from None


def option_meant(usage: Any) -> str:
    """The end of a message on an option that there is not: what it is called here; empty if nothing is like it."""
    given, parameters = usage.option_name.lstrip("-"), usage.ctx.command.params if usage.ctx else []
    if usage.ctx and " patch " in usage.ctx.command_path and given in _HELD_BY_A_PATCH:
        return f"; {_HELD_BY_A_PATCH[given]}"
    command = usage.ctx.command_path.rpartition(" ")[2] if usage.ctx else ""
    if otherwise := _DONE_OTHERWISE.get((command, _CALLED_ELSEWHERE.get(given, given))):
        return f"; {otherwise}"
    if any(one.param_type_name == "argument" and one.name == given for one in parameters):
        return f"; {given.upper()} has no option before it: {usage.ctx.command_path} {given.upper()}"
    ours = {name.lstrip("-") for one in parameters for name in one.opts if one.param_type_name == "option"}
    called = {**_CALLED_ELSEWHERE, **(_OF_ONE_MODEL if "model" in ours else {})}
    elsewhere = {name: here for name, here in called.items() if here in ours}
    if given in elsewhere:
        return f"; did you mean --{elsewhere[given]}?"
    known = [one.lstrip("-") for one in usage.possibilities or ()]  # dashes are alike in all
    if near := meant(given, known).replace("mean ", "mean --"):
        return near
    wrong = meant(given, [name for name in elsewhere if len(name) > 3]).removeprefix("; did you mean ").rstrip("?")
    return f"; did you mean --{elsewhere[wrong]}?" if wrong else ""

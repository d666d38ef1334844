"""In what two runs differ, in words: what :meth:`act.profiling.job.Job.identity` says of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from act.core.differences import first_difference
from act.core.errors import option
from act.profiling.defaults import KEPT

_FIRST = ("measured", "until_stable")
"""Settings that others follow from."""


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first difference between two runs, as a phrase; None if they are the same.

    Args:
        there: what the identity of the one says of what ``here`` names, or more.
        here: the identity of the other, as plain data.

    >>> from act.profiling.identity import difference
    >>> difference({"settings": {"token_budget": 150}}, {"settings": {"token_budget": 151}})
    'token_budget: 150 there, 151 here'
    >>> difference({"corpora": {"german": {"fingerprint": "a1"}}}, {"corpora": {"german": {"fingerprint": "b2"}}})
    'the text german is another'
    """
    for part, expected in sorted(here.items(), key=lambda each: each[0] != "types"):  # of other types, weights differ
        found = there.get(part)
        if not first_difference(found, expected):
            continue
        if isinstance(expected, Mapping):
            return _of_part(part, found if isinstance(found, Mapping) else {}, expected)
        return _shown(part, found, expected)
    return None


def known_of(identity: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What an identity says of that which ``known`` names; of each text, only what is named there.

    >>> from act.profiling.identity import known_of
    >>> known_of({"settings": {"fused": True, "exclude": []}, "shard": [0, 1]}, {"settings": {"fused": False}})
    {'settings': {'fused': True}}
    """
    found = {part: identity.get(part) for part in known}
    for part, expected in known.items():
        if part == "settings":
            found[part] = {name: (found[part] or {}).get(name) for name in expected}
        elif part == "corpora":
            texts = found[part] or {}
            found[part] = {
                name: {key: text.get(key) for key in expected[name]} if name in expected else text
                for name, text in texts.items()
            }
    return found


def _of_part(part: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    names = (*_FIRST, *expected, *found)
    name = next(key for key in names if first_difference(found.get(key), expected.get(key)))
    there, here = found.get(name), expected.get(name)
    if part == "models":
        if found.keys() != expected.keys():
            return f"of {listed(found)}, not of {listed(expected)}"
        return f"another {name}"
    if part == "types":
        return f"the {name} as {there} there, as {here} here ({option('--dtype', 'dtype')})"
    if part != "corpora":
        return "statistics of another kind" if name == "measured" else _shown(name, there, here)
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return f"without {_text(name)}" if there is None else f"with {_text(name)}, which is not given here"
    key = next(key for key in (*here, *there) if first_difference(there.get(key), here.get(key)))
    if key == "fingerprint":
        return f"{_text(name)} is another"
    if key in ("tokenizer", "vocabulary", "tokenizer_code", "processor"):
        return f"another {'processor' if key == 'processor' else 'tokenizer or chat template'} for {_text(name)}"
    return f"{_text(name)}: {_shown(key, there.get(key), here.get(key))}"


def _text(name: str) -> str:
    if name.startswith(KEPT):
        return f"text {int(name.removeprefix(KEPT)) + 1} to keep"
    return f"the text {name}" if name else "the text"


def listed(sides: Iterable[str]) -> str:
    """The models of a run, in words.

    >>> from act.profiling.identity import listed
    >>> listed(["model"]), listed(["donor", "target"])
    ('one model', 'a donor and a target')
    """
    return " and ".join(f"one {side}" if side == "model" else f"a {side}" for side in sides) or "no model"


def _shown(name: str, there: Any, here: Any) -> str:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        inner = next(key for key in (*here, *there) if first_difference(there.get(key), here.get(key)))
        return f"{_called(name)}: its {inner} is {_value(there.get(inner))} there, {_value(here.get(inner))} here"
    return f"{_called(name)}: {_value(there)} there, {_value(here)} here"


def _called(name: str) -> str:
    if name == "windows":
        return "ranks"
    return option(f"--{'stride' if name == 'overlap' else name.replace('_', '-')}", name)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        whole = all(isinstance(each, int) for each in value)  # the i-th of n
        return ("/" if whole else ", ").join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return "given"
    return "not given" if value is None else f"{value}"[:60]

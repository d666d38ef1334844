"""Errors in the words of a recipe: a stage names the options of commands, which are keys of the file here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from act.core.errors import ActError
from act.data.corpus import skipping
from act.evaluation.held_out import HALVES
from act.recipes.schema import Donor, Evaluating, Recipe, Records, Sweeping, Tuning

_OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_KEYS = {key for section in (Recipe, Records, Donor, Sweeping, Tuning, Evaluating) for key in section.model_fields}


@contextmanager
def in_words_of_the_file() -> Iterator[None]:
    """Name keys in place of the options of commands in the errors of what is done meanwhile."""
    try:
        yield
    except ActError as error:
        said = _OPTION.sub(_key, str(error).replace(skipping(), "").replace(HALVES, ""))
        if said == str(error):
            raise
        raise type(error)(said) from error


def _key(option: re.Match[str]) -> str:
    name = option[1].replace("-", "_")
    return name if name in _KEYS else option[0]

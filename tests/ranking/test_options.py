"""The options of ``rank`` in functions that rank on the way: declared once, and shown in every signature."""

from __future__ import annotations

import inspect

import pytest

import act
from act.ranking.options import RankOptions

OWN = {"profile", "top", "count", "mass", "keep", "donor", "target"}
"""Parameters of ``rank`` that say of what and how much, not by what."""


def test_the_options_are_those_of_rank_with_its_types():
    parameters = inspect.signature(act.rank).parameters
    assert set(RankOptions.__annotations__) == set(parameters) - OWN
    types = {name: annotation.__forward_arg__ for name, annotation in RankOptions.__annotations__.items()}
    assert types == {name: parameters[name].annotation for name in types}


@pytest.mark.parametrize("function", [act.sweep, act.choose])
def test_a_function_that_ranks_shows_them_with_the_defaults_of_rank(function):
    shown, parameters = inspect.signature(function).parameters, inspect.signature(act.rank).parameters
    for name in RankOptions.__annotations__:
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY and shown[name].default == parameters[name].default


def test_an_unknown_keyword_is_a_mistake_at_once():
    with pytest.raises(TypeError, match="unexpected keyword argument 'normalise'"):
        act.sweep(None, None, None, None, normalise="std")

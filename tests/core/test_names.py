"""Names that become file names."""

from __future__ import annotations

import os

import pytest

from act.core.errors import ActError
from act.core.names import require_name

GOOD = ["german", "数学", "C++ (11)", "naïve-Bayes_2", "हिन्दी", "क्‍ष", "a.b", "👩‍🔬", "x" * 50, "数" * 50, "CON"]
BAD = [
    "",
    " ",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "/etc",
    ".hidden",
    "a\nb",
    "a\0b",
    "\x7f",
    "a\u2028b",
    "x" * 51,
    None,
    3,
    ["x"],
]


@pytest.mark.parametrize("name", GOOD)
def test_a_name_of_any_script_is_a_file_name_as_it_is(tmp_path, name):
    assert require_name("the ability", name) == name
    (tmp_path / f".{name}.safetensors.checkpoint.tmp12345").touch()  # the longest name that is made of one
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_other_names_are_refused_in_a_sentence(name):
    with pytest.raises(ActError, match=r"^the ability is .*expected a (valid file )?name"):
        require_name("the ability", name)


def test_half_a_character_is_named():
    with pytest.raises(ActError, match="half a character"):
        require_name("the ability", "a\ud800")
